"""Latency: milliseconds of one image on this machine, of several models that take turns."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from zoo.errors import BudgetError
from zoo.measurement.macs import like_images

ROUNDS = 20  # of a timing
TRIES = 3  # each with twice the rounds
STEADY = 0.1  # by which every other round may differ, as a share


def processor(device: torch.device | None = None) -> str:
    """What computes here, as it names itself, and with how many threads."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.machine()}, {torch.get_num_threads()} threads"


def milliseconds(
    models: Sequence[nn.Module], input: Sequence[int], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Time one image, with as many threads as torch has; the models take turns, so that all see the same machine.

    Args:
        models: in eval mode, on one device.
        input: channels, height, width.
        clock: in seconds.

    Returns:
        Milliseconds of each model: the median of the faster half of the rounds, as what else runs only adds time.

    Raises:
        BudgetError: these of every other round differ too much, however often they are taken.
    """
    image = torch.zeros(1, *input).to(like_images(models[0]))
    rounds, halves = ROUNDS, (0.0, 0.0)
    for _ in range(TRIES):
        spent = [[1e3 * _seconds(model, image, clock) for model in models] for _ in range(rounds)]
        found = [_typical(times) for times in zip(*spent, strict=True)]
        # The machine is judged by all of a round: one model alone may be faster than its clock is fine.
        sums = [sum(each) for each in spent]
        halves = _typical(sums[::2]), _typical(sums[1::2])
        if abs(halves[0] - halves[1]) <= STEADY * max(halves):
            return found
        rounds *= 2
    low, high = (each * found[0] / sum(found) for each in sorted(halves))
    raise BudgetError(
        f"this machine is too noisy to tell: the same model took {low:.3g} ms and {high:.3g} ms in every other of "
        f"{rounds // 2} rounds; stop what else runs here, or ask for a share of the macs"
    )


def _typical(times: Sequence[float]) -> float:
    return statistics.median(sorted(times)[: len(times) // 2 + 1])


@torch.inference_mode()
def _seconds(model: nn.Module, image: torch.Tensor, clock: Callable[[], float]) -> float:
    """One forward pass, after another that brings the model into the caches."""
    model(image)
    if image.device.type != "cpu":
        torch.accelerator.synchronize()
    begun = clock()
    model(image)
    if image.device.type != "cpu":
        torch.accelerator.synchronize()
    return clock() - begun
