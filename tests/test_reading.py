"""How data is read, what is left out and how classes are mapped, is part of all that is made and said of it."""

import json

import pytest
from datasets import ClassLabel
from msgspec.structs import replace
from photographs import NAMES, write_classes

import zoo
from zoo.catalog.entry import Budget
from zoo.catalog.report import MAX_LABELS, Report
from zoo.errors import DataError, RepositoryError
from zoo.files import write_json
from zoo.tasks.datasets import dataset
from zoo.training.schedule import Schedule
from zoo.verbs.building import make
from zoo.verbs.measuring import report_of
from zoo.verbs.recipes import plain, read_as, recipe_for
from zoo.verbs.verification import results_of

DIGITS = [str(digit) for digit in range(10)]
OTHERS = {"meadow": "3", "sea": 7}


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """An entry whose classes are read in reverse order, and its repository."""
    entry = recipe_for("digits_cnn", "prune", Budget(0.9), "digits[:40]", 0, {"criterion": "l2", "ridge": 1.0})
    entry = read_as(entry, labels=DIGITS[::-1])
    return entry, make(entry, tmp_path_factory.mktemp("made") / "model")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A folder of 64 photographs, of which one of the test split can't be decoded."""
    folder = write_classes(tmp_path_factory.mktemp("data") / "photographs")
    path = folder / "test" / NAMES[0] / "03.jpg"
    path.write_bytes(path.read_bytes()[:700])
    return str(folder)


@pytest.mark.parametrize("way", [{"labels": DIGITS}, {"skip_damaged": True}])
def test_what_was_made_of_data_read_otherwise_is_not_taken_for_made(mistaken, way):
    entry, folder = mistaken
    lines = []
    assert make(entry, folder, say=lines.append) == folder
    assert lines == [f"made already: {folder}"]
    with pytest.raises(RepositoryError, match="made by another recipe"):
        make(read_as(entry, **way), folder)


def test_recipes_that_say_nothing_of_it_are_written_as_before(mistaken):
    recipe = replace(mistaken[0].recipe, labels=None)
    assert plain(recipe).keys() == {"method", "budget", "options", "data", "schedule"}


def test_results_say_how_the_data_was_read_and_verify_reads_it_so(mistaken):
    _, folder = mistaken
    results = results_of(folder)

    assert results.data["labels"] == DIGITS[::-1]
    assert results.measured["top1"] < 0.2  # as the classes are mistaken
    assert zoo.verify(folder).passed
    assert not zoo.verify(folder, labels=DIGITS).passed


def test_images_that_were_left_out_are_counted_in_the_results_and_left_out_by_verify(spoiled, tmp_path):
    model = zoo.load("digits_cnn")
    report = report_of(model, spoiled, skip_damaged=True, labels=OTHERS)
    folder = zoo.save(model, tmp_path / "model", report=report)

    data = json.loads((folder / "results.json").read_text())["data"]
    assert {key: data[key] for key in ("skip_damaged", "left_out", "images", "labels")} == {
        "skip_damaged": True,
        "left_out": 1,
        "images": 63,
        "labels": OTHERS,
    }
    assert zoo.verify(folder, data=spoiled).passed
    elsewhere = zoo.verify(folder, data="digits", images=8)  # other data, of other classes, is read as it is
    assert elsewhere.report.measured["top1"] > 0.8
    assert not elsewhere.passed


BOUNDS = {
    "a count": ({"skip_damaged": 1}, "data.skip_damaged is 1, expected true or false"),
    "text": ({"labels": "cat"}, "data.labels is 'cat', expected a table of at most 200,000 or a list"),
    "too many": ({"labels": [""] * (MAX_LABELS + 1)}, "data.labels is .*, expected a list of at most 200,000"),
    "numbers for names": ({"labels": [1]}, r"data.labels\[0\] is 1, expected text of at most 1,000 characters"),
    "objects for names": (
        {"labels": {"cat": {}}},
        r"labels.cat is {}, expected text of .* characters or a whole number",
    ),
    "a long name": (
        {"labels": {"cat": "x" * 1_001}},
        r"labels.cat is 'x+\.{3}x+', expected text of at most 1,000 char",
    ),
    "a long class": (
        {"labels": {"x" * 1_001: "cat"}},
        r"labels has the key 'x+\.{3}x+', expected text of at most 1,000",
    ),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_what_a_repository_says_of_it_is_bounded(case, tmp_path):
    said, message = BOUNDS[case]
    write_json(tmp_path / "results.json", Report("its", {}, data=said).to_json())
    with pytest.raises(RepositoryError, match=message):
        results_of(tmp_path)


def _named(names, count=8):
    rows = dataset("digits", "train").select(range(count))
    return rows.cast_column("label", ClassLabel(names=names))


READ = {
    "labels": (("digits[:8]", {"labels": DIGITS}), ("digits[:8]", {"labels": DIGITS[::-1]})),
    "a mapping": ((_named(DIGITS), {}), (_named(DIGITS), {"labels": {"1": "2", "2": "1"}})),
    "names": ((_named(DIGITS[::-1]), {}), (_named(DIGITS[1::-1] + DIGITS[:1:-1]), {})),
    "damaged images": (("digits[:8]", {}), ("digits[:8]", {"skip_damaged": True})),
}


@pytest.mark.parametrize("case", READ)
def test_a_state_of_data_read_otherwise_is_refused(case, tmp_path):
    (data, way), (other, another) = READ[case]
    short = {"schedule": Schedule(epochs=1, batch_size=4), "state": tmp_path / "state"}

    def student():
        model = zoo.load("digits_cnn_pruned_25")
        model.pretrained_cfg = {**model.pretrained_cfg, "label_names": DIGITS}
        return model

    zoo.distil(student(), [], data, **way, **short)
    zoo.distil(student(), [], data, **way, **short)
    with pytest.raises(DataError, match="state belongs to another run"):
        zoo.distil(student(), [], other, **another, **short)
