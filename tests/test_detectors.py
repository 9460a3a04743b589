"""A detector from end to end: what is kept of its outputs, measured, learnt and pruned, on scenes of digits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from zoo.models.heads import detections
from zoo.models.settings import settings_of
from zoo.tasks import TASKS, task_of
from zoo.tasks.datasets import dataset
from zoo.tasks.detection.figures import Detector
from zoo.tasks.detection.precision import coco_precision
from zoo.tasks.evaluation import evaluate
from zoo.training.detection import detector_distil_step, detector_step
from zoo.training.distillation import Distil
from zoo.training.schedule import Schedule
from zoo.training.weighed import Weighed
from zoo.verbs.building import make
from zoo.verbs.measuring import report_of
from zoo.verbs.recipes import at_most
from zoo.verbs.verification import results_of

TINY = {"width": 0.0625, "class_width": 16, "reg_max": 4, "num_classes": 10, "img_size": 64}
KIND = settings_of({"decode": "yolov8", "strides": [4], "reg_max": 4, "resize": "letterbox", "most": 5})
PLAIN = {"hue": 0, "mosaic": 0}
ROOT = Path(__file__).parents[1]

# Importing takes longer than measuring, so each run is forked after it.
SCRIPT = """
import json, os, pathlib, sys
import accelerate, datasets, evaluate as _, faster_coco_eval, torch
from forked import forked
import zoo
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluate
from zoo.tasks.identity import Identified

torch.set_num_threads(1)
model, data = zoo.load(sys.argv[1]), dataset("digit_scenes[:7]", "test")
stream = datasets.IterableDataset.from_generator(lambda: iter(data))
parts = {"rows": [*range(7)]}
shards = datasets.IterableDataset.from_generator(lambda rows: map(data.__getitem__, rows), gen_kwargs=parts)
WAYS = {"table": data, "stream": stream, "shards": shards, "few": data.take(2), "few of a stream": stream.take(2)}

def measured(data):
    seen = Identified(task_of(model).evaluation_transform(model.pretrained_cfg))
    return evaluate(model, task_of(model).loader(data, seen, 2), against=model)

def run(rank, count):
    figures = {name: measured(data) for name, data in WAYS.items()}
    pathlib.Path(sys.argv[1], f"figures{count}_{rank}.json").write_text(json.dumps(figures))

