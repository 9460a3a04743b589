"""`zoo build` and `zoo compress` stopped at any step: nothing half-written, the same command goes on to the same end.

Two processes of one build say once what one says.

The commands run in processes forked from one server that has imported torch, which saves some seconds for each.
"""

import json
import multiprocessing
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from accelerate.tracking import GeneralTracker
from datasets import fingerprint
from safetensors import safe_open
from tiny import batches, same, tiny

import zoo
from zoo import interruption
from zoo.catalog.entry import Base
from zoo.structure.base import initialised
from zoo.tasks.columns import labels_of
from zoo.tasks.datasets import dataset
from zoo.training.distillation import task_step
from zoo.training.schedule import Machine, Schedule
from zoo.training.trainer import LOG_STEPS, train

DENSE = Base(
    "timm/vit_tiny_patch16_224",
    {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 1,
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
options = {{ criterion = "l2", ridge = 1.0, images = 32 }}
data = "digits[:192]"
teachers = ["{dense}"]
augment = {{ hflip = 0.0 }}
schedule = {{ epochs = 30, lr = 0.001, ema = 0.9, checkpoint_seconds = 0.0 }}
"""
COMMAND = """
import os, signal, sys
for descriptor, file in ((1, stdout), (2, stderr)):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
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
    "zoo.verbs.building",
    "zoo.compression.prune.plan_or_graph",
    "zoo.tasks.classification.accuracy",
    "accelerate",
    "datasets",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch._dynamo",
    "torch.export._trace",
]
BUILD = ["build", "small_pruned_60", "--out", "out"]
ROUGH = ["--set", "criterion=l2", "--set", "ridge=1.0", "--set", "images=32"]
COMPRESS = ["compress", "dense", "--budget", "0.6", "--data", "digits[:192]", "--out", "out", "--epochs", "30", *ROUGH]
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
    return zoo.save(model, folder, base=DENSE)


@pytest.fixture
def start(server, dense, tmp_path, monkeypatch):
    """A function that starts a command in `tmp_path` → (process, the file that its stderr goes to)."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "small.toml").write_text(CATALOG.format(dense=dense))
    monkeypatch.chdir(tmp_path)
    environment = {"ZOO_CATALOG": str(tmp_path / "catalog"), "ZOO_CACHE": os.environ["ZOO_CACHE"]}
    processes = []

    def command(*arguments, dies=(), together=None):
        stdout, stderr = (tmp_path / f"{stream}{(together or {}).get('RANK', '')}" for stream in ("stdout", "stderr"))
        stderr.unlink(missing_ok=True)
        arguments = [str(dense) if each == "dense" else each for each in arguments]
        names = {
            "arguments": arguments,
            "environment": environment | (together or {}),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "dies": dies,
        }
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


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (BUILD, ["1 load", "2 evaluate", "3 prune", "4 distil", "5 evaluate", "6 write"]),
        (COMPRESS, ["4 distil"]),  # which builds as the other does
    ],
    ids=["build", "compress"],
)
def test_ctrl_c_in_any_step_leaves_nothing_half_written_and_the_same_command_goes_on(start, tmp_path, arguments, steps):
    for step in steps:
        process, stderr = start(*arguments)
        wait_until(line(stderr, step), process)
        os.kill(process.pid, signal.SIGINT)
        process.join(SECONDS)

        assert (step, process.exitcode) in ((step, 130), ("6 write", 0)), stderr.read_text()
        if process.exitcode:
            last = stderr.read_text().splitlines()[-1]
            assert last == "interrupted: nothing half-written was left; the same command goes on where it stopped"
            assert "Traceback" not in stderr.read_text()
            assert not (tmp_path / "out").exists()
    finish(start, arguments)

    assert zoo.verify(tmp_path / "out").passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "out", "stderr", "stdout"]


def test_a_build_killed_in_every_stage_ends_in_the_same_bytes_as_one_that_was_not(start, tmp_path):
    finish(start, BUILD)
    killed = [*BUILD[:-1], "killed"]
    work = tmp_path / "killed.work"
    moments = [
        ("2 evaluate", ("recipe.json", 1), []),
        ("2 evaluate", ("base.json", 1), ["recipe.json"]),
        ("3 prune", ("start", 1), ["base.json", "recipe.json"]),
        ("4 distil", ("training.safetensors", 5), ["base.json", "recipe.json", "start", "training.safetensors"]),
        ("5 evaluate", (), ["base.json", "recipe.json", "start", "training.safetensors"]),
        ("6 write", ("killed", 1), ["base.json", "recipe.json", "start", "training.safetensors"]),
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


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_a_second_build_into_one_folder_waits_for_the_first_and_goes_on_where_that_ends(start, tmp_path, ends):
    first, stderr = start(*BUILD)
    wait_until(line(stderr, "2 evaluate"), first)
    second, stderr = start(*BUILD)
    wait_until(line(stderr, "another process makes out: waiting until it is done"), second)
    if ends == "killed":
        first.kill()
    for process in (first, second):
        process.join(SECONDS)

    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL if ends == "killed" else 0, 0), stderr.read_text()
    assert line(stderr, "made already: out" if ends == "done" else "6 write")()
    assert zoo.verify(tmp_path / "out").passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "out", "stderr", "stdout"]


@pytest.fixture
def interruptible():
    """Ctrl-C as Python handles it, whatever the process that runs the tests was started with."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("moment", [0, 3, 11])
def test_ctrl_c_within_a_step_keeps_it_and_the_training_ends_in_the_same_bits(tmp_path, moment):
    def training(state, at=None):
        def step(model, batch, progress):
            if at is not None and round(progress * 12) == at:
                os.kill(os.getpid(), signal.SIGINT)
            return task_step(model, batch, progress)

        schedule = Schedule(epochs=2, batch_size=4, ema=0.9, checkpoint_seconds=1e9)
        return train(tiny(), step, batches, schedule, state=state).state_dict()

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        training(state, at=moment)
    with safe_open(state, framework="pt") as file:
        assert json.loads(file.metadata()["found"])["steps"] == moment + 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(training(None), training(state))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_an_evaluation_acts_at_once_and_keeps_the_epoch_before_it(tmp_path):
    def training(state, evaluate):
        schedule = Schedule(epochs=2, batch_size=4, ema=0.9, checkpoint_seconds=1e9)
        return train(tiny(), task_step, batches, schedule, state=state, evaluate=evaluate).state_dict()

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the evaluation goes on")

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        training(state, interrupted)
    with safe_open(state, framework="pt") as file:
        assert json.loads(file.metadata()["found"])["steps"] == 6
    assert same(training(None, None), training(state, dict))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_tracker_is_told_of_a_step_keeps_that_step(tmp_path):
    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "interrupted", False, None

        def store_init_configuration(self, values):
            pass

        def log(self, values, step, **options):
            signal.raise_signal(signal.SIGINT)

    state, schedule = tmp_path / "state", Schedule(epochs=4, batch_size=4, checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), task_step, batches, schedule, state=state, machine=Machine(log_with=Tracker()))
    with safe_open(state, framework="pt") as file:
        assert json.loads(file.metadata()["found"])["steps"] == LOG_STEPS


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_the_end_of_the_block_keeps_what_it_did():
    kept = []
    with pytest.raises(KeyboardInterrupt), interruption.put_off(lambda: kept.append("all")):
        signal.raise_signal(signal.SIGINT)
    assert kept == ["all"]


