"""MRT: CortexFoundation's scheme of integers, for fidelity to what it published.

    s = 127/th,   q = clip(round(x·s), -127, 127),   th = α = |mean x| + λ·std x where α < 0.95·max|x|, else max|x|

One step for each tensor, of weights too; what a layer computes is requantized by m·2^-k ≈ s_y/(s_x·s_w), m of 15 bits.
Signed bytes are stored as what they are above -128, so that of what a ReLU gives 7 bits are used.

Source: CortexFoundation, MRT, https://github.com/CortexFoundation/cvm-runtime/blob/b5a25188/docs/mrt, and
python/mrt/tfm_utils.py of the same.
"""

import functools

import torch
from torch import Tensor

from zoo.compression.integer.layers import MAX_BIAS
from zoo.compression.integer.steps import LEAST, Step, ratio
from zoo.compression.integer.writing import Layer, Scheme, Writing
from zoo.structure.graph.certificate import ACCUMULATOR
from zoo.structure.graph.graph import Node
from zoo.structure.graph.integer import BYTE

MOST = 127
NEAR = 0.95  # of the largest, from which that is the threshold
ZERO = 128


def threshold(values: Tensor, low: float, high: float, *, free: bool, deviations: float) -> Step:
    """The step of a tensor; `deviations` is λ, 0 takes the largest value."""
    largest = max(-low, high, LEAST)
    if deviations:
        reach = abs(float(values.mean())) + deviations * float(values.std())
        largest = reach if 0 < reach < NEAR * largest else largest
    return Step(largest / MOST, ZERO)


def _pixels(low: float, high: float, *, free: bool) -> Step:
    return Step(max(-low, high) / MOST, ZERO)


def _weigh(writing: Writing, first: Node, last: Node, layer: Layer) -> None:
    x, y = layer.step, writing.plan.steps[last.name]
    most = 2 ** (writing.how.bits - 1) - 1
    step = max(float(layer.weight.abs().max()), LEAST) / most
    whole = (layer.weight / step).round().clamp(-most, most)
    limit = (ACCUMULATOR - 1 - whole.abs().flatten(1).sum(1) * BYTE).clamp(max=MAX_BIAS)
    tensors = {
        "weight": whole.to(torch.int8),
        "bias": (layer.bias / (step * x.step)).round().clamp(-limit, limit).to(torch.int32),
    }
    told = {**layer.sizes, "zero": x.zero, **_scale(x.step * step / y.step)}
    writing.give(first, last, layer.op.replace("q", "mrt_", 1), [layer.source], y, **told, tensors=tensors)


def _sum(writing: Writing, first: Node, last: Node) -> None:
    y = writing.plan.steps[last.name]
    names, steps = map(list, zip(*(writing.bytes_of(first, number) for number in (0, 1)), strict=True))
    if first.op == "sub":
        names[1], steps[1] = writing.negative(first, names[1], steps[1])
    ratios = [_scale(step.step / y.step) for step in steps]
    multipliers, shifts = ([each[key] for each in ratios] for key in ("multiplier", "shift"))
    told = {"zeros": [step.zero for step in steps], "multipliers": multipliers, "shifts": shifts}
    writing.give(first, last, "mrt_add", names, y, **told)


def _product(writing: Writing, first: Node, last: Node) -> None:
    y = writing.plan.steps[last.name]
    names, steps = zip(*(writing.bytes_of(first, number) for number in (0, 1)), strict=True)
    told = _scale(steps[0].step * steps[1].step / y.step)
    writing.give(first, last, "mrt_mul", names, y, zeros=[step.zero for step in steps], **told)


def _scale(value: float) -> dict[str, int]:
    """A ratio of at most 2^14, above which all is clipped."""
    multiplier, shift = ratio(min(max(value, 2.0**-46), 2.0**13))
    return {"multiplier": multiplier, "shift": shift}


def scheme(deviations: float) -> Scheme:
    """What MRT does otherwise; `deviations` is λ."""
    choose = functools.partial(threshold, deviations=deviations)
    return Scheme(choose, _pixels, _weigh, {"add": _sum, "sub": _sum, "mul": _product}, low=ZERO - MOST)
