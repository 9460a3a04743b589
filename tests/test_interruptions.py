"""`zoo build` and `zoo compress` stopped at any step: nothing half-written, the same command goes on to the same end.

The commands run in processes forked from one server that has imported torch, which saves some seconds for each.
"""

import multiprocessing
import os
import signal
import time

import pytest

import zoo
from zoo.catalog.entry import Base
from zoo.structure.base import initialised

DENSE = Base(
    "timm/vit_tiny_patch16_224",
    {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "mlp_ratio": 2,
        "in_chans": 1,
        "num_classes": 10,
    },
)
CATALOG = """
[family]
architecture = "vit_tiny_patch16_224"
task = "image-classification"
license = "apache-2.0"
input = [1, 16, 16]
[[model]]
name = "small_pruned_60"
base = "{dense}"
[model.recipe]
method = "prune"
budget = {{ macs = 0.6 }}
data = "digits[:192]"
teachers = ["{dense}"]
augment = {{ hflip = 0.0 }}
schedule = {{ epochs = 4, lr = 0.001, ema = 0.9, checkpoint_seconds = 0.0 }}
"""
COMMAND = """
import os, signal, sys
os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
os.environ.update(environment)
signal.signal(signal.SIGINT, signal.default_int_handler)
renames = []  # to the name at which the process dies, the moment before
def watched(event, given):
    if event == "os.rename" and os.fspath(given[1]).endswith("/" + dies[0]):
        renames.append(given[1])
        if len(renames) == dies[1]:
            os.kill(os.getpid(), signal.SIGKILL)
if dies:
    sys.addaudithook(watched)
import torch
torch.set_num_threads(1)
from zoo.cli import main
main(arguments)
"""
IMPORTED = [
    "zoo.building",
    "zoo.tasks.accuracy",
    "accelerate",
    "datasets",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch._dynamo",
    "torch.export._trace",
]
BUILD = ["build", "small_pruned_60", "--out", "out"]
COMPRESS = ["compress", "dense", "--budget", "0.6", "--data", "digits[:192]", "--out", "out", "--epochs", "4"]
SECONDS = 120


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A repository of a network that is pruned and trained in a second."""
    folder = tmp_path_factory.mktemp("base") / "dense"
    model = initialised(DENSE)
    model.pretrained_cfg = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,), "num_classes": 10}
    return zoo.save(model, folder, DENSE)


@pytest.fixture
def start(server, dense, tmp_path, monkeypatch):
    """A function that starts a command in `tmp_path` → (process, the file that its stderr goes to)."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "small.toml").write_text(CATALOG.format(dense=dense))
    monkeypatch.chdir(tmp_path)
    environment = {"ZOO_CATALOG": str(tmp_path / "catalog"), "ZOO_CACHE": os.environ["ZOO_CACHE"]}
    stderr = tmp_path / "stderr"
    processes = []

    def command(*arguments, dies=()):
        stderr.unlink(missing_ok=True)
        arguments = [str(dense) if each == "dense" else each for each in arguments]
        names = {"arguments": arguments, "environment": environment, "stderr": str(stderr), "dies": dies}
        process = server.Process(target=exec, args=(COMMAND, names))
        process.start()
        processes.append(process)
        return process, stderr

    yield command
    for process in processes:
        process.kill()
        process.join()
        process.close()


def wait_until(happened, process):
    """Wait for an event while the process lives."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert process.is_alive(), "the process ended before"
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.002)


def line(stderr, beginning):
    """Whether a line of stderr begins so."""
    return lambda: stderr.exists() and f"\n{beginning}" in f"\n{stderr.read_text()}"


def finish(start, arguments):
    """Run a command to its end."""
    process, stderr = start(*arguments)
    process.join(SECONDS)
    assert process.exitcode == 0, stderr.read_text()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("arguments", [BUILD, COMPRESS], ids=["build", "compress"])
def test_ctrl_c_in_any_step_leaves_nothing_half_written_and_the_same_command_goes_on(start, tmp_path, arguments):
    for step in ("1 load", "2 prune", "3 distil", "4 evaluate", "5 write"):
        process, stderr = start(*arguments)
        wait_until(line(stderr, step), process)
        os.kill(process.pid, signal.SIGINT)
        process.join(SECONDS)

        assert (step, process.exitcode) in ((step, 130), ("5 write", 0)), stderr.read_text()
        if process.exitcode:
            last = stderr.read_text().splitlines()[-1]
            assert last == "interrupted: nothing half-written was left; the same command goes on where it stopped"
            assert "Traceback" not in stderr.read_text()
            assert not (tmp_path / "out").exists()
    finish(start, arguments)

    assert zoo.verify(tmp_path / "out").passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "out", "stderr"]


def test_a_build_killed_in_every_stage_ends_in_the_same_bytes_as_one_that_was_not(start, tmp_path):
    finish(start, BUILD)
    killed = [*BUILD[:-1], "killed"]
    work = tmp_path / "killed.work"
    moments = [
        ("2 prune", ("recipe.json", 1), []),
        ("2 prune", ("start", 1), ["recipe.json"]),
        ("3 distil", ("training.safetensors", 5), ["recipe.json", "start", "training.safetensors"]),
        ("4 evaluate", (), ["recipe.json", "start", "training.safetensors"]),
        ("5 write", ("killed", 1), ["recipe.json", "start", "training.safetensors"]),
    ]
    for stage, dies, left in moments:
        process, stderr = start(*killed, dies=dies)
        if not dies:
            wait_until(line(stderr, stage), process)
            process.kill()
        process.join(SECONDS)

        assert process.exitcode == -signal.SIGKILL
        assert line(stderr, stage)(), stderr.read_text()
        assert not (tmp_path / "killed").exists()
        assert sorted(path.name for path in work.glob("[!.]*")) == left
    finish(start, killed)

    assert content(tmp_path / "killed") == content(tmp_path / "out")
    assert not work.exists()