@pytest.mark.usefixtures("interruptible")
def test_a_ctrl_c_that_the_library_of_data_sets_catches_acts_when_it_is_done(monkeypatch):
    data = dataset("digits", "test")

    def pressed(hasher, value):
        if value == "datasets.arrow_dataset.Dataset.select_columns":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(fingerprint.Hasher, "update", pressed)
    with pytest.raises(KeyboardInterrupt):
        dataset("digits", "test")
    with pytest.raises(KeyboardInterrupt):
        labels_of(data)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_acts_at_once_and_keeps_nothing_half_done(tmp_path):
    def step(model, batch, progress):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step goes on")

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), step, batches, Schedule(epochs=2, batch_size=4), state=tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_is_not_pythons_own_is_left_alone():
    numbers = []

    def handler(number, frame):
        numbers.append(number)

    former = signal.signal(signal.SIGINT, handler)
    try:
        with interruption.put_off(pytest.fail):
            assert signal.getsignal(signal.SIGINT) is handler
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert numbers == [signal.SIGINT]


@pytest.mark.usefixtures("interruptible")
def test_another_thread_than_the_main_one_leaves_ctrl_c_alone():
    def handler():
        with interruption.put_off(pytest.fail):
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(handler).result() is signal.default_int_handler


def test_two_processes_of_one_build_say_each_step_and_the_folder_once(start, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [start(*BUILD, together={**world, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for process, stderr in started:
        process.join(SECONDS)
        assert process.exitcode == 0, stderr.read_text()

    assert [(tmp_path / f"stdout{rank}").read_text() for rank in "01"] == ["out\n", ""]
    main, other = (stderr.read_text() for _, stderr in started)
    assert [line[:2] for line in main.splitlines() if line[:1].isdigit()] == [f"{number} " for number in range(1, 7)]
    assert main.count(" s\n") == 6
    assert not any(said in other for said in ("1 load", "6 write", " s\n"))
    assert zoo.verify(tmp_path / "out").passed
