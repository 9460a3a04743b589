"""What timm saved itself, in a folder or on the Hub, loads as a dense model: its classes, their names, its size."""

import json
import os
import time
from functools import partial

import pytest
import timm
import torch
from client import faults, point
from hub import commit, create, large, regular, serving
from timm.models import save_for_hf

import zoo
from zoo.deadline import deadline
from zoo.errors import RepositoryError, StructureError, WeightsError
from zoo.files import read_json, sha256, write_json
from zoo.hub import repository, timm_folder
from zoo.verbs.own_weights import with_weights

NAMES = ["daisy", "poppy", "rose"]
BARE = {"model_args": {}, "label_names": None}
SAVED = {
    "classes of its own": ("test_resnet", {"num_classes": 3}, 160),
    "one channel": ("test_resnet", {"num_classes": 3, "in_chans": 1}, 64),
    "another size": ("test_vit", {"num_classes": 3, "img_size": 64}, 64),
    "buffers that are computed": ("test_vit_relpos", {"num_classes": 3}, 160),
    "arguments": ("resnet10t", {"num_classes": 3, "stem_width": 16}, 64),
}


def made(name, folder, **options):
    """A model as timm saves it; its older versions write neither channels, size nor arguments by themselves."""
    architecture, args, size = SAVED[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, **args).eval()
    given = {key: value for key, value in args.items() if key != "num_classes"}
    channels = args.get("in_chans", 3)
    config = {
        "pretrained_cfg": {"input_size": (channels, size, size), "mean": [0.5] * channels, "std": [0.5] * channels}
    }
    save_for_hf(
        model,
        folder,
        model_config={**config, "label_names": NAMES},
        model_args=given or None,
        **{"safe_serialization": True, **options},
    )
    return model, torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def same(a, b, images):
    with torch.no_grad():
        return torch.equal(a(images), b(images))


@pytest.mark.parametrize("name", SAVED)
def test_a_folder_that_timm_saved_loads_is_saved_and_compressed(name, tmp_path):
    model, images = made(name, tmp_path / "timms")
    loaded = zoo.load(tmp_path / "timms")

    assert same(model, loaded, images)
    assert (loaded.num_classes, [*loaded.pretrained_cfg["label_names"]]) == (3, NAMES)
    again = zoo.load(zoo.save(loaded, tmp_path / "ours"))
    assert same(model, again, images)
    assert [*again.pretrained_cfg["label_names"]] == NAMES
    assert zoo.load(tmp_path / "timms", num_classes=7)(images).shape == (2, 7)


def test_the_licence_that_timm_writes_beside_whatever_it_saves_is_not_taken_for_the_weights(tmp_path):
    architecture, tag = "test_resnet", "r160_in1k"
    model = timm.create_model(f"{architecture}.{tag}", num_classes=3)
    save_for_hf(model, tmp_path / "timms", safe_serialization=True)
    stamped = read_json(tmp_path / "timms" / "config.json")["pretrained_cfg"]
    assert (stamped["license"], stamped["tag"]) == ("apache-2.0", tag)
    saved = zoo.save(zoo.load(tmp_path / "timms"), tmp_path / "ours")
    assert not {"license", "tag"} & read_json(saved / "config.json")["pretrained_cfg"].keys()


def test_a_folder_that_timm_saved_is_compressed(tmp_path):
    _, images = made("classes of its own", tmp_path / "timms")
    smaller = zoo.compress(zoo.load(tmp_path / "timms"), budget=0.6, data=[images])
    assert same(smaller, zoo.load(zoo.save(smaller, tmp_path / "smaller")), images)
    assert zoo.measure(smaller).macs <= 0.6 * zoo.measure(zoo.load(tmp_path / "timms")).macs


def test_a_repository_of_the_hub_that_timm_pushed_loads(tmp_path, monkeypatch):
    model, images = made("classes of its own", tmp_path / "timms")
    with serving(tmp_path / "served") as address:
        create(address, "someone/flowers")
        files = tmp_path / "timms"
        lines = [
            regular("config.json", (files / "config.json").read_text()),
            large(address, "someone/flowers", "model.safetensors", (files / "model.safetensors").read_bytes()),
        ]
        assert commit(address, "someone/flowers", *lines).status == 200
        faults(address)
        point(monkeypatch, address, tmp_path / "cache")
        assert same(model, zoo.load("someone/flowers"), images)
        assert zoo.create("someone/flowers").num_classes == 3


