"""predict of a detector: boxes in pixels of the upright image, in torchvision's form, drawn into copies."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from zoo.catalog.entry import Base
from zoo.cli import main
from zoo.errors import DataError, StructureError
from zoo.structure.description import Description, attach_
from zoo.tasks.detection.predictions import as_rows

SIDE, STRIDE, BINS = 64, 8, 4
NAMES = ("cat", "dog", "bird")


class OneObject(nn.Module):
    """A detector that finds an object of class 1 in every input, at (28, 12) to (44, 36), with a score of 0.8808."""

    def __init__(self, resize="letterbox", row=2):
        super().__init__()
        heads = torch.full((1, 4 * BINS + len(NAMES), SIDE // STRIDE, SIDE // STRIDE), -20.0)
        cell = (row, 4)  # of row 2 the centre is (36, 20)
        for side, strides in enumerate((1, 1, 1, 2)):  # to the left, top, right and bottom
            heads[0, side * BINS + strides, *cell] = 20
        heads[0, 4 * BINS + 1, *cell] = 2
        self.heads = nn.Parameter(heads)
        self.pretrained_cfg = {
            "input_size": (3, SIDE, SIDE),
            "num_classes": len(NAMES),
            "label_names": NAMES,
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
            "detector": {"decode": "yolov8", "strides": [STRIDE], "reg_max": BINS, "resize": resize},
        }
        attach_(self, Description("one_object", Base("zoo/yolov8n"), task="object-detection"))

    def forward(self, images):
        return (self.heads.expand(len(images), -1, -1, -1),)


def image(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


FOUND = {  # resize, width and height of the image → the box in it
    "the input's size": ("letterbox", 64, 64, (28, 12, 44, 36)),
    "twice as large": ("letterbox", 128, 128, (56, 24, 88, 72)),
    "wide: 16 grey rows above and below": ("letterbox", 128, 64, (56, 0, 88, 40)),
    "high: 16 grey columns at both sides": ("letterbox", 32, 64, (12, 12, 28, 36)),
    "stretched": ("stretch", 128, 32, (56, 6, 88, 18)),
}


@pytest.mark.parametrize("name", FOUND)
def test_boxes_are_in_pixels_of_the_image(name):
    resize, width, height, box = FOUND[name]
    found = zoo.predict(OneObject(resize), image(width, height))

    assert len(found) == 1
    assert found[0].keys() == {"boxes", "scores", "labels"}
    torch.testing.assert_close(found[0]["boxes"], torch.tensor([box]).float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[0]["scores"], torch.tensor([2.0]).sigmoid())
    assert found[0]["labels"].tolist() == [1]


def test_what_lies_in_the_grey_around_an_image_is_nothing():
    model = OneObject(row=0)  # (28, -4) to (44, 20)

    assert len(zoo.predict(model, image(64, 64))[0]["boxes"]) == 1
    assert zoo.predict(model, image(64, 16))[0]["boxes"].shape == (0, 4)  # rows 24 to 40


def test_an_image_of_one_column_has_boxes_within_it():
    boxes = zoo.predict(OneObject(), image(1, 4000))[0]["boxes"]
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 750, 1, 2250]]), atol=1e-3, rtol=0)


def test_a_box_in_a_turned_photograph_is_one_of_the_upright_image(tmp_path):
    upright, exif = image(128, 64), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)

    assert zoo.predict(OneObject(), tmp_path / "turned.png")[0]["boxes"].tolist() == [[56, 0, 88, 40]]


def test_images_of_mixed_sizes_and_kinds_have_each_its_boxes(tmp_path):
    image(128, 64).save(tmp_path / "wide.png")
    mixed = [tmp_path / "wide.png", np.asarray(image(128, 128)), torch.zeros(3, 64, 32), Image.new("L", (64, 64))]
    found = zoo.predict(OneObject(), mixed)

    assert [each["boxes"].round().tolist() for each in found] == [
        [[56, 0, 88, 40]],
        [[56, 24, 88, 72]],
        [[12, 12, 28, 36]],
        [[28, 12, 44, 36]],
    ]


def test_less_sure_objects_are_given_when_asked_for():
    assert len(zoo.predict(OneObject(), image(64, 64), score=0.9)[0]["boxes"]) == 0
    assert zoo.predict(OneObject(), image(64, 64), score=0.9)[0]["boxes"].shape == (0, 4)
    assert len(zoo.predict(OneObject(), image(64, 64), score=0.0)[0]["boxes"]) > 1


def test_rows_are_label_score_and_box():
    row = as_rows(zoo.predict(OneObject(), image(64, 64))[0])

    torch.testing.assert_close(row, torch.tensor([[1, torch.tensor(2.0).sigmoid(), 28, 12, 44, 36]]))


FAULTS = {
    "a head that is no number": (lambda model: model.heads.data.fill_(torch.nan), {}, DataError, "isn't finite"),
    "no settings": (lambda model: model.pretrained_cfg.pop("detector"), {}, StructureError, "has no 'detector'"),
    "an option of classifiers": (lambda model: None, {"top": 3}, StructureError, "which knows score, iou"),
    "a score above 1": (lambda model: None, {"score": 1.5}, StructureError, "predict: score is 1.5"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_means_nothing_is_said_in_one_line(name):
    spoil, options, kind, said = FAULTS[name]
    model = OneObject()
    spoil(model)
    with pytest.raises(kind, match=said):
        zoo.predict(model, image(64, 64), **options)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The folder of a small detector that takes everything for its first class."""
    model = zoo.create(Base("zoo/yolov8n", {"num_classes": 2, "img_size": 64, "width": 0.125}))
    with torch.no_grad():
        for head in model.heads:
            head.classes[-1].bias[0] = 4
    folder = tmp_path_factory.mktemp("detector") / "small"
    return zoo.save(model, folder, name="small")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    return end.value.code, *capsys.readouterr()


