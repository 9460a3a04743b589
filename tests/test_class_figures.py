"""What a detector is good for class by class: measured, kept, verified, and beside its base's on a card."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.catalog.entry import own
from zoo.catalog.report import Report
from zoo.cli.verifying import verify
from zoo.errors import RepositoryError
from zoo.files import read_json
from zoo.pages.card import render
from zoo.structure.description import Description
from zoo.tasks.datasets import dataset
from zoo.verbs.measuring import report_of
from zoo.verbs.verification import results_of

DATA = "digit_scenes[:3]"
TINY = {"width": 0.0625, "class_width": 16, "reg_max": 4, "num_classes": 11, "img_size": 64}
NAMES = [*"0123456789", "no digit"]
HERE = {"dataset": "digit_scenes", "split": "test", "images": 9}
TASK = "object-detection"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A detector of eleven classes, some of which three scenes have."""
    model = zoo.create(zoo.Base("zoo/yolov8n", TINY))
    for head in model.heads:
        torch.nn.init.zeros_(head.classes[-1].bias)
    return zoo.save(model, tmp_path_factory.mktemp("saved") / "tiny", name="tiny", labels=NAMES, data=DATA)


@pytest.fixture
def changed(saved, tmp_path):
    """A function that verifies it after its results were changed: function of the classes → verification."""

    def verified(change, **options):
        folder = shutil.copytree(saved, tmp_path / "tiny")
        results = read_json(folder / "results.json")
        change(results["classes"])
        (folder / "results.json").write_text(json.dumps(results))
        return zoo.verify(folder, **options)

    return verified


def test_each_class_has_its_objects_counted_and_one_without_any_has_no_figure(saved):
    labels = [label for row in dataset(DATA, "test") for label in row["label"]["labels"]]
    classes = results_of(saved).classes
    assert [*classes] == NAMES
    assert [each["objects"] for each in classes.values()] == [labels.count(number) for number in range(11)]
    assert classes["no digit"] == {"objects": 0}
    assert all(each.keys() == {"objects", "map", "map50"} for each in classes.values() if each["objects"])
    measured = [each["map"] for each in classes.values() if each["objects"]]
    assert sum(measured) / len(measured) == pytest.approx(results_of(saved).measured["map"])


def test_names_that_dont_tell_classes_apart_give_way_to_numbers(saved):
    model = zoo.load(saved)
    model.pretrained_cfg["label_names"] = ["digit"] * 11
    assert [*report_of(model, DATA, labels=NAMES).classes] == [*map(str, range(11))]


def test_each_class_is_verified(saved, capsys):
    verify.main([str(saved)], standalone_mode=False)
    out = capsys.readouterr().out
    named = next(line.split() for line in out.splitlines() if line.split()[:2] == ["no", "digit"])
    assert named == ["no", "digit", "0", "-", "-", "-", "-", "-"]
    verify.main([str(saved), "--json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["report"]["classes"] == results_of(saved).classes
    rows = [row for row in found["rows"] if row["of"]]
    there = [name for name, each in results_of(saved).classes.items() if each["objects"]]
    assert [(row["of"], row["figure"]) for row in rows] == [(n, f) for n in there for f in ("map", "map50")]
    assert {row["verdict"] for row in rows} == {"agrees"}


def _first(classes):
    return next(each for each in classes.values() if each["objects"])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda classes: _first(classes).update(map=3 / _first(classes)["objects"]), "differs"),
        (lambda classes: classes.update(ghost={"objects": 5, "map": 0.5}), "not measured"),
        (lambda classes: classes["no digit"].update(map50=0.5), "not measured"),
        (dict.clear, "measured"),  # as in results of before
    ],
    ids=["other", "of no class", "of a class without objects", "none"],
)
def test_a_claim_of_a_class_is_judged_as_any(changed, change, verdict):
    found = changed(change)
    rows = [row for row in found.rows if row.of]
    assert verdict in {row.verdict for row in rows}
    assert found.passed == (verdict == "measured")


def test_on_other_images_claims_of_classes_are_shown_and_not_judged(changed):
    found = changed(lambda classes: _first(classes).update(map=0.9), data="digit_scenes[:2]")
    rows = [row for row in found.rows if row.of]
    assert rows
    assert {row.verdict for row in rows} <= {"other images", "measured"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": {f"f{n}": 0 for n in range(11)}}, "classes.a is .*, expected a table of at most 10"),
        ({"a" * 1001: {}}, "expected text of at most 1,000 characters"),
        ({"a": {"map": float("nan")}}, "classes.a.map is nan, expected a finite number"),
        ([], "classes is a list|classes is \\[\\], expected a table"),
    ],
    ids=["figures", "name", "nan", "list"],
)
def test_what_results_say_of_classes_is_bounded(classes, message):
    with pytest.raises(RepositoryError, match=message):
        Report.from_json({"schema": 1, "name": "it", "measured": {}, "classes": classes})


