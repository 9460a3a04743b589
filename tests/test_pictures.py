"""The pictures of cards: they are drawn of what is so, say it in words too, and tell what they were drawn from."""

import importlib.util
import io

import pytest
from msgspec import structs
from PIL import Image
from scipy.stats import binomtest
from torch import nn

import zoo
from zoo import catalog
from zoo.catalog.report import Report
from zoo.pages import families, family, style, widths
from zoo.structure.plan import Plan
from zoo.verbs.cards import facts_of

PRUNED = ["digits_cnn_pruned_25", "digits_vit_pruned_50", "scenes_yolov8_pruned_50"]


def facts(name):
    return facts_of(catalog.EMBEDDED / name)


def report(name):
    found = catalog.results(catalog.info(name))
    return Report.from_json(found) if found else None


@pytest.mark.parametrize("name", PRUNED)
def test_the_widths_that_are_drawn_are_those_of_the_model(name):
    (layers,) = facts(name).pictures["widths.png"].values
    modules = dict(zoo.load(name).named_modules())
    dense = dict(zoo.load(catalog.info(name).base.id).named_modules())

    assert len(layers) == sum(isinstance(each, nn.Conv2d | nn.Linear) for each in dense.values())
    for path, count, whole, _ in layers:
        assert (count, whole) == (len(modules[path].weight), len(dense[path].weight))


def test_the_ranks_that_are_drawn_are_those_of_the_model_s_factors():
    (layers,) = facts("digits_vit_lowrank_50").pictures["widths.png"].values
    modules = dict(zoo.load("digits_vit_lowrank_50").named_modules())
    ranks = {path: count for path, count, _, what in layers if what == "rank"}

    assert ranks
    assert ranks == {path: len(modules[path][0].weight) for path in ranks}


def test_what_nobody_cut_has_no_picture_of_widths():
    assert "widths.png" not in facts("digits_cnn").pictures
    assert widths.kept(Plan(), {"fc": "Linear weight=10x64 bias=10"}) == []


def test_rows_of_many_layers_hold_all_of_them_in_order():
    layers = [(f"stages.{n // 9}.conv{n}", 1, 2, "outputs") for n in range(155)]
    rows = widths.rows(layers)

    assert [layer for row in rows for layer in row] == layers
    assert max(map(len, rows)) <= widths.IN_A_ROW * 1.2


@pytest.mark.parametrize(("known", "count"), [(0, 50), (441, 450), (450, 450), (39_875, 50_000)])
def test_an_interval_is_wilson_s_as_scipy_has_it(known, count):
    expected = binomtest(known, count).proportion_ci(method="wilson")

    assert style.interval(known / count, count) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_a_family_s_points_are_those_of_its_entries_reported_ones_apart_from_measured_ones():
    digits = {point[0]: point[1:] for point in family.points(catalog.info("digits_cnn"), report("digits_cnn"))}
    published = {point[0]: point for point in family.points(catalog.info("resnet50d_pruned_25"), None)}

    assert sorted(digits) == catalog.names("digits_cnn*")
    measured = catalog.results(catalog.info("digits_cnn_int8"))["measured"]
    costs = {key: measured[key] for key in ("macs", "params")}
    assert digits["digits_cnn_int8"] == (True, True, measured["top1"], 450, costs)
    assert published["resnet50d_pruned_25"][1:5] == (True, False, 0.7721, 50_000)
    assert published["timm/resnet50d.a3_in1k"][1:5] == (False, False, 0.809, 50_000)
    assert published["timm/resnet50d.a3_in1k"][-1]["macs"] == 174.0 * 1000 * 224 * 224 / 2


def test_accuracies_on_other_images_are_no_points_of_a_family():
    found = report("digits_cnn")
    elsewhere = structs.replace(found, data={**found.data, "sha256": "0" * 64})

    assert [point[0] for point in family.points(catalog.info("digits_cnn"), elsewhere)] == ["digits_cnn"]


def test_a_mean_average_precision_has_no_interval_of_shares():
    assert {point[4] for point in family.points(catalog.info("yolov8n_pruned_43"), None)} == {None}


def test_a_picture_is_opaque_fits_a_card_and_tells_what_it_was_drawn_from():
    for picture in facts("digits_cnn_pruned_25").pictures.values():
        image = Image.open(io.BytesIO(picture.png()))

        assert image.mode == "P"
        assert "transparency" not in image.info
        assert image.width == style.WIDTH * style.DPI
        assert image.info[style.DRAWN_FROM] == picture.drawn_from


def test_what_a_picture_was_drawn_from_is_known_by_its_values_and_its_code():
    one, same, other = (style.Picture("a.png", "", [[1, value]], widths) for value in (2, 2, 3))

    assert one.drawn_from == same.drawn_from != other.drawn_from
    assert one.drawn_from != style.Picture("a.png", "", [[1, 2]], family).drawn_from


def test_several_families_are_drawn_by_name():
    points = family.points(catalog.info("digits_cnn"), report("digits_cnn"))
    figure = families.draw([("digits", "top-1", [("digits_cnn", points)])])

    assert [text.get_text() for text in figure.axes[0].texts] == ["digits_cnn"]


def test_a_saved_model_has_its_pictures_and_its_card_says_what_they_show(tmp_path):
    zoo.save(zoo.load("digits_vit_pruned_50"), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()

    assert (tmp_path / "model" / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert "![Bars of what is left of each of 18 layers; 13 are smaller, blocks.1.mlp.fc1 keeps the least" in card
    assert "(widths.png)" in card


def test_without_matplotlib_a_card_is_good_too(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("zoo.verbs.cards.find_spec", lambda name: None if name == "matplotlib" else find(name))
    zoo.save(zoo.load("digits_vit_pruned_50"), tmp_path / "model")

    assert not [*(tmp_path / "model").glob("*.png")]
    assert ".png" not in (tmp_path / "model" / "README.md").read_text().replace("image.png", "")
