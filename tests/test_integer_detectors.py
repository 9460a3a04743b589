"""Detectors as ONNX and as integers: their raw heads are what torch gives, of any batch; boxes are made outside."""

import json

import onnx
import pytest
import torch
from normed import disturbed

import zoo
from zoo.measurement.divergence import leaves
from zoo.models import ssd, yolo3
from zoo.models.mobilenetv1 import mobilenetv1
from zoo.onnx.backend import accelerated
from zoo.onnx.runtime import session
from zoo.structure.graph import integer

NARROW = {"width": 0.0625, "class_width": 16, "reg_max": 4, "num_classes": 3, "img_size": 64}


@pytest.fixture(scope="module", params=["yolov8", "ssd", "yolo3"])
def detector(request):
    """SiLU, ReLU and leaky ReLU; the published widths of SSD and YOLOv3 aren't arguments."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ssd, yolo3):
            patch.setitem(module.BACKBONES, "narrow", lambda **args: mobilenetv1(12, **args))
        patch.setattr(ssd, "FILTERS", (16, 16, 8, 8))
        patch.setattr(ssd, "LEAST", 8)
        patch.setattr(yolo3, "WIDTHS", (8, 16, 32))
        torch.manual_seed(0)
        made = {
            "yolov8": lambda: zoo.create(zoo.Base("zoo/yolov8n", NARROW)),
            "ssd": lambda: ssd.SSD("narrow", "narrow", "voc", 3, img_size=64),
            "yolo3": lambda: yolo3.YOLOv3("narrow", "narrow", "voc", 3, img_size=64),
        }[request.param]()
    return disturbed(made)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(model, pixels):
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (pixels / 255 - mean) / std


def heads(model, images):
    with torch.no_grad():
        return leaves(model(images))


def told(program):
    return {each.key: each.value for each in program.metadata_props}


def test_a_file_gives_the_raw_heads_of_any_batch_and_says_what_they_mean(detector, images, tmp_path):
    file = zoo.export(detector, onnx=tmp_path / "heads.onnx")
    run = session(file.read_bytes(), "heads")
    for batch in normalised(detector, images).split([1, 5]):
        for found, expected in zip(run(None, {"images": batch.numpy()}), heads(detector, batch), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    program = onnx.load(file)
    assert told(program)["task"] == "object-detection"
    assert json.loads(told(program)["detector"]) == json.loads(json.dumps(detector.pretrained_cfg["detector"]))
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in program.graph.output] == ["batch"] * len(
        heads(detector, batch)
    )


def test_heads_of_integers_are_the_same_bytes_however_they_are_computed(detector, images, monkeypatch):
    x = normalised(detector, images)
    small = zoo.compress(detector, data=x, method="integer")
    expected, floats = heads(small, x), heads(detector, x)
    for one, other in zip(expected, floats, strict=True):
        assert (one - other).square().sum() < 0.01 * (other - other.mean()).square().sum()

    def same(found):
        assert all(map(torch.equal, found, expected))

    same([torch.cat(each) for each in zip(*(heads(small, part) for part in x.split(4)), strict=True)])
    same(heads(small, images))
    same(heads(accelerated(small), x))
    monkeypatch.setattr(integer, "_keeps_single", lambda x: False)  # double precision throughout
    same(heads(small, x))
    assert small.pretrained_cfg["detector"] == detector.pretrained_cfg["detector"]
    found = zoo.predict(small, images[0].permute(1, 2, 0).numpy(), score=0.0)[0]
    assert len(found["boxes"]) == len(found["labels"]) > 0