def test_a_configuration_of_the_oldest_kind_is_read(tmp_path):
    """All keys in one object, and the names under `labels`."""
    model, images = made("classes of its own", tmp_path)
    config = read_json(tmp_path / "config.json")
    flat = {**config["pretrained_cfg"], "architecture": "test_resnet", "num_classes": 3, "labels": NAMES}
    write_json(tmp_path / "config.json", flat)
    loaded = zoo.load(tmp_path)
    assert same(model, loaded, images)
    assert [*loaded.pretrained_cfg["label_names"]] == NAMES


def test_where_timm_fetched_other_weights_is_no_claim_of_those_in_a_folder(tmp_path):
    made("classes of its own", tmp_path)
    config = read_json(tmp_path / "config.json")
    config["pretrained_cfg"] |= {"hf_hub_id": "timm/test_resnet.r160_in1k", "url": "https://a/b", "license": "mit"}
    write_json(tmp_path / "config.json", config)
    for model in (zoo.load(tmp_path), zoo.create(tmp_path)):
        assert not model.pretrained_cfg.keys() & {"license", "tag", "url", "file", "hf_hub_id", "hf_hub_filename"}


def test_a_pickle_is_not_loaded_but_saved_as_a_repository(tmp_path):
    model, images = made("classes of its own", tmp_path / "timms", safe_serialization=False)
    command = rf"zoo save {tmp_path / 'timms'} --weights {tmp_path / 'timms' / 'pytorch_model.bin'} --out NEW"
    with pytest.raises(RepositoryError, match=rf"pytorch_model.bin, a pickle, which isn't loaded: {command}"):
        zoo.load(tmp_path / "timms")

    filled = with_weights(tmp_path / "timms", tmp_path / "timms" / "pytorch_model.bin")
    loaded = zoo.load(zoo.save(filled, tmp_path / "ours"))
    assert same(model, loaded, images)
    assert [*loaded.pretrained_cfg["label_names"]] == NAMES
    assert loaded.pretrained_cfg["mean"] == [0.5] * 3


def test_weights_that_take_long_to_read_are_waited_for(tmp_path, monkeypatch):
    def slowly(path):
        end = time.process_time() + 0.8
        while time.process_time() < end:
            pass
        return sha256(path)

    model, images = made("classes of its own", tmp_path)
    monkeypatch.setattr(timm_folder, "sha256_stamped", slowly)
    monkeypatch.setattr(repository, "deadline", partial(deadline, seconds=0.3))
    assert same(model, zoo.load(tmp_path), images)


@pytest.mark.parametrize("read", [zoo.load, zoo.create, repository.read_config])
def test_weights_that_are_larger_than_the_model_can_need_are_not_read(read, tmp_path, monkeypatch):
    made("classes of its own", tmp_path)
    os.truncate(tmp_path / "model.safetensors", 2**40)  # which takes no room
    with pytest.raises(WeightsError, match=r"safetensors is damaged \(1,099,511,627,776 bytes, where its structure"):
        read(tmp_path)


def test_what_timm_saved_is_not_published_as_ours(tmp_path):
    made("classes of its own", tmp_path / "timms")
    with pytest.raises(RepositoryError, match=r"timms isn't written by zoo: zoo\.save\(zoo\.load\('.*timms'\), FOLDER"):
        zoo.push(tmp_path / "timms", tmp_path / "there")
    zoo.push(zoo.save(zoo.load(tmp_path / "timms"), tmp_path / "ours"), tmp_path / "there")
    assert zoo.load(tmp_path / "there").num_classes == 3


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"pretrained_cfg": 3}, RepositoryError, "expected pretrained_cfg with input_size, and model_args, as timm"),
        ({"model_args": [1]}, RepositoryError, "expected pretrained_cfg with input_size, and model_args, as timm"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, StructureError, "'checkpoint_path' isn't part of an arch"),
        ({**BARE, "num_classes": "many"}, StructureError, "args.num_classes is .many., expected a whole number from 0"),
        ({**BARE, "num_classes": 10**12}, StructureError, "args.num_classes is 1000000000000, expected a whole "),
        ({"label_names": ["daisy"]}, RepositoryError, "label_names isn't a list of 3 names"),
    ],
    ids=str,
)
def test_what_timm_would_not_have_written_is_refused(change, kind, message, tmp_path):
    made("classes of its own", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, **change})
    with pytest.raises(kind, match=message):
        zoo.load(tmp_path)
