"""Files and repositories: what is written whole, what is noticed when it is damaged, what is named when it differs."""

import errno
import json
import os
import re
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from zoo.atomic import writing
from zoo.errors import RepositoryError, StorageError, StructureError, WeightsError
from zoo.files import read_json, sha256, write_json, writing_folder
from zoo.hub import weights
from zoo.structure.tensors import assign_, tensors_of

SAVED = sorted((Path(__file__).parent / "data" / "repositories").iterdir())
TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
TYPES += [torch.int8, torch.uint8, torch.bool]


@pytest.fixture
def saved(tmp_path):
    """A repository that may be damaged."""
    return Path(shutil.copytree(SAVED[0], tmp_path / "saved", ignore=shutil.ignore_patterns("expected*")))


def header(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return length, json.loads(data[8 : 8 + length]), len(data)


def rewrite(folder, change):
    """Change the tensors of a repository, and its sha256 with them."""
    values = weights.load_weights(folder / "model.safetensors")
    change(values)
    digest = weights.save_weights(folder / "model.safetensors", {name: value.clone() for name, value in values.items()})
    reconfigure(folder, lambda config: config["zoo"].update(weights_sha256=digest))


def reconfigure(folder, change):
    config = read_json(folder / "config.json")
    change(config)
    write_json(folder / "config.json", config)


# Tensors into a file


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 17), max_size=3)), max_size=8))
def test_what_is_written_any_reader_of_the_format_reads(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("it") / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    values = {
        f"t{i}": torch.randint(0, 2, shape, generator=generator).to(dtype) for i, (dtype, shape) in enumerate(shapes)
    }
    digest = weights.save_weights(path, values)
    assert digest == sha256(path)
    for read in (safetensors.torch.load_file(path), weights.load_weights(path)):
        assert read.keys() == values.keys()
        for name, value in values.items():
            assert read[name].dtype == value.dtype
            assert torch.equal(read[name], value)
    length, entries, size = header(path)
    spans = sorted(entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__")
    assert (8 + length) % 64 == 0
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans)][: len(spans)], "gaps"
    assert size == 8 + length + (spans[-1][1] if spans else 0)
    for name, value in weights.load_weights(path).items():
        assert value.data_ptr() % 64 == 0, f"{name} of {value.nbytes} bytes isn't aligned"
    for name, entry in entries.items():
        if name != "__metadata__" and values[name].nbytes % 64 == 0:
            assert (8 + length + entry["data_offsets"][0]) % 64 == 0, name


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(24.0).view(2, 3, 4)[:, 1],
        torch.ones(3, 1).expand(3, 5),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.tensor(3.5),
        torch.tensor(True),
        torch.zeros(0, 4),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        nn.Parameter(torch.ones(3)),
    ],
    ids=["transposed", "sliced", "expanded", "channels last", "0-d", "0-d bool", "empty", "no numbers", "parameter"],
)
def test_tensors_of_any_stride_are_written_as_they_read(value, tmp_path):
    weights.save_weights(tmp_path / "it", {"it": value, "again": value})
    for read in safetensors.torch.load_file(tmp_path / "it").values():
        torch.testing.assert_close(value.detach(), read, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64)], ids=str)
def test_what_the_format_cannot_hold_is_refused_by_name(value, tmp_path):
    with pytest.raises(WeightsError, match=r"^layer.weight can't be saved: it is torch\.\w+ on \w+, expected plain"):
        weights.save_weights(tmp_path / "it", {"layer.weight": value})
    assert not list(tmp_path.iterdir())


