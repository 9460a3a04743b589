"""The training loop: what it minimises, and that a run killed at any moment ends in the same weights."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from zoo.errors import DataError, StorageError
from zoo.training import masks
from zoo.training.hierarchy import Distil, distil_step, task_step, teacher_at
from zoo.training.losses import distillation, kl
from zoo.training.trainer import Schedule, learning_rate, train

ROOT = Path(__file__).parents[1]
STEPS = 24

# Real training of a network with batch norm and dropout on a slice of digits, as a script: it writes its weights, its
# progress, and, in several processes, which images each of them saw.
SCRIPT = f"""
import sys, time, pathlib, torch, warnings
from torch import nn
from safetensors.torch import save_file
from zoo.tasks.classification import loader, training_transform
from zoo.tasks.datasets import dataset
from zoo.training.hierarchy import task_step
from zoo.training.trainer import Schedule, train

folder, rank, workers, slow = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
                      nn.Linear(8 * 14 * 14, 10))
grey = {{"input_size": [1, 16, 16], "mean": [0.3], "std": [0.35], "interpolation": "bilinear", "crop_pct": 1.0}}
images = dataset("digits", "train", limit=16 * 8)
transform = training_transform(grey, {{"scale": [0.6, 1.0], "hflip": 0.0, "color_jitter": 0.0}})
seen = []

def step(model, batch, progress):
    import accelerate
    rank = accelerate.PartialState().process_index
    with (folder / f"steps{{rank}}").open("a") as file:
        file.write(f"{{round(progress * {STEPS})}} {{batch[0].double().sum().item()!r}} "
                   f"{{[hash(i.numpy().tobytes()) for i in batch[0]]}}\\n")
    time.sleep(slow)
    return task_step(model, batch, progress)

import accelerate
processes = accelerate.PartialState().num_processes
schedule = Schedule(epochs={STEPS} * processes // 8, batch_size=16, lr=0.01, checkpoint_seconds=0)
train(model, step, lambda epoch: loader(images, transform, 16, epoch=epoch, workers=workers), schedule,
      seed=3, state=folder / "state.safetensors")
save_file({{name: value.contiguous() for name, value in model.state_dict().items()}},
          folder / f"model{{accelerate.PartialState().process_index}}.safetensors")
if accelerate.PartialState().num_processes > 1:
    torch.distributed.destroy_process_group()
"""


def command(folder, processes=1, workers=0, slow=0.0):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), str(script), str(folder), "-", str(workers), str(slow)]


def environment():
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
    }


def finish(folder, **options):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command(folder, **options), env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "model0.safetensors")


def kill_at(folder, step, **options):
    """Start the run in a process group of its own and kill all of it once the step has begun."""
    folder.mkdir(exist_ok=True)
    log = folder / "steps0"
    run = subprocess.Popen(
        command(folder, slow=0.02, **options),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (log.exists() and any(line.startswith(f"{step} ") for line in log.read_text().splitlines())):
        assert run.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (folder / "model0.safetensors").exists()


def same(expected, found):
    assert expected.keys() == found.keys()
    return all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize(
    ("moments", "workers"), [((3, 11, 21), 0), ((10,), 2)], ids=["three times", "with loading processes"]
)
def test_a_killed_run_that_is_started_again_ends_in_the_same_bits(moments, workers, tmp_path, uninterrupted):
    for step in moments:
        kill_at(tmp_path, step, workers=workers)
    assert same(uninterrupted, finish(tmp_path, workers=workers))
    steps = [int(line.split()[0]) for line in (tmp_path / "steps0").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(STEPS)), "no step is left out"
    assert len(steps) <= STEPS + 2 * len(moments), "and no more than the one under way is done again"


def test_two_processes_share_the_images_and_end_with_the_same_weights_after_a_kill_too(tmp_path):
    whole = finish(tmp_path / "whole", processes=2)
    assert same(whole, load_file(tmp_path / "whole" / "model1.safetensors"))
    seen = [(tmp_path / "whole" / f"steps{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [STEPS, STEPS] == [len(lines) for lines in seen]
    for first, second in zip(*seen, strict=True):
        assert first.split()[0] == second.split()[0]
        left, right = (set(line.partition("[")[2].rstrip("]").split(", ")) for line in (first, second))
        assert len(left) == len(right) == 16
        assert not left & right
    kill_at(tmp_path / "killed", 9, processes=2)
    assert same(whole, finish(tmp_path / "killed", processes=2))
    assert same(whole, load_file(tmp_path / "killed" / "model1.safetensors"))