for count in (1, 2, 3):
    children = forked(count, lambda rank: run(rank, count))
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
"""


@pytest.fixture(scope="module")
def model():
    """A detector that finds much, and nothing right."""
    made = zoo.create(zoo.Base("zoo/yolov8n", TINY))
    generator = torch.Generator().manual_seed(0)
    for layer in (part for head in made.heads for part in (head.box[-1], head.classes[-1])):
        torch.nn.init.normal_(layer.weight, std=1.0, generator=generator)
        torch.nn.init.zeros_(layer.bias)
    return made


def loss_of(found):
    return (found.of_batch() if isinstance(found, Weighed) else found).item()


def heads(*found):
    """The head [1, 19, 4, 4] of a detector for 16 px that finds, at a cell, a box of ±4 px and one of 3 classes."""
    head = torch.full((1, 4 * 4 + 3, 4, 4), -30.0)
    for row, column, label, logit in found:
        head[0, 1:16:4, row, column] = 30.0  # a distance of one stride, all four sides
        head[0, 16 + label, row, column] = logit
    return head


def outputs(*found):
    return heads(*found).flatten(1).unsqueeze(2)


DETECTOR = Detector(KIND, [(19, 4, 4)], (16, 16), 3)


def test_boxes_are_kept_in_pixels_of_the_upright_image():
    geometry = torch.tensor([[[0.5, 0.25, 2, 3, 40, 60, 0]]])  # a pixel of the image is half a pixel of the input ...
    rows = DETECTOR.rows(outputs((1, 2, 1, 2.0)), geometry)
    x, y = 4 * 2.5, 4 * 1.5  # the middle of the cell

    expected = [(x - 4 - 2) / 0.5, max(0, (y - 4 - 3) / 0.25), (x + 4 - 2) / 0.5, (y + 4 - 3) / 0.25]
    assert rows["detections"][0, 0].tolist() == pytest.approx([*expected, torch.tensor(2.0).sigmoid().item(), 1])
    assert rows["detections"].shape == (1, 1, 6)
    assert rows["targets"] is geometry


def test_what_lies_beside_the_image_is_kept_as_little_as_predict_gives_it():
    narrow = torch.tensor([[[1.0, 1, 6, 0, 4, 16, 0]]])  # columns 6 to 10 of the input are the image
    beside, within = (1, 3, 0, 2.0), (2, 1, 1, 1.0)  # columns 10 to 18, and 2 to 10
    rows = DETECTOR.rows(outputs(beside, within), narrow)

    assert rows["detections"][0, :, 5].tolist() == [1]
    assert rows["detections"][0, 0, :4].tolist() == pytest.approx([0, 6, 4, 14])


@pytest.mark.parametrize(
    ("found", "others", "share"),
    [
        ([(1, 1, 0, 3.0)], [(1, 1, 0, 1.0)], 1.0),
        ([(1, 1, 0, 3.0)], [(1, 1, 2, 3.0)], 0.0),
        ([(0, 0, 0, 3.0), (3, 3, 1, 3.0)], [(3, 3, 1, 3.0)], 2 / 3),
        ([(1, 1, 0, 3.0)], [(1, 1, 0, -2.0)], 0.0),
        ([], [], 1.0),
    ],
    ids=["one object", "another class", "one of two", "one that isn't sure", "nothing"],
)
def test_detectors_agree_on_what_both_find(found, others, share):
    assert DETECTOR.agreement(outputs(*found), outputs(*others)).tolist() == [pytest.approx(share)]
    assert DETECTOR.agreement(outputs(*others), outputs(*found)).tolist() == [pytest.approx(share)]


def test_it_is_measured_as_one_image_at_a_time_would_be(model):
    data = dataset("digit_scenes[:10]", "test")
    task, settings = task_of(model), settings_of(model.pretrained_cfg["detector"])
    seen = task.evaluation_transform(model.pretrained_cfg)
    alone, truth = [], []
    for row in data:
        image, target = seen.boxed(row["image"], row["label"])
        with torch.no_grad():
            (found,) = detections(model(image[None]), settings, (64, 64))
        boxes = found["boxes"] * 2  # scenes are of 128 px
        alone.append(torch.cat([boxes, found["scores"][:, None], found["labels"][:, None]], 1))
        truth.append(target)
    filled = [torch.nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=-1) for each in (alone, truth)]
    expected = coco_precision(*filled, 10)

    for batch_size in (1, 4):
        measured = report_of(model, "digit_scenes[:10]", batch_size=batch_size)
        assert {key: measured.measured[key] for key in ("map", "map50", "map75")} == pytest.approx(
            {key: expected[key] for key in ("map", "map50", "map75")}, abs=1e-6
        )
        assert measured.data["images"] == 10


def test_a_detector_agrees_with_itself(model):
    batches = task_of(model).loader(
        dataset("digit_scenes[:6]", "test"), task_of(model).evaluation_transform(model.pretrained_cfg), 4
    )
    measured = evaluate(model, batches, against=model)

    assert measured["agreement"] == 1
    assert measured["kl"] == pytest.approx(0, abs=1e-6)


def test_its_task_is_what_its_configuration_says(model, tmp_path):
    assert task_of(model) is TASKS["object-detection"]
    assert task_of(zoo.load(zoo.save(model, tmp_path / "tiny", name="tiny"))) is TASKS["object-detection"]


@pytest.mark.parametrize("alpha", [None, 1.0], ids=["boxes", "a teacher"])
def test_boxes_teach_it_and_a_teacher_does(model, alpha):
    student = zoo.create(zoo.Base("zoo/yolov8n", TINY), seed=1)
    teachers = [] if alpha is None else [model]
    how, step = Distil(alpha=1.0), detector_step
    if teachers:
        step = detector_distil_step(teachers, how, student.pretrained_cfg)
    scenes = dataset("digit_scenes[:16]", "train")
    (batch,) = task_of(model).loader(scenes, task_of(model).evaluation_transform(model.pretrained_cfg), 16)
    before = loss_of(step(student.train(), batch, 0.0))

    zoo.distil(student, teachers, scenes, how=how, schedule=Schedule(epochs=8, batch_size=8, lr=0.01), augment=PLAIN)

    assert loss_of(step(student.train(), batch, 0.0)) < 0.95 * before


def test_a_recipe_makes_one_from_scratch_that_keeps_what_its_heads_mean(tmp_path):
    entry = at_most(zoo.info("scenes_yolov8"), 1)

    folder = make(entry, tmp_path / "scenes_yolov8", "digit_scenes[:16]")

    made, base = zoo.load(folder), zoo.create(entry.base)
    same = ("detector", "mean", "std", "interpolation", "input_size", "task")
    kept, said = ({key: model.pretrained_cfg[key] for key in same} for model in (made, base))
    assert kept == json.loads(json.dumps(said))
    assert results_of(folder).measured["map"] >= 0


def test_it_is_pruned_by_all_its_scales(model):
    smaller = zoo.compress(model, budget=0.5, data="digit_scenes[:8]")

    assert zoo.measure(smaller).macs <= 0.5 * zoo.measure(model).macs
    assert smaller.zoo_entry.task == "object-detection"
    with torch.no_grad():
        shapes = [each.shape for each in smaller(torch.zeros(1, 3, 64, 64))]
        assert shapes == [each.shape for each in model(torch.zeros(1, 3, 64, 64))]


def test_its_average_precision_is_that_of_what_it_predicts(model):
    data = dataset("digit_scenes[:5]", "test")
    settings, made = settings_of(model.pretrained_cfg["detector"]), task_of(model)
    found = zoo.predict(model, [row["image"] for row in data], score=settings.score, iou=settings.iou)
    rows = [torch.cat([each["boxes"], each["scores"][:, None], each["labels"][:, None]], 1) for each in found]
    seen = made.evaluation_transform(model.pretrained_cfg)
    truth = [seen.boxed(row["image"], row["label"])[1] for row in data]
    filled = [torch.nn.utils.rnn.pad_sequence(each, batch_first=True, padding_value=-1) for each in (rows, truth)]
    expected, measured = coco_precision(*filled, 10), evaluate(model, made.loader(data, seen, 2))

    assert {key: measured[key] for key in ("map", "map50", "map75")} == {
        key: expected[key] for key in ("map", "map50", "map75")
    }


def test_several_processes_measure_what_one_does_also_on_a_stream_and_on_fewer_batches_than_they_are(model, tmp_path):
    """On images with different numbers of objects, whose last batch isn't full."""
    folder = zoo.save(model, tmp_path / "tiny", name="tiny")
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = {file.stem: json.loads(file.read_text()) for file in folder.glob("figures*.json")}
    one = figures["figures1_0"]

    assert figures == dict.fromkeys(("figures1_0", *(f"figures{n}_{rank}" for n in (2, 3) for rank in range(n))), one)
    assert one["stream"] == one["shards"] == one["table"]
    assert one["few of a stream"] == one["few"]
    assert [one[name]["images"] for name in ("table", "few")] == [7, 2]
    assert one["table"]["map"] > 0
