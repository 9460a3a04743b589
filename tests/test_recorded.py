"""Many models verified: in one pass over the images, into a file each, going on after whatever stopped it."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

import zoo
from zoo import catalog
from zoo.cli import main
from zoo.errors import DataError, RepositoryError, UnknownName
from zoo.tasks.datasets import dataset
from zoo.verbs import recorded
from zoo.verbs.recorded import verify_list
from zoo.verbs.verification import verify_together

NAMES = ["digits_cnn", "digits_cnn_pruned_50", "digits_vit", "digits_cnn_lowrank_50"]
SETTINGS = {"data": "digits", "images": 60}


@pytest.fixture
def run(capsys):
    """A function that runs the command line in this process: arguments → (exit code, stdout, stderr)."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*arguments])
        return end.value.code, *capsys.readouterr()

    return command


def said(verifications):
    return [each.to_json() for each in verifications]


def test_models_in_one_pass_have_the_figures_of_passes_of_their_own_and_images_are_decoded_once(monkeypatch):
    alone = [zoo.verify(name, **SETTINGS) for name in NAMES]
    decoded, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file: decoded.append(file) or opened(file))

    assert said(verify_together(NAMES, **SETTINGS).values()) == said(alone)
    assert len(decoded) == 2 * 60  # in grey for the models, in colour for the hash


def test_one_model_is_verified_into_one_file_that_reads_back_as_it_was(tmp_path):
    assert len([*verify_list(["digits_cnn"], SETTINGS, tmp_path)]) == 1
    path = recorded.file_of("digits_cnn", tmp_path)

    assert path == tmp_path / "digits_cnn.json"
    assert recorded.recorded("digits_cnn", SETTINGS, tmp_path) == zoo.verify("digits_cnn", **SETTINGS)
    assert recorded.recorded("digits_cnn", {**SETTINGS, "images": 59}, tmp_path) is None
    same = {**SETTINGS, "workers": 1, "device": "cpu", "size": None}
    assert recorded.recorded("digits_cnn", same, tmp_path) is not None


@pytest.mark.parametrize(
    ("name", "file"),
    [("digits_vit", "digits_vit"), ("me/mine", "me--mine"), ("./build/mine", "build--mine"), ("/a/b", "a--b")],
)
def test_a_file_is_called_like_its_model(name, file):
    assert recorded.file_of(name, Path("results")) == Path("results") / f"{file}.json"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}


@pytest.mark.parametrize("written", [1, 3])
def test_a_list_that_was_killed_measures_what_is_missing_and_ends_with_the_same_files(written, tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "MODELS", 1)
    whole = [*verify_list(NAMES, SETTINGS, tmp_path / "whole")]
    if not (child := os.fork()):
        left, write = [None] * written, recorded.write_json
        recorded.write_json = lambda *given: write(*given) if left and not left.pop() else os.kill(os.getpid(), 9)
        [*verify_list(NAMES, SETTINGS, tmp_path / "killed")]
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(files_of(tmp_path / "killed")) == sorted(f"{name}.json" for name in NAMES[:written])
    measured, together = [], recorded.verify_together
    monkeypatch.setattr(
        recorded, "verify_together", lambda names, **how: measured.extend(names) or together(names, **how)
    )

    again = [*verify_list(NAMES, SETTINGS, tmp_path / "killed")]

    assert measured == NAMES[written:]
    assert said(again) == said(whole)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_model_that_cant_be_verified_is_told_and_the_others_go_on(tmp_path):
    refused = {}
    names = ["digits_cnn", "nothing_like_it", "scenes_yolov8"]
    found = [*verify_list(names, SETTINGS, refused=lambda name, error: refused.update({name: error}))]

    assert [each.name for each in found] == ["digits_cnn"]
    assert {name: type(error) for name, error in refused.items()} == {
        "nothing_like_it": UnknownName,
        "scenes_yolov8": DataError,
    }


def copied(place, **data):
    """A repository of digits_cnn whose results say something else of their data."""
    shutil.copytree(catalog.EMBEDDED / "digits_cnn", place)
    said = json.loads((place / "results.json").read_text())
    (place / "results.json").write_text(json.dumps({**said, "data": {**said["data"], **data}}))
    return str(place)


def test_data_that_cannot_be_opened_costs_the_models_that_are_measured_on_it_alone(tmp_path):
    lost, refused = copied(tmp_path / "lost", dataset="nobody/has-this"), {}
    found = [*verify_list([lost, "digits_cnn"], {}, refused=lambda name, error: refused.update({name: str(error)}))]

    assert [each.name for each in found] == ["digits_cnn"]
    assert [*refused] == [lost]
    assert "nobody/has-this" in refused[lost]


