"""Detectors are bases as classifiers are: created, described, cut, saved and loaded, with what their heads mean."""

import json
from dataclasses import replace

import onnxruntime
import pytest
import torch

import zoo
from zoo.errors import RepositoryError, StructureError
from zoo.hub.repository import rebuild, write_repository
from zoo.measurement.conventions import torch_dag
from zoo.models.heads import check_detector
from zoo.models.settings import settings_of
from zoo.models.yolov8 import C2f
from zoo.structure.describing import described
from zoo.structure.description import attach_, config_of
from zoo.verbs.coverage import coverage

TINY = zoo.Base("zoo/yolov8n", {"width": 0.125, "class_width": 32, "reg_max": 4, "num_classes": 10, "img_size": 64})
BASES = [TINY, "zoo/ssd_512_mobilenet1_0_voc", "zoo/yolo3_mobilenet1_0_coco"]


def saved(model, folder):
    write_repository(folder, model, model.zoo_entry, {})
    return folder


def images(model, count=2):
    return torch.randn(count, *config_of(model)["input_size"], generator=torch.Generator().manual_seed(0))


def same(one, other, x):
    with torch.no_grad():
        return all(map(torch.equal, one(x), other(x)))


@pytest.mark.parametrize("base", BASES, ids=str)
def test_a_detector_is_created_saved_and_loaded_with_its_task_and_settings(base, tmp_path):
    model = zoo.create(base)
    again = rebuild(saved(model, tmp_path / "mine"))
    assert again.zoo_entry.task == model.zoo_entry.task == "object-detection"
    assert again.zoo_entry.base == (base if isinstance(base, zoo.Base) else zoo.Base(base))
    assert again.pretrained_cfg["num_classes"] == model.num_classes
    assert len(again.pretrained_cfg.get("label_names", ())) in (0, model.num_classes)
    check_detector(again)
    assert same(again, model, images(model, 1))


def test_a_detector_in_memory_is_described_by_its_base_and_arguments():
    model = zoo.create("zoo/yolov8n")
    model.zoo_entry = None
    _, description = described(model.double())
    assert (description.base, description.task) == (zoo.Base("zoo/yolov8n"), "object-detection")


class Own(torch.nn.Module):
    """A detector of somebody's: two heads of 4 · 2 + 3 channels, of strides 8 and 16."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = torch.nn.Conv2d(3, 8, 8, 8), C2f(8, 11, 1, True)
        self.second = torch.nn.Conv2d(11, 11, 2, 2)
        detector = {"decode": "yolov8", "strides": [8, 16], "reg_max": 2, "resize": "stretch"}
        self.pretrained_cfg = {"task": "object-detection", "num_classes": 3, "detector": detector}

    def forward(self, x):
        x = self.first(self.stem(x))
        return x, self.second(x)


def test_a_detector_that_no_source_builds_becomes_a_graph_which_is_a_detector_too(tmp_path):
    made, description = described(Own(), example=(3, 32, 32))
    assert description.graph is not None
    assert description.task == "object-detection"
    again = rebuild(saved(made, tmp_path / "own"))
    check_detector(again)
    assert same(again, made, images(again))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"reg_max": 5}, StructureError, "head 0 of the model is 26x8x8, .* expects 30x8x8 of yolov8 with 10 classes"),
        ({"strides": []}, RepositoryError, r"config\.json: pretrained_cfg\.detector\.strides is \[\], expected a list"),
        (
            {"decode": "mine"},
            RepositoryError,
            r"pretrained_cfg\.detector: unknown decode 'mine', known are yolov8, ssd",
        ),
        ({"most": 10**9}, RepositoryError, r"detector\.most is 1000000000, expected a whole number from 1 to 10,000"),
    ],
    ids=str,
)
def test_settings_that_dont_fit_are_refused_when_a_repository_is_loaded(changed, error, message, tmp_path):
    folder = saved(zoo.create(TINY), tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["detector"] |= changed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message) as caught:
        rebuild(folder)
    assert "\n" not in str(caught.value)


def test_every_channel_of_a_yolov8_but_its_outputs_can_be_cut_and_a_plan_says_how():
    found = coverage(zoo.create(TINY))
    assert (found.groups, found.prunable, found.structure) == (59, 1.0, "plan")
    assert found.frozen == {
        f"heads.{i}.{branch}.2": "an output of the model" for i in range(3) for branch in ("box", "classes")
    }
    assert found.off < 1e-12
    assert found.kept <= 0.5


def test_another_number_of_classes_is_loaded_and_saved_again(tmp_path):
    model = zoo.load(saved(zoo.create(TINY), tmp_path / "ten"), num_classes=3)
    assert model.zoo_entry.base.args["num_classes"] == 3
    check_detector(model)
    again = rebuild(saved(model, tmp_path / "three"))
    assert same(again, model, images(model))


def test_a_published_pruned_detector_stands_in_with_its_figures_and_settings(caplog):
    model = zoo.create("yolov8n_pruned_43")
    assert torch_dag(model) == pytest.approx(9.2, abs=0.05)
    assert model.zoo_entry.task == "object-detection"
    assert model.pretrained_cfg["label_names"][-1] == "toothbrush"
    check_detector(model)


def test_what_carries_another_task_keeps_it():
    model = zoo.create(TINY)
    attach_(model, replace(model.zoo_entry, task="image-feature-extraction"))
    assert model.zoo_entry.task == "image-feature-extraction"


def test_an_onnx_file_gives_the_raw_heads_and_says_what_they_mean(tmp_path):
    model = Own().eval()
    file = zoo.export(model, onnx=tmp_path / "own.onnx", example=(3, 32, 32))
    session, x = onnxruntime.InferenceSession(file), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        for found, expected in zip(session.run(None, {"images": x.numpy()}), model(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map
    assert told["task"] == "object-detection"
    assert settings_of(json.loads(told["detector"])) == settings_of(model.pretrained_cfg["detector"])
