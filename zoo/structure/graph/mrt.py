"""MRT: the integer ops of CortexFoundation's scheme, for fidelity to it.

One step for all weights of a layer; bytes are signed ones around 128; what is computed is requantized by a multiplier
of 15 bits and a shift, halves up:

    q = clip(⌊(⌊accumulator·m / 2^(k-1)⌋ + 1) / 2⌋ + zero)

Weights have up to 127, so that pairs of products may not fit 16 bits: these ops run here alone.

Source: CortexFoundation, MRT, https://github.com/CortexFoundation/cvm-runtime/blob/b5a25188/docs/mrt
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.structure.graph.checks import check_whole, check_words
from zoo.structure.graph.integer import BYTE, QConv2d, QLayer, QLinear, Quantized, exact
from zoo.structure.graph.ops import Op
from zoo.structure.graph.tokens import MAX_MULTIPLIER

MAX_SHIFT = 62
_OUT = ("out_zero", "low", "high")


class _Shifted(QLayer):
    """A layer that is requantized by a multiplier and a shift."""

    paired = False

    def _requantize_by(self, multiplier: int, shift: int) -> None:
        self.multiplier, self.shift = _ratio(multiplier, shift)
        del self.exponent

    def forward(self, x: Tensor) -> Tensor:
        """Bytes → bytes, or words."""
        wide = torch.float64
        with exact(x):
            accumulator = self.accumulated(x.to(wide) - self.zero, self.weight.to(wide), self.bias.to(wide))
            return self.stored(half_up(accumulator, self.multiplier, self.shift))


class MRTConv2d(_Shifted, QConv2d):
    """A convolution; arguments as `QConv2d`'s, and of the ratio."""

    def __init__(self, *args: Any, multiplier: int, shift: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._requantize_by(multiplier, shift)


class MRTLinear(_Shifted, QLinear):
    """A linear layer; arguments as `QLinear`'s, and of the ratio."""

    def __init__(self, *args: Any, multiplier: int, shift: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._requantize_by(multiplier, shift)


class MRTAdd(Quantized):
    """A sum of two, each brought to the step of what is given.

    Args:
        zeros: of both.
        multipliers: of both.
        shifts: of both.
        out_zero: as for `Quantized`, and `low` and `high`.
    """

    def __init__(
        self,
        zeros: Sequence[int],
        multipliers: Sequence[int],
        shifts: Sequence[int],
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        super().__init__(out_zero, low, high)
        if not len(zeros) == len(multipliers) == len(shifts) == 2:
            raise ValueError(f"zeros, multipliers and shifts are {zeros}, {multipliers}, {shifts}, expected two each")
        check_whole("zeros", zeros, 0, BYTE)
        self.zeros = tuple(zeros)
        self.ratios = tuple(_ratio(*pair) for pair in zip(multipliers, shifts, strict=True))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two tensors of bytes, one of which may be repeated, → bytes."""
        check_words(a, b)
        sides = zip((a, b), self.zeros, self.ratios, strict=True)
        a, b = (half_up(x.to(torch.float64) - zero, *ratio) for x, zero, ratio in sides)
        return self.stored(a + b)


class MRTMul(Quantized):
    """A product of two.

    Args:
        zeros: of both.
        multiplier: of the product.
        shift: of the same.
        out_zero: as for `Quantized`, and `low` and `high`.
    """

    def __init__(
        self, zeros: Sequence[int], multiplier: int, shift: int, out_zero: int = 0, low: int = 0, high: int = BYTE
    ) -> None:
        super().__init__(out_zero, low, high)
        if len(zeros) != 2:
            raise ValueError(f"zeros are {zeros}, expected two")
        check_whole("zeros", zeros, 0, BYTE)
        self.zeros, self.ratio = tuple(zeros), _ratio(multiplier, shift)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two tensors of bytes, one of which may be repeated, → bytes."""
        check_words(a, b)
        a, b = (x.to(torch.float64) - zero for x, zero in zip((a, b), self.zeros, strict=True))
        return self.stored(half_up(a * b, *self.ratio))


def half_up(accumulator: Tensor, multiplier: int, shift: int) -> Tensor:
    """⌊(⌊accumulator·m / 2^(k-1)⌋ + 1) / 2⌋ of whole numbers below 2^31 in double precision.

    >>> half_up(torch.tensor([-3.0, -1.0, 1.0, 3.0]).double(), 1, 1).tolist()
    [-1.0, 0.0, 1.0, 2.0]
    """
    return (((accumulator * multiplier * 2.0 ** (1 - shift)).floor() + 1) / 2).floor()


def _ratio(multiplier: int, shift: int) -> tuple[int, int]:
    check_whole("multiplier", [multiplier], 1, MAX_MULTIPLIER)
    check_whole("shift", [shift], 1, MAX_SHIFT)
    return multiplier, shift


_LAYER = ("zero", *_OUT, "multiplier", "shift")
MRT: Mapping[str, Op] = {
    "mrt_conv2d": Op(
        MRTConv2d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", *_LAYER),
    ),
    "mrt_linear": Op(MRTLinear, ("in_features", "out_features", *_LAYER)),
    "mrt_add": Op(MRTAdd, ("zeros", "multipliers", "shifts", *_OUT)),
    "mrt_mul": Op(MRTMul, ("zeros", "multiplier", "shift", *_OUT)),
}
"""Module ops, by their names in a graph."""
