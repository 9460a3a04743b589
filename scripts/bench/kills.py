"""Writing, compressing and building, killed at each step on the disk and at random moments: what is left, counted.

scripts/bench/run kills [--quick] [--saves 200] [--runs 20]

Whatever the moment, the model must be the former one or the new one, whole; the next write must leave nothing else
beside it; and a command that was killed several times must end in the bytes of one that wasn't.
"""

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import moments
import numpy
import torch
from forked import forked

import zoo
from zoo import atomic
from zoo.cli import main as command
from zoo.verbs import building

SHORT = {"epochs": 4, "batch_size": 16, "warmup": 0.0, "checkpoint_seconds": 0.0}
LOCKD = {"initial_logit": 0.05, "start_steps": 1, "images": 32, "schedule": {**SHORT, "lr": 0.1}}
DWAIN = {"max_accepted_ppl_diff": 9.0, "trade_off_factor": 99.0, "min_rank": 8, "images": 32, "schedule": SHORT}
DATA = ("--data", "digits[:192]")
DISTIL = ("--epochs", "4", "--batch-size", "32", *DATA)
COMMANDS: dict[str, tuple[str, ...]] = {
    "compress prune, distil": ("compress", "digits_cnn", "--method", "prune", "--budget", "0.5", *DISTIL),
    "compress low_rank, distil": ("compress", "digits_vit", "--method", "low_rank", "--budget", "0.5", *DISTIL),
    "compress falor": ("compress", "digits_vit", "--method", "falor", *DATA),
    "compress lockd": ("compress", "digits_vit", "--method", "lockd", *DATA),
    "compress dwain": ("compress", "digits_vit", "--method", "dwain", *DATA),
    "build": ("build", "digits_cnn_pruned_25", "--steps", "20"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "compress falor": {"nsr_final_threshold": 0.5, "kl_final_threshold": 0.5, "images": 64},
    "compress lockd": LOCKD,
    "compress dwain": DWAIN,
}
IMPORTED = ["zoo.tasks.classification.accuracy", "zoo.compression.prune.plan_or_graph"]
IMPORTED += ["zoo.compression.low_rank.dwain", "accelerate", "datasets", "sklearn.datasets", "torch._dynamo"]
ATTEMPTS = 4  # in a row that are killed, before one goes on to the end


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--runs", type=int, default=20, help="of each command")
    parser.add_argument("--quick", action="store_true", help="few of each")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # so that forks have all threads that the process has
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_CACHE"] = f"{folder}/cache"
        steps(Path(folder) / "steps")
        times = 4 if asked.quick else asked.saves
        saves(Path(folder) / "saves", times, "")
        with mock.patch.object(atomic, "exchanged", return_value=False):
            saves(Path(folder) / "saves apart", times, " (no exchange)")
        for module in IMPORTED:
            importlib.import_module(module)
        ends(Path(folder) / "ends", ("compress", "digits_cnn", "--method", "low_rank", "--budget", "0.7", *DATA))
        for name, arguments in list(COMMANDS.items())[: 1 if asked.quick else None]:
            settings = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.get(name, {}).items()]
            runs(Path(folder) / name, name, (*arguments, *settings), 1 if asked.quick else asked.runs)


def steps(here: Path) -> None:
    """Kill the replacement of a file and of a folder at every step."""
    formers = {"nothing": "new", "old": "over a former one"}
    cases = [f"{each}/killed" for each in map("/".join, product(moments.KINDS, moments.LACKING, formers))]
    script = [sys.executable, moments.__file__, str(here), *cases]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    head = f"{'steps':>6}{'former':>8}{'new':>5}{'neither':>9}  beside it: at once, after the next write"
    print(f"{'killed at every step':40}{head}")
    for case, rows in zip(cases, map(json.loads, said.splitlines()), strict=True):
        kind, lacks, former, _ = case.split("/")
        found = Counter(row["found"] for row in rows)
        beside = [sum(bool(row[left]) for row in rows) for left in ("left", "left then")]
        what = f"{kind}, {formers[former]}{'' if lacks == 'whole' else f' ({lacks})'}"
        neither = len(rows) - found[former] - found["new"]
        counts = f"{len(rows):6}{found[former]:8}{found['new']:5}{neither:9}"
        print(f"{what:40}{counts}  {beside[0]}, {beside[1]}")


