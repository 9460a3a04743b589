"""Latency: milliseconds of several models that take turns on this machine, and which of them differ.

In each round every model has one turn, in an order that is drawn anew. So of two models that are alike the throw of a
coin decides in each round which of them has the better moment, however the machine drifts, stutters or is shared. How
often one is ahead is binomial, and of n ratios, round by round, the k-th least and the k-th largest hold the true
median but for one time in ONE_IN:

    P(ratio_(k) ≤ median ≤ ratio_(n+1-k)) ≥ 1 - 2·P(Bin(n, 1/2) < k)

Two copies of one model aren't quite alike: it counts where in memory they lie. So the base has a turn as a copy of
itself, and a difference is told where the whole interval lies beyond whatever the copy's shows, and beyond LEAST.

Sources: Dixon, Mood, "The Statistical Sign Test" (1946); Mytkowicz et al., "Producing Wrong Data Without Doing Anything
Obviously Wrong!" (2009).
"""

import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from zoo.errors import BudgetError
from zoo.measurement.macs import like_images

ONE_IN = 10_000  # intervals don't hold what they should
LEAST = 0.03  # by which models differ at least, as a share; copies of a small one were 0.8 % apart (standard deviation)
NEAR = 0.1  # within which models are told to be alike
FEWEST = 15  # rounds that an interval needs
ROUNDS = 20  # of a timing
BUSY = 0.05  # share of the time that others had the cores, from which on times tell of them too
TRIES = 3  # each with twice the rounds
STEADY = 0.1  # by which every other round may differ, as a share
SETTLED, WARMING = 3, 30  # calls that are no faster than those before, and most calls until then
TURN = 2e-3  # seconds of a turn at least: what is faster is called several times in one

Call = Callable[[], object]
"""One forward pass, finished when it returns."""
Clock = Callable[[], float]
"""Seconds."""
Verdict = Literal["faster", "slower", "no difference", "can't tell"]


@dataclass(frozen=True)
class Timing:
    """How long a model takes, and how many times as fast as its base it is.

    Args:
        ms: milliseconds of one call, the median over rounds.
        low, high: the interval of that.
        ratio: milliseconds of the base over the model's, round by round, the median; None where there is no base.
        ratio_low, ratio_high: the interval of that.
        margin: by which a ratio must differ from 1 to be one, as a share.
    """

    ms: float
    low: float
    high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    margin: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """Which of them is faster; where the interval reaches far to both sides, it can't be told."""
        if self.ratio_low is None or self.ratio_high is None or self.margin is None:
            return None
        if self.ratio_low > 1 + self.margin:
            return "faster"
        if self.ratio_high < 1 / (1 + self.margin):
            return "slower"
        return "no difference" if _off(self.ratio_low, self.ratio_high) <= NEAR else "can't tell"


CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What milliseconds are of: a wall clock's, or of all that this process alone computes, in as many threads as it has.

