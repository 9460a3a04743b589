"""`pick`: the most accurate model that is fast enough on this machine, chosen before any weights are fetched."""

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from msgspec import Struct, to_builtins

from zoo.catalog.dense import DATA
from zoo.errors import BudgetError
from zoo.hub.repository import versions
from zoo.measurement.latency import processor, waiting
from zoo.printable import logger
from zoo.progress import bar
from zoo.structure.description import DEFAULT_TASK
from zoo.verbs.benching import check_backend, check_counts, threaded
from zoo.verbs.contenders import Contender, Limits, contenders, load_lines
from zoo.verbs.halving import Found, bests, front, search
from zoo.verbs.timings import known
from zoo.verbs.watch import Watch

log = logger(__name__)

SECONDS = 60.0  # for glances; a warm cache needs none


class Choice(Struct, frozen=True):
    """One model that was timed.

    Args:
        name: as `load` takes it.
        top1: accuracy, 0..1.
        reported: whether a source says so; False where it was measured by this project.
        compressed: whether it was made smaller than a dense base.
        ms: milliseconds of one call.
        low, high: the interval of that; None after a glance, which has none.
        params: parameters.
        macs: multiply-accumulates of one image.
        side: of the images in pixels.
        license: of the weights.
        stand_in: whether its exact widths are known only after conversion.
        load: Python that loads it.
    """

    name: str
    top1: float
    reported: bool
    compressed: bool
    ms: float
    low: float | None
    high: float | None
    params: float | None
    macs: float | None
    side: int
    license: str | None
    stand_in: bool
    load: tuple[str, ...]


class Pick(Struct, frozen=True):
    """What was picked, and from what.

    Args:
        winner: the most accurate model within the limit; without a limit the fastest.
        ties: names of those that can't be told from it.
        front: the models of which none that is as fast is more accurate, from the slowest on.
        compressed: the best compressed model within the limit; None where there is none.
        dense: the best dense one.
        contenders: structures that fitted what was asked beside latency.
        timed: those that were timed, now or before.
        open: how many might be better and weren't looked at for want of time.
        left_out: why other models weren't contenders → how many.
        refused: name → why it couldn't be timed.
        conditions: machine, versions and whatever else timings hold for.
        seconds: that it took.
        waited: share of it for which the threads were ready and others had the cores; None where no Linux tells.
    """

    winner: Choice
    ties: list[str]
    front: list[Choice]
    compressed: Choice | None
    dense: Choice | None
    contenders: int
    timed: list[Choice]
    open: int
    left_out: dict[str, int]
    refused: dict[str, str]
    conditions: dict[str, Any]
    seconds: float
    waited: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain: dict[str, Any] = to_builtins(self)
        return plain