def saves(here: Path, times: int, how: str) -> None:
    """Kill `zoo.save` over a former model, again and again, at random moments."""
    models = [zoo.load(name) for name in ("digits_cnn_pruned_25", "digits_cnn")]
    names = [model.zoo_entry.name for model in models]
    place, chosen = here / "model", numpy.random.default_rng(0)
    zoo.save(models[0], place)

    def alternately(rank: int) -> None:
        for number in count(1):
            zoo.save(models[number % 2], place)

    found: Counter[str] = Counter()
    beside = after = 0
    for _ in range(times):
        killed(alternately, 0.05 + chosen.random())
        beside += len(list(here.iterdir())) > 1
        found[zoo.load(place).zoo_entry.name] += 1
        zoo.save(models[0], place)
        after += [path.name for path in here.iterdir()] != ["model"]
    assert {*found} <= {*names}
    loaded = ", ".join(f"{name} {found[name]}" for name in names)
    left = f"beside it {beside} at once, {after} after the next write"
    print(f"zoo.save{how} killed {times} times: loaded {loaded}; {left}")


def runs(here: Path, name: str, arguments: tuple[str, ...], times: int) -> None:
    """Kill a command at random moments, a few times in a row, and compare what it ends in."""
    here.mkdir(parents=True)
    out, act, chosen = here / "out", quietly(here / "out", arguments), numpy.random.default_rng(0)
    killed(act, None)
    whole = content(out)
    shutil.rmtree(out)
    begun = time.monotonic()
    killed(act, None)
    seconds = time.monotonic() - begun
    ended = hidden = other = 0
    for _ in range(times):
        shutil.rmtree(out)
        for _ in range(ATTEMPTS):
            ended += killed(act, chosen.random() * seconds)
            hidden += any(path.name.startswith(".") for path in here.rglob("*"))
            assert not out.exists() or content(out) == whole
        killed(act, None)
        other += content(out) != whole or [path.name for path in here.iterdir()] != ["out"]
    kills = f"{times * ATTEMPTS:5} kills over {seconds:.1f} s, {ended} came too late; hidden files at once {hidden}"
    print(f"{name:26}{kills}; {times - other} of {times} ended in the same bytes and nothing else")


def ends(here: Path, arguments: tuple[str, ...]) -> None:
    """Kill a command that has compressed before at every step on the disk of what it still does."""
    (here / "before").mkdir(parents=True)
    with mock.patch.object(building, "save", side_effect=SystemExit):
        killed(quietly(here / "before" / "out", arguments), None)
    killed(quietly(here / "whole" / "out", arguments), None)
    whole, place = content(here / "whole" / "out"), here / "place"
    act = quietly(place / "out", arguments)
    found: Counter[str] = Counter()
    for step in count(1):
        shutil.copytree(here / "before", place)
        came = moments.ending(lambda: act(0), step, lambda event: os.kill(os.getpid(), signal.SIGKILL))
        found["new" if (place / "out").exists() else "none"] += 1
        killed(act, None)
        found["the same"] += content(place / "out") == whole and [path.name for path in place.iterdir()] == ["out"]
        shutil.rmtree(place)
        if came == "no such step":
            break
    left = f"left no model {found['none']} times, a whole one {found['new']} times"
    print(f"{'compress, its last stages':26}killed at every one of {step} steps {left}; ", end="")
    print(f"{found['the same']} of {step} ended in the same bytes and nothing else")


def quietly(out: Path, arguments: Sequence[str]) -> Callable[[int], None]:
    """A function that carries a command out, which speaks to a file."""

    def act(rank: int) -> None:
        quiet = os.open(out.parent.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        with contextlib.suppress(SystemExit):
            command([*arguments, "--out", str(out)])

    return act


def killed(act: Callable[[int], None], after: float | None) -> bool:
    """Do something in a process of its own, killed after so many seconds if any; whether it ended before."""
    (child,) = forked(1, act)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):  # before it leads a group
            os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code == 0


def content(folder: Path) -> dict[str, bytes]:
    """Name → bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    main()