def test_a_shared_tensor_is_written_once_and_shared_again(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model = tied()
    weights.save_weights(tmp_path / "it", tensors_of(model))
    read = weights.load_weights(tmp_path / "it")
    assert {"0.weight", "0.bias", "1.bias"} == read.keys()
    with torch.device("meta"):
        again = tied()
    assign_(again, read, "it")
    assert again[0].weight is again[1].weight
    assert torch.equal(again[0].weight, model[0].weight)


def test_a_buffer_that_is_left_out_on_meta_is_taken_from_the_file():
    model = nn.Module()
    model.register_buffer("mask", None, persistent=False)
    assign_(model, {"mask": torch.ones(2)}, "it")
    assert torch.equal(torch.ones(2), model.mask)


def test_loaded_weights_belong_to_the_one_who_loaded_them(saved):
    before = (saved / "model.safetensors").read_bytes()
    model, other = zoo.load(saved), zoo.load(saved)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert before == (saved / "model.safetensors").read_bytes()
    assert any(parameter.abs().max() > 0 for parameter in other.parameters())


def test_a_file_of_another_writer_is_aligned_when_read(tmp_path):
    values = {f"t{i}": torch.randn(i + 1) for i in range(9)}
    safetensors.torch.save_file(values, tmp_path / "it", metadata={"odd": "header"})
    for name, value in weights.load_weights(tmp_path / "it").items():
        assert value.data_ptr() % 64 == 0, name
        assert torch.equal(value, values[name])


# Weights that don't fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("fc.weight"), r"fc.weight is missing, the plan expects \(5, 12\): save it again"),
        (
            lambda v: v.update({"fc.weight": torch.zeros(5, 13)}),
            r"fc.weight is \(5, 13\), the plan expects \(5, 12\): plan and weights differ",
        ),
        (
            lambda v: v.update({"fc.bias": torch.zeros(5, dtype=torch.int64)}),
            "fc.bias is torch.int64, the plan expects torch.float32",
        ),
        (
            lambda v: v.update({"bn1.num_batches_tracked": torch.tensor(0.0)}),
            "bn1.num_batches_tracked is torch.float32, the plan expects torch.int64",
        ),
        (lambda v: v.update(more=torch.zeros(1)), "more there, but the plan has no such tensor: plan and weights"),
        (lambda v: v.update(more=torch.zeros(1), most=torch.zeros(1)), "more and 1 more there, but the plan has no"),
        (lambda v: v.update({"fc.weights": v.pop("fc.weight")}), "fc.weight is missing"),
    ],
    ids=["missing", "misshapen", "integers", "floats", "extra", "two extra", "renamed"],
)
def test_a_tensor_that_does_not_fit_is_named(change, message, saved):
    rewrite(saved, change)
    with pytest.raises(WeightsError, match=f"^{re.escape(str(saved / 'model.safetensors'))}: {message}"):
        zoo.load(saved)


def test_half_precision_is_read_as_it_was_stored(saved):
    rewrite(saved, lambda v: v.update({k: t.bfloat16() for k, t in v.items() if t.is_floating_point()}))
    assert {torch.bfloat16} == {parameter.dtype for parameter in zoo.load(saved).parameters()}


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b[:4], lambda b: b"", lambda b: b + b"\0",
     lambda b: b"\xff" * 8 + b[8:], lambda b: b[:8] + b"[" + b[9:], lambda b: b"<html>" * 100],
    ids=["last byte", "half", "length", "all", "one byte more", "absurd length", "no JSON", "a web page"],
)  # fmt: skip
def test_a_damaged_file_is_noticed_before_it_is_used(damage, saved):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=re.escape(str(path)) + r" is damaged \(.*\): fetch or save it again$"):
        zoo.load(saved)


def test_missing_weights_are_named(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"saved has no model.safetensors: fetch or save the repository again$"):
        zoo.load(saved)