def pick(
    max_latency_ms: float | None = None,
    *,
    max_params: float | None = None,
    max_macs: float | None = None,
    min_top1: float | None = None,
    max_memory_mb: float | None = None,
    licenses: Sequence[str] = (),
    dataset: str = DATA,
    task: str = DEFAULT_TASK,
    device: str | torch.device = "cpu",
    batch: int = 1,
    threads: int | None = None,
    backend: str = "eager",
    dtype: torch.dtype | None = None,
    clock: str = "wall",
    seconds: float = SECONDS,
    fresh: bool = False,
) -> Pick:
    """Pick the most accurate model that is fast enough on this machine; no weights are fetched.

    Contenders are the catalog's models and timm's dense classifiers whose accuracy is known. Few of them are timed: see
    `zoo.verbs.halving`. What was timed is kept under the cache of this machine, unless others had the cores meanwhile.

    Args:
        max_latency_ms: milliseconds of one call at most; None picks the fastest of what else is asked.
        max_params: parameters at most.
        max_macs: multiply-accumulates of one image at most.
        min_top1: accuracy at least, 0..1.
        max_memory_mb: megabytes of the weights, in single precision, at most.
        licenses: one of these, the Hub's ids; none allows any.
        dataset: that the accuracies are of; those of different data sets aren't compared.
        task: the Hub's name of it.
        device: where they compute.
        batch: images of one call.
        threads: of torch and onnxruntime; None is what torch has.
        backend: `eager`, `compile` or `onnxruntime`.
        dtype: of the floats; None keeps each model's own.
        clock: `wall`, or `cpu`, as for `zoo.bench`.
        seconds: after which no other model is looked at.
        fresh: time again what was timed before.

    Returns:
        What was timed, the front and its winner.

    Raises:
        BudgetError: nothing is asked, or no model is as fast; the message says which is the fastest.
        DataError: of no such data set an accuracy is known.
        StructureError: the device, or the backend, isn't here; or an option can't be.

    Example:
        zoo.pick(8, licenses=["apache-2.0"]).winner.name
    """
    begun = time.monotonic()
    _check(max_latency_ms, min_top1)
    check_counts("pick", [("batch", batch), ("threads", threads)])
    check_backend("pick", backend, clock, device, dtype)
    limits = Limits(max_params, max_macs, min_top1, max_memory_mb, tuple(licenses))
    all, left_out = contenders(dataset, task, limits)
    if not all:
        raise BudgetError(f"pick: no model is as asked ({_told(left_out)}); ask for less")
    with threaded(threads):
        waited = waiting(torch.get_num_threads())
        conditions = {
            "machine": processor(torch.device(device)),
            "device": str(device),
            "backend": backend,
            "batch": batch,
            "dtype": str(dtype).removeprefix("torch.") if dtype else "own",
            "clock": clock,
            "versions": {package: str(version) for package, version in versions().items()} | _computing(backend),
        }
        found = Found({}, {}) if fresh else Found(*known(conditions))
        known_before = sum(found.ms(each) < float("inf") for each in all)
        log.info(
            "%d structures may do, %d were timed here before; glances at others that may be the best take %g s at most",
            *(len(all), known_before, seconds),
        )
        with bar("glances", unit="model") as shown:
            watch = Watch(torch.device(device), batch, backend, dtype, clock, max_latency_ms, conditions, shown)
            search(all, max_latency_ms, watch.glance, watch.together, lambda: time.monotonic() - begun > seconds, found)
    timed = [each for each in all if found.ms(each) < float("inf")]
    if found.winner is None:
        raise BudgetError(_nothing(max_latency_ms, timed, found))
    turned = [each for each in all if each.structure in found.timings]
    best = {each.compressed: _choice(each, found) for each in bests(turned, max_latency_ms, found)}
    return Pick(
        _choice(found.winner, found),
        [each.name for each in found.ties],
        [_choice(each, found) for each in front(turned, max_latency_ms, found)],
        best.get(True),
        best.get(False),
        len(all),
        [_choice(each, found) for each in timed],
        found.open,
        left_out,
        found.refused,
        conditions,
        time.monotonic() - begun,
        waited(),
    )


def _check(limit: float | None, min_top1: float | None) -> None:
    if limit is None and min_top1 is None:
        raise BudgetError(
            "pick: say how fast it must be, or how accurate: max_latency_ms=8 or min_top1=0.8 "
            "(--max-latency-ms 8, --min-top1 0.8)"
        )
    if limit is not None and not limit > 0:
        raise BudgetError(f"pick: max_latency_ms is {limit!r}, expected milliseconds above 0")
    if min_top1 is not None and not 0 < min_top1 <= 1:
        raise BudgetError(f"pick: min_top1 is {min_top1!r}, expected a share above 0, at most 1, such as 0.8")


def _computing(backend: str) -> dict[str, str]:
    """The version of what computes in torch's place."""
    return {backend: importlib.metadata.version(backend)} if backend == "onnxruntime" else {}


def _told(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def _nothing(limit: float | None, timed: Sequence[Contender], found: Found) -> str:
    if not timed:
        name, why = next(iter(found.refused.items()), ("any", "there was no time"))
        return f"pick: no model could be timed: {name}: {why}"
    fastest = min(timed, key=found.ms)
    return (
        f"pick: no model takes at most {limit:g} ms here; the fastest of {len(timed)} that were timed is "
        f"{fastest.name} with {found.ms(fastest):.3g} ms (top1 {fastest.top1:.1%}): ask for more, or for less beside it"
    )


def _choice(contender: Contender, found: Found) -> Choice:
    timing = found.timings.get(contender.structure)
    interval = (timing.low, timing.high) if timing else (None, None)
    same = {name: getattr(contender, name) for name in ("name", "top1", "reported", "compressed")}
    more = {name: getattr(contender, name) for name in ("params", "macs", "side", "license", "stand_in")}
    return Choice(**same, ms=found.ms(contender), low=interval[0], high=interval[1], **more, load=load_lines(contender))
