"""Layers: the whole numbers that stand for one layer's weights.

A layer with weights W reads bytes of step s_x and gives bytes of step s_y; the numbers of output o are

    w = round(W_o·(s_x/s_y)·2^e_o),   bias = round(b_o/s_y·2^e_o)

with e_o the largest by which |w| stays within its bits, any two of the output within 128 (so that pairs of products fit
16 bits), |bias| below 2^30, and e_o ≤ 15. So requantizing is a shift by e_o, and no step needs a multiplication.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.compression.integer.observing import Inputs
from zoo.compression.integer.rounding import gptq, nearest
from zoo.printable import logger
from zoo.structure.graph.certificate import ACCUMULATOR
from zoo.structure.graph.integer import BYTE, MAX_EXPONENT, MAX_WEIGHT

log = logger(__name__)

MOST = {8: (127, 2 * MAX_WEIGHT), 6: (31, 62), 4: (7, 14)}
"""Bits of a weight → its largest magnitude, and that of two of one output together."""
MAX_BIAS = 2**30


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded.

    Args:
        bits: of each, a key of `MOST`.
        gptq: make up for what is lost by the inputs that were seen; else take the nearest.
        correct: make up in the biases for what rounding shifts on average.
    """

    bits: int
    gptq: bool
    correct: bool


def quantized(
    path: str, weight: Tensor, bias: Tensor, gain: float, step: float, inputs: Inputs | None, how: Rounding
) -> dict[str, Tensor]:
    """Round a layer.

    Args:
        path: of the layer, for messages.
        weight: [O, ...], in double precision.
        bias: [O], in double precision.
        gain: s_x/s_y.
        step: s_y.
        inputs: what was seen of what it reads; None rounds to the nearest.
        how: it is rounded.

    Returns:
        `weight` int8 as it was, `bias` int32 [O] and `exponent` int8 [O].
    """
    rows, (most, two) = weight.flatten(1), MOST[how.bits]
    largest, both = rows.abs().amax(1) * gain, _two(rows) * gain
    powers = torch.minimum(exponents(largest, most + 0.49, MAX_EXPONENT), exponents(both, two, MAX_EXPONENT))
    fitting = exponents(bias.abs() / step, MAX_BIAS, MAX_EXPONENT)
    if late := int((fitting < powers).sum()):
        log.warning("%s: the bias of %d outputs is beyond 32 bits of their weights' step: that is raised", path, late)
    powers = torch.minimum(powers, fitting)
    scale = torch.ldexp(torch.ones_like(bias), powers)
    units = rows * (gain * scale)[:, None]
    whole = nearest(units, most)
    if inputs is not None and how.gptq and inputs.squares is not None:
        grouped = units.unflatten(0, (len(inputs.squares), -1))
        whole = gptq(grouped, inputs.squares / inputs.count, most).flatten(0, 1).double()
    if (over := _two(whole) > two).any():  # rounding made two of them larger together
        powers = powers - over.to(powers)
        scale = torch.ldexp(torch.ones_like(bias), powers)
        whole = torch.where(over[:, None], nearest(rows * (gain * scale)[:, None], two // 2), whole)
    if inputs is not None and how.correct:
        lost = rows - whole / (gain * scale)[:, None]
        mean = (inputs.sums.double() / inputs.count).repeat_interleave(len(rows) // len(inputs.sums), 0)
        bias = bias + (lost * mean).sum(1)
    limit = ACCUMULATOR - 1 - whole.abs().sum(1) * BYTE  # of layers with very many inputs
    offset = (bias / step * scale).round().clamp(-limit, limit)
    return {
        "weight": whole.view_as(weight).to(torch.int8),
        "bias": offset.to(torch.int32),
        "exponent": powers.to(torch.int8),
    }


def _two(rows: Tensor) -> Tensor:
    """The magnitudes of the two largest of each output together [O]."""
    return rows.abs().topk(min(2, rows.shape[1]), 1).values.sum(1)


def exponents(largest: Tensor, most: float, limit: int) -> Tensor:
    """The largest e of each for which largest·2^e ≤ most, at most `limit`."""
    power = torch.log2(most / largest.clamp(min=math.ldexp(1.0, -60))).floor()
    return power.clamp(-MAX_EXPONENT, limit)
