"""Cold starts: what a fresh process takes up to a model's first output, and how much memory."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from zoo.catalog.entry import Base
from zoo.errors import StructureError

STARTS = 3  # processes, one after the other
_HELD = "VmHWM"  # of /proc: getrusage begins with what the process that started this one held


class Cold(Struct, frozen=True):
    """What a fresh process shows.

    Args:
        cold_s: seconds from its start to the model's first output, Python's and torch's own among them; the median.
        memory_mb: the most that it held, libraries among it; on an accelerator, the most that torch held there.
    """

    cold_s: float
    memory_mb: float


def cold_start(
    source: str | Base, backend: str, batch: int, input: tuple[int, ...], device: str, dtype: torch.dtype | None
) -> Cold:
    """Start a model in fresh processes, one after the other.

    Args:
        source: its name, or its architecture.
        backend: that computes it.
        batch: images of the call.
        input: channels, height and width of them.
        device: where it computes.
        dtype: of floats.

    Raises:
        StructureError: a process ended without an output.
    """
    asked = {
        "source": source if isinstance(source, str) else {"id": source.id, "args": dict(source.args)},
        "backend": backend,
        "batch": batch,
        "input": list(input),
        "device": device,
        "dtype": str(dtype).removeprefix("torch.") if dtype else None,
        "threads": torch.get_num_threads(),
    }
    found = [_once(json.dumps(asked)) for _ in range(STARTS)]
    seconds, memory = zip(*found, strict=True)
    return Cold(statistics.median(seconds), statistics.median(memory))


def _once(asked: str) -> tuple[float, float]:
    begun = time.perf_counter()
    command = [sys.executable, "-P", "-m", "zoo.verbs.cold_starts", asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begun
        said = process.communicate()[1].strip().splitlines()
    if process.returncode or not line:
        raise StructureError(f"a fresh process has no first output: {said[-1] if said else process.returncode}")
    return seconds, float(line)


def held(device: str) -> float:
    """The most memory that this process held so far, in MB; on an accelerator, that torch held there."""
    if torch.device(device).type != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[_HELD].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on a Mac


def _first(asked: dict[str, Any]) -> None:
    """Build a model, call it once and tell how much memory was held."""
    from zoo.verbs.backends import BACKENDS
    from zoo.verbs.candidates import candidate

    torch.set_num_threads(asked["threads"])
    source, backend = asked["source"], BACKENDS[asked["backend"]]
    dtype = getattr(torch, asked["dtype"]) if asked["dtype"] else None
    given = source if isinstance(source, str) else Base(source["id"], source["args"])
    found = candidate(given, input=asked["input"], device=asked["device"], dtype=dtype)
    images = found.images(asked["batch"])
    backend.started(backend.prepared(found.model, images), images)()
    sys.stdout.write(f"{held(asked['device'])}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _first(json.loads(sys.argv[1]))
