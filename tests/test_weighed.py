"""A detector's gradients are those of the whole batch, however many parts and processes it is seen in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zoo.structure.description import OTHER_TASK
from zoo.training import steps_of, trainer
from zoo.training.detection import detector_distil_step, detector_step
from zoo.training.distillation import Distil
from zoo.training.schedule import Machine, Schedule
from zoo.training.trainer import train
from zoo.training.weighed import Weighed

ROOT = Path(__file__).parents[1]
KINDS = {
    "yolov8": {"decode": "yolov8", "strides": [4], "reg_max": 4, "resize": "stretch"},
    "ssd": {
        "decode": "ssd",
        "steps": [4],
        "sizes": [8, 12],
        "ratios": [[1, 2]],
        "variances": [0.1, 0.1, 0.2, 0.2],
        "resize": "stretch",
    },
    "yolo3": {"decode": "yolo3", "strides": [4], "anchors": [[[6, 8], [10, 9], [12, 12]]], "resize": "stretch"},
}
CHANNELS = {"yolov8": 4 * 4 + 3, "ssd": 3 * (5 + 3), "yolo3": 3 * (5 + 3)}
WAYS = ("boxes", "a teacher")


class Tiny(torch.nn.Sequential):
    """A detector of images of 16 px, of 3 classes."""

    def __init__(self, kind, seed=0):
        torch.manual_seed(seed)
        super().__init__(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.GELU(), torch.nn.Conv2d(8, CHANNELS[kind], 3, padding=1))
        self.double()
        config = {"input_size": [3, 16, 16], "mean": [0.0] * 3, "std": [1.0] * 3, "num_classes": 3}
        self.pretrained_cfg = {**config, "detector": KINDS[kind]}

    def forward(self, images):
        return [super().forward(images.double())]


def scenes():
    """Eight images and targets, in each image more objects than in the one before; none in the first two."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 8, (8, 7, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(3, 9, (8, 7, 2), generator=generator)], 2).float()
    labels = torch.randint(0, 3, (8, 7, 1), generator=generator)
    objects = torch.cat([boxes, labels, torch.zeros(8, 7, 2)], 2)
    objects[torch.arange(7) >= (torch.arange(8)[:, None] - 1)] = -1
    first = torch.tensor([1.0, 1, 0, 0, 16, 16, 0]).expand(8, 1, 7)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.cat([first, objects], 1)


def batches(epoch):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*scenes()), 8)


def gradients(kind, way, machine=None, step=None):
    """What one step of a training would go along."""
    student, found = Tiny(kind), {}
    taught = detector_distil_step([Tiny(kind, 1)], Distil(alpha=0.5), student.pretrained_cfg)
    step = step or (detector_step if way == "boxes" else taught)
    update = trainer._update_

    def noted(accelerator, wrapped, *others):
        found.update({name: each.grad.clone() for name, each in student.named_parameters()})
        update(accelerator, wrapped, *others)

    trainer._update_ = noted
    try:
        train(student, step, batches, Schedule(1, batch_size=8), machine=machine)
    finally:
        trainer._update_ = update
    return found


def whole(kind, way):
    """The gradients of all eight images at once, without the loop."""
    student, batch = Tiny(kind), scenes()
    taught = detector_distil_step([Tiny(kind, 1)], Distil(alpha=0.5), student.pretrained_cfg)
    (detector_step if way == "boxes" else taught)(student, batch, 0.0).of_batch().backward()
    return {name: each.grad for name, each in student.named_parameters()}


def apart(found, expected):
    return max(((found[name] - each).abs().max() / each.abs().max()).item() for name, each in expected.items())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_parts_is_the_whole_batch(kind, way):
    expected = whole(kind, way)
    for parts in (1, 3, 4):
        assert apart(gradients(kind, way, Machine(accumulation=parts)), expected) < 1e-6


@pytest.mark.parametrize("kind", ["yolov8", "ssd"])
def test_the_mean_of_its_parts_is_another(kind):
    def mean(model, batch, progress):
        return detector_step(model, batch, progress).of_batch()

    assert apart(gradients(kind, "boxes", Machine(accumulation=4), mean), whole(kind, "boxes")) > 0.01


def test_outputs_that_are_no_logits_are_learned_alike_in_parts_of_any_size():
    student, teacher, (images, _) = Tiny("yolov8"), Tiny("yolov8", 1), scenes()
    y, t = student(images)[0].flatten(1), teacher(images)[0].detach().flatten(1)
    ((y - t).square().sum(1) / t.square().sum(1)).mean().backward()
    expected = {name: each.grad for name, each in student.named_parameters()}
    step = steps_of(OTHER_TASK).distil([teacher], Distil())

    for parts in (1, 3, 8):
        assert apart(gradients("yolov8", "a teacher", Machine(accumulation=parts), step), expected) < 1e-5


def test_a_part_that_is_seen_twice_draws_the_same_and_leaves_running_statistics_as_one_that_is_seen_once():
    seen, plain, norms = [], [], []
    for noted, weighed in ((seen, True), (plain, False)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5), torch.nn.Flatten())

        def step(model, batch, progress, noted=noted, weighed=weighed):
            outputs = model(batch[0])
            noted.append((torch.is_grad_enabled(), outputs.detach()))
            return Weighed(outputs.sum(), torch.tensor(2.0)) if weighed else outputs.mean()

        train(model, step, batches, Schedule(1, batch_size=8, lr=0.0), machine=Machine(accumulation=4))
        norms.append(model[0])

    assert [with_gradients for with_gradients, _ in seen] == [True, False, False, False, True, True, True]
    again = [outputs for _, outputs in (seen[0], *seen[4:])]
    assert all(torch.equal(*pair) for pair in zip(again, [outputs for _, outputs in plain], strict=True))
    assert all(torch.equal(outputs, more) for (_, outputs), more in zip(seen[1:4], again[1:], strict=True))
    assert norms[0].num_batches_tracked == 4
    assert torch.equal(norms[0].running_var, norms[1].running_var)


# Importing takes longer than a step, so each process is forked after it.
SCRIPT = """
import os, pathlib, sys
import torch
from safetensors.torch import save_file
from forked import forked
from test_weighed import WAYS, gradients
from zoo.training.schedule import Machine

torch.set_num_threads(1)

def run(rank):
    for way in WAYS:
        for parts in (1, 2):
            path = pathlib.Path(sys.argv[1], f"{way} {parts} {rank}")
            save_file(gradients("yolov8", way, Machine(accumulation=parts)), path)

assert [os.waitpid(child, 0)[1] for child in forked(2, run)] == [0, 0]
"""


def test_a_batch_that_two_processes_share_is_the_whole_batch_also_where_one_has_hardly_an_object(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for way in WAYS:
        expected = whole("yolov8", way)
        for parts in (1, 2):
            for rank in (0, 1):
                assert apart(load_file(tmp_path / f"{way} {parts} {rank}"), expected) < 1e-6