def test_results_without_classes_are_such_as_earlier_versions_read():
    assert "classes" not in Report("it", {"params": 1}).to_json()


def card(classes, dense=None, data=HERE):
    description = Description("tiny", zoo.Base("zoo/yolov8n", TINY), task=TASK)
    base = None if dense is None else Report("dense", {"map": 0.6}, data, classes=dense)
    report = Report("tiny", {"map": 0.5}, HERE, classes=classes)
    return render(own("tiny", "yolov8n", TASK), description, report, {}, base)


CAR = {"objects": 1200, "map": 0.25, "map50": 0.5}


def test_a_card_has_each_class_beside_the_base_on_the_same_images_alone():
    classes, dense = {"car": CAR, "a|b<c": {"objects": 0}}, {"car": {**CAR, "map": 0.75}, "a|b<c": {"objects": 0}}
    assert (
        "| class | objects | mAP 50-95, % | base | against it | mAP 50, % | base | against it |\n"
        "|:--|--:|--:|--:|--:|--:|--:|--:|\n"
        "| car | 1,200 | 25.00 | 75.00 | -50.00 | 50.00 | 50.00 | +0.00 |\n"
        "| a\\|b&lt;c | 0 | - | - | - | - | - | - |\n"
    ) in card(classes, dense)
    alone = "| class | objects | mAP 50-95, % | mAP 50, % |\n|:--|--:|--:|--:|\n| car | 1,200 | 25.00 | 50.00 |\n"
    assert alone in card(classes)
    assert alone in card(classes, dense, {**HERE, "images": 8})
    assert "<details>" not in card(classes)
    assert "| class |" not in card({})


def test_every_share_is_in_percent_and_beside_the_base_on_the_same_images_alone():
    for data, beside in ((HERE, "| 60.00 % | -20.00 points |"), ({**HERE, "images": 8}, "|  |  |")):
        base = Report("dense", {"map": 0.7, "map50": 0.6}, data)
        description = Description("tiny", zoo.Base("zoo/yolov8n", TINY), task=TASK)
        report = Report("tiny", {"map": 0.5, "map50": 0.4}, HERE)
        assert f"| mAP 50 | 40.00 % {beside}" in render(own("tiny", "yolov8n", TASK), description, report, {}, base)


def test_of_many_classes_a_card_shows_those_that_fell_farthest_below_the_base():
    classes = {f"class {n}": {**CAR, "map": n / 1000} for n in range(150)}
    shown = card(classes)
    assert "<summary>Of its 150 classes the 100 that are found worst; results.json has all</summary>" in shown
    assert "| class 99 |" in shown
    assert "| class 100 |" not in shown
    dense = {name: {**CAR, "map": 0.2 if name == "class 149" else 0.0} for name in classes}
    shown = card(classes, dense)
    assert "the 100 that are found farthest below the base;" in shown
    assert shown.index("| class 98 |") < shown.index("| class 149 |")
    assert "| class 99 |" not in shown
    assert "<summary>Each of its 20 classes</summary>" in card(dict([*classes.items()][:20]))


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit", "digits_cnn_int8"])
def test_the_bytes_of_the_weights_are_those_of_the_tensors_in_the_file(name, tmp_path):
    folder = zoo.save(zoo.load(name), tmp_path / "it")
    held = sum(each.nbytes for each in load_file(folder / "model.safetensors").values())
    assert results_of(folder).measured["weights_bytes"] == held
    assert f"({held:,})" in (folder / "README.md").read_text()
    half = None if name.endswith("int8") else zoo.verify(folder, structure_only=True, dtype=torch.float16)
    assert zoo.verify(folder, structure_only=True).passed
    assert half is None or {row.figure: row.verdict for row in half.rows}["weights_bytes"] == "in float16"


def test_a_model_of_integers_has_about_a_quarter_of_the_bytes():
    floats, integers = (
        report_of(zoo.load(name)).measured["weights_bytes"] for name in ("digits_cnn", "digits_cnn_int8")
    )
    assert 0.24 < integers / floats < 0.3