def test_a_loaded_detector_predicts_and_so_does_its_copy(detector):
    model = zoo.load(detector)
    found, again = model.predict(image(90, 60)), copy.deepcopy(model).predict(image(90, 60))

    assert len(found[0]["boxes"]) > 0
    assert all(torch.equal(found[0][key], again[0][key]) for key in ("boxes", "scores", "labels"))
    assert (found[0]["boxes"] <= torch.tensor([90, 60, 90, 60])).all()


def test_the_command_prints_objects_and_draws_them_into_copies(detector, tmp_path, capsys):
    for name in ("one.jpg", "two.png"):
        image(90, 60).save(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run(capsys, detector, tmp_path, "--out", tmp_path / "drawn")
    found = zoo.load(detector).predict([tmp_path / "one.jpg", tmp_path / "two.png"])

    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if line.strip().startswith(str(tmp_path / "one.jpg"))]
    assert len(lines) == len(found[0]["boxes"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["one.png", "two.png"]
    drawn, plain = np.asarray(Image.open(tmp_path / "drawn" / "two.png")), np.asarray(image(90, 60))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_the_command_prints_boxes_as_json(detector, tmp_path, capsys):
    image(90, 60).save(tmp_path / "one.png")
    code, out, _ = run(capsys, detector, tmp_path / "one.png", "--json", "--score", "0.5")
    found = zoo.load(detector).predict(tmp_path / "one.png", score=0.5)[0]
    (told,) = json.loads(out)

    assert code == 0
    assert told["boxes"] == found["boxes"].tolist()
    assert told["names"] == ["0"] * len(told["boxes"])


def test_an_image_in_which_nothing_is_found_is_said_and_copied_as_it_is(detector, tmp_path, capsys):
    image(90, 60).save(tmp_path / "one.png")
    code, out, _ = run(capsys, detector, tmp_path / "one.png", "--score", "1", "--out", tmp_path / "drawn")

    assert code == 0
    assert "nothing" in out
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "drawn" / "one.png")), np.asarray(image(90, 60)))
