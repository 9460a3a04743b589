"""Training on a streamed data set of a Hub: pruned, factored, distilled, by one process and two, killed and resumed.

The data is sorted by class. The script forks a run after what it imports, because importing takes longer than training.
"""

import itertools
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub import commit, create, large, serving
from safetensors.torch import load_file
from tiny import same

from zoo.tasks.datasets import dataset

ROOT = Path(__file__).parents[1]
TRAIN, TEST, GROUP = 170, 60, 60
STEPS = TRAIN // 32  # of an epoch

SCRIPT = """
import json, os, pathlib, signal, sys
import accelerate, datasets, torch
import torch._dynamo, torch.export._trace
import zoo.tasks.classification.accuracy
from forked import forked
from zoo.catalog.entry import Budget
from zoo.tasks import lengths
from zoo.training import checkpoint, trainer
from zoo.verbs import beginning, building
from zoo.verbs.recipes import recipe_for

torch.set_num_threads(1)
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1  # seconds, after a stream that was shuffled
lengths.READ_WHOLE = 0  # so that everything is streamed
building.training_costs = beginning.learning_costs = lambda *_: "untimed"
BASE, DATA = "digits_cnn_pruned_25", "org/digits"
SHORT = {"batch_size": 32, "checkpoint_seconds": 0}
PLAIN = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0, "color_jitter": None}  # so that an image is known by its pixels

def entry(how):
    if how == "lockd":
        options = {"schedule": {**SHORT, "epochs": 1, "lr": 0.1}, "initial_logit": 0.05, "start_steps": 1}
        return recipe_for(BASE, "lockd", None, DATA, 0, options)
    options = {"images": 64, "criterion": "l2", "ridge": 1.0}
    return recipe_for(BASE, "prune", Budget(0.9), DATA, 2, options, schedule=SHORT, augment=PLAIN)

def run(folder, rank, how, killed):
    backward, write, seen = trainer._backward, checkpoint.save_training, []

    def noted(accelerator, wrapped, step, batch, progress, machine):
        images = batch[0][0] if isinstance(batch[0], list) else batch[0]
        seen.append([hash(image.numpy().tobytes()) for image in images])
        return backward(accelerator, wrapped, step, batch, progress, machine)

    def last(path, run, done, *held):
        write(path, run, done, *held)
        if done == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer._backward, checkpoint.save_training = noted, last
    building.make(entry(how), folder / "model")
    (folder / f"seen{rank}.json").write_text(json.dumps(seen))

for line in sys.argv[1:]:
    name, how, processes, killed = line.split()
    folder = pathlib.Path(name)
    folder.mkdir()
    for moment in ([int(killed)] if int(killed) else []) + [0]:
        children = forked(int(processes), lambda rank: run(folder, rank, how, moment))
        status = [os.waitpid(child, 0)[1] for child in children]
        assert status == [signal.SIGKILL if moment else 0] * len(children), (line, status)
"""


def parquet(split, count):
    """Digits sorted by class, as a file of parquet with several row groups."""
    table = dataset("digits", split).select(range(count))
    table = table.select(np.argsort(table["label"], kind="stable")).cast_column("image", datasets.Image())
    written = BytesIO()
    table.to_parquet(written, batch_size=GROUP)
    return written.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run the script once, against a server; a folder for each run."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = {"one": "prune 1 0", "killed": f"prune 1 {STEPS + 3}", "two": "prune 2 0", "lockd": "lockd 1 0"}
    with serving(folder / "hub") as address:
        assert create(address, "org/digits", "dataset").status == 200
        files = {split: parquet(split, count) for split, count in (("train", TRAIN), ("test", TEST))}
        lines = [
            large(address, "org/digits", f"data/{split}-00000-of-00001.parquet", data, kind="dataset")
            for split, data in files.items()
        ]
        assert commit(address, "org/digits", *lines, kind="dataset").status == 200
        own = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", SCRIPT, *(f"{folder / name} {how}" for name, how in wanted.items())]
        done = subprocess.run(
            command, env={**os.environ, **own}, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return {name: folder / name for name in wanted}


def seen(folder, rank=0):
    return json.loads((folder / f"seen{rank}.json").read_text())


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_every_image_of_a_stream_is_seen_once_in_each_epoch(runs):
    whole = seen(runs["one"])
    assert [len(batch) for batch in whole] == [32] * 2 * STEPS
    every = set(itertools.chain.from_iterable(whole))
    for epoch in (whole[:STEPS], whole[STEPS:]):
        assert len(set(itertools.chain.from_iterable(epoch))) == 32 * STEPS  # all but the last, incomplete batch
    assert 32 * STEPS <= len(every) <= TRAIN
    assert whole[:STEPS] != whole[STEPS:]


def test_two_processes_share_the_images_of_one(runs):
    left, right = seen(runs["two"]), seen(runs["two"], rank=1)
    assert [first + second for first, second in zip(left, right, strict=True)] == seen(runs["one"])


def test_a_run_killed_in_its_second_epoch_and_started_again_ends_in_the_same_bits(runs):
    assert seen(runs["killed"]) == seen(runs["one"])[STEPS + 3 :]
    assert same(weights(runs["one"]), weights(runs["killed"]))
    results = [json.loads((runs[name] / "model" / "results.json").read_text()) for name in ("one", "killed")]
    figures = [each["measured"] for each in results]
    assert figures[0] == figures[1]
    assert figures[0]["top1"] > 0.9


@pytest.mark.parametrize("name", ["two", "lockd"])
def test_the_others_end_with_a_model_as_well(name, runs):
    results = json.loads((runs[name] / "model" / "results.json").read_text())
    assert results["data"]["images"] == TEST
