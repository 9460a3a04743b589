"""`zoo build` and `zoo compress` stopped at any step: nothing half-written, the same command goes on to the same end.

The commands run in processes forked from one server that has imported torch, which saves some seconds for each.
"""

import multiprocessing
import os
import signal
import time

import pytest
from safetensors import safe_open

import zoo

CATALOG = """
[family]
architecture = "vit_tiny_patch16_224"
task = "image-classification"
license = "apache-2.0"
input = [1, 16, 16]
[[model]]
name = "small_pruned_60"
base = "digits_vit"
[model.recipe]
method = "prune"
budget = { macs = 0.6 }
data = "digits"
teachers = ["digits_vit"]
augment = { hflip = 0.0 }
schedule = { epochs = 1, steps = 12, lr = 0.001, checkpoint_seconds = 0.0 }
"""
COMMAND = """
import os, signal, sys
os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
os.environ.update(environment)
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
torch.set_num_threads(2)
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
]
BUILD = ["build", "small_pruned_60", "--out", "out"]
COMPRESS = ["compress", "digits_vit", "--budget", "0.6", "--data", "digits", "--out", "out", "--epochs", "1"]
SECONDS = 120


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@pytest.fixture
def start(server, tmp_path, monkeypatch):
    """A function that starts a command in `tmp_path` → (process, the file that its stderr goes to)."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "small.toml").write_text(CATALOG)
    monkeypatch.chdir(tmp_path)
    environment = {"ZOO_CATALOG": str(tmp_path / "catalog"), "ZOO_CACHE": os.environ["ZOO_CACHE"]}
    stderr = tmp_path / "stderr"
    processes = []

    def command(*arguments):
        stderr.unlink(missing_ok=True)
        names = {"arguments": list(arguments), "environment": environment, "stderr": str(stderr)}
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


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


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


def test_a_build_killed_three_times_ends_in_the_same_weights_as_one_that_was_not(start, tmp_path):
    finish(start, BUILD)
    expected = weights(tmp_path / "out")
    killed = [*BUILD[:-1], "killed"]
    work = tmp_path / "killed.work"

    def steps_done(fewest):
        def happened():
            try:
                with safe_open(work / "training.safetensors", framework="pt") as state:
                    return int(state.metadata()["step"]) >= fewest
            except FileNotFoundError:
                return False

        return happened

    moments = [
        lambda stderr: line(stderr, "2 prune"),
        lambda stderr: lambda: (work / "start" / "config.json").exists(),
        lambda stderr: steps_done(5),
    ]
    for moment in moments:
        process, stderr = start(*killed)
        wait_until(moment(stderr), process)
        process.kill()
        process.join(SECONDS)

        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    finish(start, killed)

    assert weights(tmp_path / "killed") == expected
    assert not work.exists()