def test_results_that_cannot_be_read_are_told_and_kept_and_the_others_go_on(tmp_path):
    (tmp_path / "digits_vit.json").write_text("mine")
    refused = {}
    found = [*verify_list(NAMES[:3], SETTINGS, tmp_path, refused=lambda name, error: refused.update({name: error}))]

    assert [each.name for each in found] == [NAMES[0], NAMES[1]]
    assert [*refused] == ["digits_vit"]
    assert (tmp_path / "digits_vit.json").read_text() == "mine"


def claims_more(model, pictures):
    said = json.loads((model / "results.json").read_text())
    (model / "results.json").write_text(json.dumps({**said, "measured": {**said["measured"], "top1": 1.0}}))


def is_seen_otherwise(model, pictures):
    config = json.loads((model / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 0.5
    (model / "config.json").write_text(json.dumps(config))


def has_another_image(model, pictures):
    shutil.copy(pictures / "test" / "1" / "one.png", pictures / "test" / "1" / "more.png")


@pytest.mark.parametrize("change", [claims_more, is_seen_otherwise, has_another_image, None])
def test_a_model_is_measured_again_when_its_claims_its_preprocessing_or_the_data_are_others(change, tmp_path):
    pictures, results = tmp_path / "pictures", tmp_path / "pictures" / "results"  # which are no data
    for row in dataset("digits", "test", limit=10):
        (pictures / "test" / str(row["label"])).mkdir(parents=True, exist_ok=True)
        (pictures / "test" / str(row["label"]) / "one.png").write_bytes(row["image"]["bytes"])
    model, settings = copied(tmp_path / "mine"), {"data": str(pictures)}
    assert len([*verify_list([model], settings, results)]) == 1
    if change:
        change(Path(model), pictures)

    assert (recorded.recorded(model, settings, results) is None) == (change is not None)


def test_data_on_this_disk_is_looked_at_once_for_a_list(tmp_path, monkeypatch):
    looked, state = [], recorded._state
    monkeypatch.setattr(recorded, "_state", lambda place, but: looked.append(place) or state(place, but))
    for row in dataset("digits", "test", limit=10):
        (folder := tmp_path / "test" / str(row["label"])).mkdir(parents=True, exist_ok=True)
        (folder / "one.png").write_bytes(row["image"]["bytes"])
    names, settings = ["digits_cnn", "digits_cnn_pruned_25"], {"data": str(tmp_path)}

    first = [*verify_list(names, settings, tmp_path / "results")]
    assert (len(first), looked) == (2, [tmp_path])
    assert [*verify_list(names, settings, tmp_path / "results")] == first


def test_two_models_that_would_share_a_file_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "verify_together", lambda *_, **how: pytest.fail("it is measured"))
    with pytest.raises(RepositoryError, match=r"org/mine and \./org/mine would both be written to .*org--mine.json"):
        [*verify_list(["org/mine", "./org/mine"], {}, tmp_path)]


def test_patterns_and_all_mean_models_of_the_list_that_can_be_loaded(run, tmp_path, monkeypatch):
    names = catalog.names
    code, out, _ = run("verify", "digits_vit*", "digits_vit", "--structure", "--json")
    assert (code, [each["name"] for each in json.loads(out)]) == (0, zoo.names("digits_vit*"))
    monkeypatch.setattr(catalog, "names", lambda *_, **how: names("digits_cnn*", **how))
    code, out, _ = run("verify", "--all", "--structure", "--save", str(tmp_path), "--json")
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == sorted(catalog.names())
    assert run("verify", "--all", "--structure", "--save", str(tmp_path), "--json")[:2] == (code, out)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(run, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.verbs.recorded.verify_together", lambda *_, **how: pytest.fail("it is measured"))
    (tmp_path / "file").touch()
    code, out, err = run("verify", "digits_cnn", "--save", str(tmp_path / "file" / "results"))
    assert (code, out) == (1, "")
    assert "results can't be written" in err


def test_what_is_saved_over_the_results_of_this_project_says_all_that_they_say(run, tmp_path):
    ours = Path(__file__).parents[1] / "model_cards" / "results" / "digits_cnn_pruned_25.json"
    saved = tmp_path / ours.name
    saved.write_bytes(ours.read_bytes())
    assert run("verify", "digits_cnn_pruned_25", "--save", str(tmp_path))[0] == 0
    former, found = json.loads(ours.read_text()), json.loads(saved.read_text())

    assert found["data"] == former["data"]
    assert found["measured"].keys() == former["measured"].keys()
    whole = saved.read_bytes()
    code, _, err = run("verify", "digits_cnn_pruned_25", "--structure", "--save", str(tmp_path))
    assert (code, saved.read_bytes()) == (1, whole)
    assert f"{saved} has agreement, kl, top1, which --structure would drop: choose another folder" in err


@pytest.mark.parametrize("words", [(), ("--all", "digits_cnn"), ("nothing*",)])
def test_no_models_are_refused_in_a_line(words, run):
    code, out, err = run("verify", *words)

    assert (code > 0, out) == (True, "")
    assert "--all" in err or "no model that can be loaded fits 'nothing*'; zoo list shows them" in err