# config.json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("zoo"), "has no key 'zoo': not written by this package"),
        (lambda c: c.update(zoo=[]), "has no key 'zoo': not written by this package"),
        (lambda c: c["zoo"].update(schema=2), "has schema 2, zoo {} reads up to 1: needs zoo >= 9.9; pip install -U"),
        (lambda c: c["zoo"].update(schema="1"), "has schema 1, zoo {} reads up to 1: needs zoo >= 9.9"),
        (lambda c: c["zoo"].update(schema=9, versions=None), "has schema 9, zoo {} reads up to 1: needs zoo >= newer"),
        (lambda c: c["zoo"].pop("schema"), "has schema None, zoo {} reads up to 1: needs zoo >= 9.9"),
        (lambda c: c["zoo"].pop("plan"), ": zoo: missing 'plan'"),
        (lambda c: c["zoo"].update(plan={}), ": zoo.plan is {{}}, expected a list"),
        (lambda c: c["zoo"].update(name=3), ": zoo.name is 3, expected a name of letters, digits and ."),
        (lambda c: c["zoo"].update(weights_sha256=None), ": zoo.weights_sha256 is None, expected text"),
        (lambda c: c["zoo"].pop("fingerprint"), ": zoo: missing 'fingerprint'"),
        (lambda c: c["zoo"].update(base="timm/resnet18"), ": zoo.base is 'timm/resnet18', expected a table"),
        (lambda c: c["zoo"].update(base={}), ": zoo.base: missing 'id'"),
        (lambda c: c["zoo"]["base"].update(args=[1]), ": zoo.base.args is [1], expected a table"),
        (lambda c: c["zoo"].update(versions=[]), ": zoo.versions is [], expected a table"),
        (lambda c: c["zoo"].update(recipe="mine"), ": zoo.recipe is 'mine', expected a table"),
        (lambda c: c["zoo"].update(recipe={"method": ["prune"]}), ": zoo.recipe.method is ['prune'], expected text"),
        (lambda c: c["zoo"].update(recipe={"method": {}}), ": zoo.recipe.method is {{}}, expected text"),
        (lambda c: c["zoo"].update(recipe={"teachers": 5}), ": zoo.recipe.teachers is 5, expected a list"),
        (lambda c: c["zoo"].update(recipe={"teachers": [5]}), ": zoo.recipe.teachers[0] is 5, expected text"),
        (lambda c: c["zoo"].update(recipe={"budget": 5}), ": zoo.recipe.budget is 5, expected a table"),
        (lambda c: c["zoo"].update(recipe={"budget": {"macs": "x"}}), ": zoo.recipe.budget.macs is 'x', expected a nu"),
        (lambda c: c["zoo"].update(recipe={"data": 5}), ": zoo.recipe.data is 5, expected text"),
        (lambda c: c["zoo"].update(recipe={"converted_from": 5}), ": zoo.recipe.converted_from is 5, expected a table"),
        (lambda c: c["zoo"].update(recipe={"converted_from": {}}), ": zoo.recipe.converted_from: missing 'format'"),
        (lambda c: c["zoo"].update(recipe={"converted_from": {"format": "timm", "sha256": 5}}), "sha256 is 5, expec"),
        (lambda c: (c["zoo"].update(later=1), c["zoo"].pop("plan")), ": zoo: missing 'plan'"),
        (lambda c: c["zoo"].update(schema=True), "has schema True, zoo {} reads up to 1: needs zoo >= 9.9"),
        (lambda c: c.update(num_classes=True), ": num_classes is True, expected a whole number from 0 to 200,000"),
        (lambda c: c.update(pretrained_cfg=3), ": pretrained_cfg is 3, expected a table"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_read_says_why(change, message, saved):
    reconfigure(saved, lambda config: config["zoo"]["versions"].update(zoo="9.9"))
    reconfigure(saved, change)
    with pytest.raises(RepositoryError, match=re.escape(message.format(zoo.__version__))) as caught:
        zoo.load(saved)
    assert str(caught.value).startswith(str(saved / "config.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "further",
    [
        {"later": {"a": [1]}},
        {"recipe": {"later": 1, "method": "of_later", "teachers": ["a"], "budget": {"macs": 0.5, "energy": 0.2}}},
        {"recipe": {"converted_from": {"format": "later", "sha256": {"a": "b"}, "later": 1}}},
        {"recipe": {"converted_from": None, "budget": None, "method": None}},
    ],
    ids=["zoo", "recipe", "converted from", "nothing"],
)
def test_what_other_versions_say_besides_is_read_over_and_a_recipe_is_kept_whole(further, saved, tmp_path):
    reconfigure(saved, lambda config: config["zoo"].update(further))
    model = zoo.load(saved)
    again = zoo.save(model, tmp_path / "again")

    assert model.zoo_entry.recipe == further.get("recipe", {})
    assert read_json(again / "config.json")["zoo"]["recipe"] == model.zoo_entry.recipe


@pytest.mark.parametrize("text", ["", "{", "nothing", '{"a": 1}}', "[" * 100_000, "\x00"], ids=range(6))
def test_a_configuration_that_is_not_json_is_refused(text, saved):
    (saved / "config.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"config\.json isn't JSON: "):
        zoo.load(saved)


def test_an_edit_from_the_future_is_named(saved):
    reconfigure(saved, lambda config: config["zoo"]["plan"].append({"edit": "fold"}))
    with pytest.raises(StructureError, match=r"config\.json: zoo\.plan\[\d\]: unknown edit 'fold', known are narrow, "):
        zoo.load(saved)


# Whole or absent


def refuse(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_former_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "it"
    path.parent.mkdir()
    path.write_bytes(b"former")
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(
        StorageError, match="can't be written: the disk is full; nothing half-written was left"
    ) as caught:
        weights.save_weights(path, {"t": torch.ones(3)})
    assert caught.value.errno == errno.ENOSPC
    assert [path] == list(path.parent.iterdir())
    assert path.read_bytes() == b"former"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_file_whose_writing_was_interrupted_is_absent(error, tmp_path):
    with pytest.raises(error), writing(tmp_path / "it") as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_written_file_can_be_read_by_others(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"π": 1})
    assert read_json(tmp_path / "a" / "b.json") == {"π": 1}
    assert (tmp_path / "a" / "b.json").stat().st_mode & 0o777 == 0o644


FOREIGN = {
    "folder": {"thesis.tex": "years of work"},
    "model of others": {"config.json": '{"model_type": "bert"}'},
    "repository with a note": {"config.json": '{"zoo": {}}', "thesis.tex": "years of work"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_something_else_is_not_replaced(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RepositoryError, match="exists and isn't a model repository: choose another folder or remove"):
        zoo.save(zoo.load(SAVED[0]), tmp_path)
    assert files == {path.name: path.read_text() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a repository"])
def test_a_repository_takes_the_place_of_a_former_one(there, tmp_path):
    target = tmp_path / "it"
    if there != "nothing":
        target.mkdir()
    if there == "a repository":
        (target / "config.json").write_text('{"zoo": {}}')
        (target / "results.json").write_text("")
    with writing_folder(target) as new:
        (new / "config.json").write_text("new")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "new"}
    assert [target] == list(tmp_path.iterdir())
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt, StorageError, OSError(errno.ENOSPC, "full")], ids=str)
def test_an_interrupted_repository_leaves_the_former_one(error, saved):
    expected = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises((KeyboardInterrupt, StorageError)), writing_folder(saved) as new:  # noqa: PT012
        (new / "config.json").write_text("half")
        raise error
    assert expected == {path.name: path.read_bytes() for path in saved.iterdir()}
    assert [saved] == list(saved.parent.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "broken")], ids=["interrupted", "broken"])
def test_a_repository_that_cannot_take_its_place_leaves_the_former_one(error, saved, monkeypatch):
    expected, rename = {path.name: path.read_bytes() for path in saved.iterdir()}, os.rename

    def stop_halfway(source, target):
        if Path(target) == saved and not Path(source).name.endswith(".former"):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", stop_halfway)
    with pytest.raises((KeyboardInterrupt, StorageError)), writing_folder(saved) as new:
        (new / "config.json").write_text("new")
    assert expected == {path.name: path.read_bytes() for path in saved.iterdir()}
    assert [saved] == list(saved.parent.iterdir())
