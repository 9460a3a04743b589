"""Latency: the share of the macs that a method may keep so that a model takes so many milliseconds on this machine.

Macs tell latency badly: widths that kernels like count, and so do memory and what isn't multiplied. So it is timed. A
rough cut, one share for all that needs no images, costs a second: of some shares such cuts are timed beside the dense
model, ms(share) is drawn straight between them, and where it crosses what is asked another is timed. The method runs
at the share found, and what it makes is timed too. It distributes the macs otherwise than a rough cut: where it misses,
by a ratio r, it runs once more at the share whose rough cut takes 1/r of what is asked.
"""

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from zoo.errors import BudgetError
from zoo.measurement.latency import STEADY, milliseconds
from zoo.measurement.macs import input_size
from zoo.printable import logger

log = logger(__name__)

SHARES = (0.75, 0.5, 0.3, 0.15, 0.05)  # of rough cuts
AGAIN = 3  # timings, where the machine is slower or faster than it was
LOOKS = 2  # where what is asked seems to be
OVER, UNDER = 0.03, 0.1  # by which a result may miss, as a share of what is asked

Rough = Callable[[float], nn.Module]
"""A share of the macs → a cut of about its structure; a BudgetError where none is as small."""
Timed = Callable[..., list[float]]
"""Models → milliseconds of the dense one, and of each of them."""


def reached(dense: nn.Module, ms: float, rough: Rough, made: Callable[[float], nn.Module]) -> nn.Module:
    """Compress a model until it takes so many milliseconds for one image here.

    Args:
        dense: in eval mode, where it is to be timed.
        ms: milliseconds of the smaller model, at most.
        rough: cuts that tell which share that needs.
        made: a share of the macs → what the method makes of the model.

    Returns:
        What the method made, of two results the better one.

    Raises:
        BudgetError: no cut is as fast, the dense model is, or the machine is too noisy to tell.
    """
    size = input_size(dense)

    def timed(*models: nn.Module) -> list[float]:
        return milliseconds([dense, *models], size)

    curve, whole = _curve(ms, rough, timed)
    share = share_at(curve, ms)
    log.info("latency: %.3g ms asked, the dense model takes %.3g: about %.1f %% of the macs", ms, whole, 100 * share)
    tries: list[tuple[float, nn.Module]] = []
    for again in (True, False):
        smaller = made(share)
        took = _beside(smaller, whole, timed, ms)
        tries.append((took, smaller))
        if not again or (1 - UNDER) * ms <= took <= (1 + OVER) * ms:
            break
        other = share_at(curve, ms * float(np.interp(share, *_sorted(curve))) / took)
        if abs(other - share) < 0.01:  # no other widths
            break
        share = other
    within = [each for each in tries if each[0] <= (1 + OVER) * ms]
    took, smaller = max(within, key=_first) if within else min(tries, key=_first)
    if not within:
        log.warning("latency: %.3g ms is the least that was reached, %.3g asked", took, ms)
    return smaller


def _beside(smaller: nn.Module, whole: float, timed: Timed, ms: float) -> float:
    """Milliseconds of a model, as the machine was when the dense one took `whole`; timed while it is so again."""
    now, took = timed(smaller)
    for _ in range(AGAIN):
        if abs(now - whole) <= STEADY * whole:
            break
        now, took = timed(smaller)
    log.info("latency: %.3g ms measured, %.3g asked, dense %.3g", took, ms, now)
    return took * whole / now


def _first(pair: tuple[float, nn.Module]) -> float:
    return pair[0]


def _curve(ms: float, rough: Rough, timed: Timed) -> tuple[dict[float, float], float]:
    """Share of the macs → milliseconds of a rough cut, 1 the dense model's; and these."""
    cuts: dict[float, nn.Module] = {}
    for share in SHARES:
        try:
            cuts[share] = rough(share)
        except BudgetError:  # so does every smaller one
            break
    if not cuts:
        raise BudgetError("latency: next to nothing of the model can be cut")
    whole, *times = timed(*cuts.values())
    curve = {1.0: whole, **dict(zip(cuts, times, strict=True))}
    if whole <= ms:
        raise BudgetError(f"latency of {ms:g} ms: the dense model takes {whole:.3g} ms here; ask for less")
    if min(times) > ms:
        raise BudgetError(
            f"latency of {ms:g} ms can't be met: the smallest cut that was tried, {min(cuts):.0%} of the macs, takes "
            f"{curve[min(cuts)]:.3g} ms here, the dense model {whole:.3g}; ask for more"
        )
    for _ in range(LOOKS):
        share = share_at(curve, ms)
        if min(abs(share - known) for known in curve) < 0.02:
            break
        now, took = timed(rough(share))
        curve[share] = took * whole / now  # as the machine was when the others were timed
    return curve, whole


def share_at(curve: Mapping[float, float], ms: float) -> float:
    """The share whose cut takes so long: straight between those known; a smaller one takes no longer.

    >>> round(share_at({1.0: 10.0, 0.5: 6.0, 0.25: 5.5}, 8.0), 3)
    0.75
    """
    shares, times = _sorted(curve)
    return float(np.interp(ms, times, shares))


def _sorted(curve: Mapping[float, float]) -> tuple[list[float], list[float]]:
    shares = sorted(curve)
    times = np.maximum.accumulate([curve[share] for share in shares])
    return shares, (times + 1e-9 * np.arange(len(times))).tolist()