On a busy machine the second tells, of one thread, what the model would take on a core of its own.
"""


def compare(
    calls: Mapping[str, Call],
    base: str | None = None,
    copy: Call | None = None,
    *,
    rounds: int,
    clock: Clock = time.perf_counter,
    order: random.Random | None = None,
) -> dict[str, Timing]:
    """Time models that take turns, and compare them with one of them.

    Args:
        calls: a name → one forward pass of a model.
        base: the name of what the others are compared with; None compares nothing.
        copy: one forward pass of a copy of the base, which shows what can't be told apart here.
        rounds: how many turns each has; fewer than FEWEST tell nothing.
        clock: in seconds.
        order: as for `turns`.

    Returns:
        A name → how long the model takes, and how many times as fast as the base it is.
    """
    times = turns([*calls.values(), *([copy] if copy else [])], rounds, clock, order)
    named = dict(zip(calls, times, strict=False))
    if base is None:
        return {name: Timing(*_middle(each)) for name, each in named.items()}
    whole = named[base]
    margin = LEAST if copy is None else margin_of(ratios(whole, times[-1]))
    found = {name: Timing(*_middle(each), *_middle(ratios(whole, each)), margin) for name, each in named.items()}
    return {**found, base: Timing(*_middle(whole), margin=margin)}


def ratios(base: Sequence[float], model: Sequence[float]) -> list[float]:
    """How many times as fast as its base a model was, round by round."""
    return [one / other for one, other in zip(base, model, strict=True)]


def margin_of(copy: Sequence[float]) -> float:
    """By how much a ratio must differ from 1, as a share, where a copy of the base has these."""
    return max(LEAST, _off(*interval(copy)))


def turns(
    calls: Sequence[Call], rounds: int, clock: Clock = time.perf_counter, order: random.Random | None = None
) -> list[list[float]]:
    """Time calls that take turns, so that whatever else the machine does falls on all of them alike.

    All are called until they get no faster. A turn begins with a call that isn't counted, which brings the model into
    the caches, and has as many that are counted for each model, so many that the fastest takes TURN.

    Args:
        calls: what is timed.
        rounds: how many turns each has.
        clock: in seconds; `time.process_time` counts what this process alone computes.
        order: of the turns, drawn anew each round; None draws another each time.

    Returns:
        Milliseconds of each call, round by round.
    """
    order = order or random.Random()  # noqa: S311
    fastest = min(_warmed(call, clock) for call in calls)
    repeats = math.ceil(TURN / max(fastest, TURN / 1000))
    spent: list[list[float]] = [[] for _ in calls]
    places = list(range(len(calls)))
    for _ in range(rounds):
        order.shuffle(places)
        for place in places:
            call = calls[place]
            call()
            begun = clock()
            for _ in range(repeats):
                call()
            spent[place].append(1e3 * (clock() - begun) / repeats)
    return spent


def _warmed(call: Call, clock: Clock) -> float:
    """Call until it gets no faster: seconds that it takes then."""
    took: list[float] = []
    for _ in range(WARMING):
        begun = clock()
        call()
        took.append(clock() - begun)
        if len(took) > SETTLED and min(took[-SETTLED:]) >= (1 - LEAST) * min(took[:-SETTLED]):
            break
    return min(took)


def interval(values: Sequence[float], one_in: int = ONE_IN) -> tuple[float, float]:
    """What holds the true median but for one time in so many; all numbers, where there are too few values.

    >>> interval([*range(1, 16)]), interval([*range(14)])
    ((1, 15), (-inf, inf))
    """
    n, k, tail = len(values), 0, 0
    while 2 * one_in * (tail + math.comb(n, k)) <= 2**n:
        tail += math.comb(n, k)
        k += 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


def _middle(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its interval."""
    return statistics.median(values), *interval(values)


def _off(low: float, high: float) -> float:
    """By how much of 1 a ratio may differ, whichever is over the other."""
    return max(high, 1 / low if low > 0 else math.inf) - 1


def waited() -> float | None:
    """Seconds for which threads of this process were ready and others had the cores; None where no Linux tells."""
    told = 0.0
    files = list(Path("/proc/self/task").glob("*/schedstat"))
    for file in files:
        try:
            told += int(file.read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # a thread that has ended
            continue
    return told if files else None


def waiting(threads: int) -> Callable[[], float | None]:
    """From now on: the share of the time for which so many threads were ready and others had the cores, as `waited`."""
    begun, before = time.perf_counter(), waited()

    def share() -> float | None:
        after, spent = waited(), time.perf_counter() - begun
        return None if before is None or after is None else (after - before) / spent / threads

    return share


def processor(device: torch.device | None = None) -> str:
    """What computes here, as it names itself, and with how many threads."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    count = torch.get_num_threads()
    return f"{named or platform.machine()}, {count} thread{'s' * (count != 1)}"


def forward(model: nn.Module, images: torch.Tensor) -> Call:
    """One forward pass, finished when it returns."""

    @torch.inference_mode()
    def call() -> None:
        model(images)
        if images.device.type != "cpu":
            torch.accelerator.synchronize()

    return call


def milliseconds(models: Sequence[nn.Module], input: Sequence[int], clock: Clock = time.perf_counter) -> list[float]:
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
    calls = [forward(model, image) for model in models]
    rounds, halves = ROUNDS, (0.0, 0.0)
    for _ in range(TRIES):
        spent = turns(calls, rounds, clock)
        found = [_typical(times) for times in spent]
        # The machine is judged by all of a round: one model alone may be faster than its clock is fine.
        sums = [sum(each) for each in zip(*spent, strict=True)]
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
