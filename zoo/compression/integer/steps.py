"""Steps: what one count of a byte stands for, so that the square of what is lost is least on the calibration images.

    x̂ = (clamp(round(x/step) + zero, 0, 255) - zero)·step;   step = argmin E[(x - x̂)²]

A step is a power of two, so that sums and products of what has others are requantized by shifts; where layers and
tables alone read a value, which take any step into their weights, it is free.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from zoo.structure.graph.integer import BYTE

OCTAVES = 3  # below the step that holds every value
PARTS = 8  # of an octave, of a free step
LEAST = 2.0**-60  # of a value that is always 0


@dataclass(frozen=True)
class Step:
    """What a byte stands for: (q - zero)·step; or a word, of 16 bits with a sign."""

    step: float
    zero: int = 0
    word: bool = False


def best(values: Tensor, low: float, high: float, *, free: bool) -> Step:
    """Choose a step.

    Args:
        values: drawn from those seen [N].
        low: the least of all that were seen.
        high: the largest.
        free: it needn't be a power of two.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    values = values.double()
    return min(_candidates(low, high, free), key=lambda step: float((values - _kept(values, step)).square().sum()))


def _candidates(low: float, high: float, free: bool) -> Iterator[Step]:
    whole = max((high - low) / BYTE, LEAST)
    first = whole if free else 2.0 ** math.ceil(math.log2(whole))
    for part in range(OCTAVES * (PARTS if free else 1) + 1):
        step = first * 2.0 ** (-part / (PARTS if free else 1))
        share = -low / max(step, (high - low) / BYTE)
        yield Step(step, min(max(round(share), 0), BYTE))


def _kept(values: Tensor, step: Step) -> Tensor:
    return (((values / step.step).round() + step.zero).clamp(0, BYTE) - step.zero) * step.step


def spanning(low: float, high: float, *, free: bool) -> Step:
    """The least step by which all fits; arguments as `best`'s."""
    zero = round(-low / (high - low) * BYTE)
    # By the share of each side, or pixels would all lie at halves where 0 does, and two of them become one.
    step = max(-low / max(zero, 1), high / max(BYTE - zero, 1))
    step = step if free else 2.0 ** math.ceil(math.log2(step))
    return Step(step, round(-low / step))


def wide(low: float, high: float) -> Step:
    """The step of what is given in 16 bits: the least power of two by which four times what was seen fits."""
    return Step(2.0 ** math.ceil(math.log2(max(-low, high, LEAST) / 2**13)), word=True)


def exponent(ratio: float) -> int | None:
    """The power of two that a ratio is; None where it is none.

    >>> exponent(0.25), exponent(3.0)
    (-2, None)
    """
    mantissa, power = math.frexp(ratio)
    return power - 1 if mantissa == 0.5 else None


def ratio(value: float) -> tuple[int, int]:
    """A ratio as multiplier·2^-exponent, the multiplier of 15 bits.

    >>> ratio(0.75)
    (24576, 15)
    """
    mantissa, power = math.frexp(value)
    multiplier = round(mantissa * 2**15)
    return (multiplier, 15 - power) if multiplier < 2**15 else (2**14, 14 - power)
