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
from zoo.hub.repository import fingerprint_of
from zoo.pages import classes, families, family, style, widths
from zoo.structure.description import Description, skeleton_of
from zoo.structure.plan import Heads, Narrow, Plan, Swap
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
    assert widths.kept(Plan(), {"fc": "Linear weight=10x64 bias=10"}, {}) == []


def test_what_is_left_of_heads_is_what_the_model_has_however_its_layers_are_called():
    args = {"img_size": 64, "num_classes": 10, "depths": (1, 1, 1, 1)}
    base = zoo.Base("timm/swinv2_cr_tiny_ns_224", args)
    at = "stages.3.blocks.0.attn"
    plan = Plan((Swap({at: "SwinCrAttention"}), Narrow({}, {at: Heads(6, 32)})))
    description = Description("fewer_heads", base, plan)
    shapes = {name: tensor.shape for name, tensor in skeleton_of(description).state_dict().items()}
    layers = widths.kept(plan, fingerprint_of(description), shapes)

    assert {path: (count, whole) for path, count, whole, _ in layers if count < whole} == {
        f"{at}.qkv": (3 * 6 * 32, 3 * 24 * 32),
        f"{at}.meta_mlp.fc2": (6, 24),
    }


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


def test_what_draws_a_picture_is_also_what_its_module_takes_from_others(monkeypatch):
    picture, source = style.Picture("a.png", "", [], families), style.inspect.getsource
    was = picture.drawn_from
    monkeypatch.setattr(style.inspect, "getsource", lambda module: source(module) + "\n" * (module is family))

    assert picture.drawn_from != was  # it has its marks and its legend


def test_several_families_are_drawn_by_name_and_no_name_is_cut_off():
    points = [("small", True, False, 0.7, 50_000, {"macs": 1e6}), ("large", False, False, 0.8, 50_000, {"macs": 1e9})]
    figure = families.draw([("ImageNet-1k", "top-1", [("beit_base_patch16_224", points)])])
    (text,) = figure.axes[0].texts

    assert text.get_text() == "beit_base_patch16_224"
    assert text.get_window_extent().x1 < figure.bbox.x1


def test_a_family_s_line_goes_from_its_dense_model_down_and_past_other_dense_ones():
    points = family.points(catalog.info("fbnetv3_g_pruned_37"), None)
    figure = families.draw([("ImageNet-1k", "top-1", [("fbnetv3_g", points)])])
    line = next(each for each in figure.axes[0].lines if each.get_linestyle() == "-" and len(each.get_xdata()) > 1)
    macs = sorted(point[-1]["macs"] / 1e6 for point in points if point[1])

    assert len({point[0] for point in points if not point[1]}) == 3
    assert [*line.get_xdata()] == [*macs, max(point[-1]["macs"] / 1e6 for point in points)]


def test_a_cost_has_a_panel_where_dense_and_compressed_models_have_it():
    def point(name, compressed, **costs):
        return name, compressed, True, 0.5, 100, costs

    both = [point("a", False, macs=3.0, latency_ms=1.0), point("b", True, macs=2.0), point("c", True, macs=1.0)]
    alike = [point(name, False, latency_ms=1.0) for name in "def"]

    assert family.alt([*both, *alike], "b") == (
        "Accuracy of 6 dense and compressed models of one family against macs of one image, b among them at 50 %."
    )
    assert len(family.draw(both, "b", "top-1").axes) == 1
    assert not family.drawable([*both[:2], *alike])  # of each cost too few, or of one kind alone


def test_what_lost_images_are_taken_for_leaves_room_for_the_picture():
    long = [(f"American Staffordshire terrier {number}", 9) for number in range(3)]
    figure = classes.draw([("tabby", 50, 40, 30, long)])
    figure.draw_without_rendering()

    assert classes.taken(long) == "9 as American Stafford …  terrier 0"
    assert figure.axes[0].bbox.width > 0.3 * figure.bbox.width


def test_a_saved_model_has_its_pictures_and_its_card_says_what_they_show(tmp_path):
    zoo.save(zoo.load("digits_vit_pruned_50"), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()

    assert (tmp_path / "model" / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert "![Bars of what is left of the outputs of 18 convolutions and linear layers: 13 have fewer, blocks.1" in card
    assert "(widths.png)" in card


def test_without_matplotlib_a_card_is_good_too(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("zoo.verbs.cards.find_spec", lambda name: None if name == "matplotlib" else find(name))
    zoo.save(zoo.load("digits_vit_pruned_50"), tmp_path / "model")

    assert not [*(tmp_path / "model").glob("*.png")]
    assert ".png" not in (tmp_path / "model" / "README.md").read_text().replace("image.png", "")
