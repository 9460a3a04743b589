"""Training that is killed at any moment and started again, on one process and on two, ends in the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import same

ROOT = Path(__file__).parents[1]
STEPS, EPOCHS = 15, 3

# Real training of a network with batch norm and dropout on a slice of digits. The script forks a run after what it
# imports, because importing takes longer than training, and kills it at the steps named, one after the other.
SCRIPT = """
import copy, json, os, pathlib, signal, sys, time
import accelerate, torch
from safetensors.torch import save_file
from forked import forked
from torch import nn
import zoo.tasks.classification.accuracy
from zoo.tasks.classification.transforms import evaluation_transform, training_transform
from zoo.tasks.loader import loader
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluate
from zoo.training.distillation import task_step
from zoo.training.schedule import Machine, Schedule
from zoo.training.trainer import train

STEPS, EPOCHS = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
images, held_out = dataset("digits", "train", limit=16 * STEPS // EPOCHS), dataset("digits", "test", limit=99)
grey = {"input_size": [1, 16, 16], "mean": [0.3], "std": [0.35], "interpolation": "bilinear", "crop_pct": 1.0}
transform = training_transform(grey, {"scale": [0.6, 1.0], "hflip": 0.0, "color_jitter": 0.0})

class Silent(accelerate.tracking.GeneralTracker):
    name, requires_logging_directory, tracker = "silent", False, None

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None):
        pass

def run(folder, rank, workers, slow, how):
    torch.manual_seed(0)
    plain = how == "plain"
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity() if plain else nn.BatchNorm2d(4), nn.ReLU(),
                          nn.Dropout(0.0 if plain else 0.3), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    if plain:
        model.double()
    start = copy.deepcopy(model).float()
    ema, machine = 0.0, Machine(workers=workers)
    if how == "everything":
        ema = 0.9
        machine = Machine("bf16", accumulation=3, channels_last=True, workers=workers, log_with=Silent())

    def step(model, batch, progress):
        with (folder / f"steps{rank}").open("a") as file:
            print(round(progress * STEPS), *(hash(image.numpy().tobytes()) for image in batch[0]), file=file)
        time.sleep(slow)
        return task_step(model, batch, progress)

    def whole(model, batch, progress):
        return step(model, (batch[0].double(), batch[1]) if plain else batch, progress)

    schedule = Schedule(epochs=EPOCHS, batch_size=16, lr=0.01, ema=ema, checkpoint_seconds=0)
    train(model, whole, lambda epoch: loader(images, transform, 16, epoch=epoch, workers=workers), schedule,
          seed=3, state=folder / "state.safetensors", machine=machine)
    figures = evaluate(model.float(), loader(held_out, evaluation_transform(grey), 64), against=start)
    (folder / f"figures{rank}.json").write_text(json.dumps(figures))
    save_file(model.state_dict(), folder / f"model{rank}.safetensors")

def begun(folder, step):
    log = folder / "steps0"
    return log.exists() and any(line.startswith(f"{step} ") for line in log.read_text().splitlines())

for line in sys.argv[3:]:
    name, how, processes, workers, *moments = line.split()
    folder = pathlib.Path(name)
    folder.mkdir()
    for moment in [*map(int, moments), None]:
        slow = 0.0 if moment is None else 0.02
        children = forked(int(processes), lambda rank: run(folder, rank, int(workers), slow, how))
        if moment is not None:
            while not begun(folder, moment):
                assert os.waitpid(children[0], os.WNOHANG) == (0, 0), "the run ended before it was killed"
                time.sleep(0.002)
            for child in children:
                os.killpg(child, signal.SIGKILL)
            assert not (folder / "model0.safetensors").exists()
        status = [os.waitpid(child, 0)[1] for child in children]
        assert status == [0 if moment is None else signal.SIGKILL] * len(children), status
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run the script once; a folder for each run holds the weights and which steps saw which images."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = {
        "one": "usual 1 0",
        "one, killed": "usual 1 0 3 9",
        "everything": "everything 1 0",
        "everything, killed, loading processes": "everything 1 2 7",
        "one, plain": "plain 1 0",
        "two, plain": "plain 2 0",
        "everything, two": "everything 2 0",
        "everything, two, killed": "everything 2 0 8",
    }
    names = {name: folder / name.replace(", ", "_").replace(" ", "_") for name in wanted}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(STEPS),
            str(EPOCHS),
            *(f"{names[name]} {how}" for name, how in wanted.items()),
        ],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return names


def ended(folder, rank=0):
    return load_file(folder / f"model{rank}.safetensors")


def logged(folder, rank=0):
    return [[int(word) for word in line.split()] for line in (folder / f"steps{rank}").read_text().splitlines()]


@pytest.mark.parametrize(
    ("whole", "name", "kills"),
    [
        ("one", "one, killed", 2),
        ("everything", "everything, killed, loading processes", 1),
        ("everything, two", "everything, two, killed", 1),
    ],
)
def test_a_killed_run_that_is_started_again_ends_in_the_same_bits(whole, name, kills, runs):
    assert same(ended(runs[whole]), ended(runs[name]))
    parts = logged(runs[whole])
    steps = [step for step, *_ in logged(runs[name])]
    assert list(range(STEPS)) == sorted(set(steps)), "no step is left out"
    assert len(steps) <= len(parts) + kills * len(parts) // STEPS, "and none is done again but the one under way"


def test_two_processes_share_the_images_of_one(runs):
    whole, left, right = logged(runs["one, plain"]), logged(runs["two, plain"]), logged(runs["two, plain"], rank=1)
    for (step, *images), (first, *half), (second, *other) in zip(whole, left, right, strict=True):
        assert step == first == second
        assert len(half) == len(other) == 8
        assert images == half + other


@pytest.mark.parametrize("name", ["two, plain", "everything, two", "everything, two, killed"])
def test_two_processes_end_in_the_same_bits_as_each_other(name, runs):
    assert same(ended(runs[name]), ended(runs[name], rank=1))


def test_two_processes_train_and_measure_as_one_does(runs):
    """In double precision, without batch norm and dropout, whose statistics and draws are each process's own."""
    one, two = ended(runs["one, plain"]), ended(runs["two, plain"])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6)
    expected, *found = (
        json.loads((runs[name] / f"figures{rank}.json").read_text())
        for name, rank in (("one, plain", 0), ("two, plain", 0), ("two, plain", 1))
    )
    assert expected["images"] == 99, "in two batches, of which the last is a part"
    assert found[0] == found[1] == {**expected, "kl": pytest.approx(expected["kl"], rel=1e-5)}
