"""Quotients: the integer ops that divide by what they are given, and roots of sums of squares.

    quotient    q = ⌊(a - z_a)·m·2^-e / max(b - z_b, 1) + 1/2⌋
    mean        q = ⌊Σ(x - z)·m·2^-e / N + 1/2⌋,   N of the window's pixels that lie within the map
    root        q = ⌊√(4^k·Σ(x - z)²)⌋·m·2^-(e + k)

A quotient of whole numbers n and d lies 1/2d from a half at least, or on one. Double precision rounds it twice, by
(n/d + 1)·2^-53 at most each time, so that the same comes out as in whole numbers where n + d < 2^51, which the
certificate sees to. k, which makes the root finer, is the largest by which nothing reaches 2^62.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.structure.graph.checks import check_whole, check_windows, check_words
from zoo.structure.graph.integer import BYTE
from zoo.structure.graph.ops import Op
from zoo.structure.graph.tokens import DOUBLE, MAX_TERMS, ROOT, WORD, Reduced, Scaled, isqrt

EXACT = 2**51  # of numerator and denominator together
_MOST = WORD + BYTE
_OUT = ("out_zero", "low", "high")


class _Divided(Scaled):
    """A quotient, rounded; arguments as `Scaled`'s."""

    divisor: int  # at most

    def divided(self, numerator: Tensor, divisor: Tensor) -> Tensor:
        """Whole numbers in double precision → what is given."""
        scaled = numerator * (self.multiplier * 2.0**-self.exponent)
        return self.stored((scaled / divisor + 0.5).floor())

    def terms(self) -> int:
        """The most that the numerator can be."""
        raise NotImplementedError

    def bound(self) -> int:
        """The most that numerator and denominator can be together, less what is left to 2^53."""
        numerator = (self.terms() * self.multiplier) << max(-self.exponent, 0)
        return (numerator + (self.divisor << max(self.exponent, 0))) * (DOUBLE // EXACT)


class QDiv(_Divided):
    """A quotient of two activations, the second of which stands for what is above 0; arguments as `Scaled`'s.

    Args:
        zeros: of both.
        multiplier: as for `Scaled`, and what follows.
    """

    divisor = _MOST

    def __init__(
        self, zeros: Sequence[int], multiplier: int, exponent: int, out_zero: int = 0, low: int = 0, high: int = BYTE
    ) -> None:
        super().__init__(multiplier, exponent, out_zero, low, high)
        check_whole("zeros", zeros, 0, BYTE)
        if len(zeros) != 2:
            raise ValueError(f"zeros are {zeros}, expected two")
        self.zeros = tuple(zeros)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two tensors of bytes or words, one of which may be repeated, → bytes or words."""
        check_words(a, b)
        a, b = (x.to(torch.float64) - zero for x, zero in zip((a, b), self.zeros, strict=True))
        return self.divided(a, b.clamp(min=1))

    def terms(self) -> int:
        """Of one word."""
        return _MOST


class QMeanPool2d(_Divided):
    """The mean over windows, of which only what lies within the maps counts.

    Args:
        kernel_size: of the windows.
        stride: of the same.
        padding: of the same.
        ceil_mode: windows may hang over.
        multiplier: as for `Scaled`, and what follows.
        zero: of what is read.
    """

    divisor = MAX_TERMS

    def __init__(
        self,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] = (0, 0),
        ceil_mode: bool = False,
        multiplier: int = 1,
        exponent: int = 0,
        zero: int = 0,
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        super().__init__(multiplier, exponent, out_zero, low, high)
        check_whole("zero", [zero], 0, BYTE)
        check_whole("kernel_size", kernel_size, 1, 181)  # MAX_TERMS at most
        check_windows(kernel_size, stride, padding)
        self.kernel_size, self.stride, self.padding = tuple(kernel_size), tuple(stride), tuple(padding)
        self.ceil_mode, self.zero = ceil_mode, zero

    def forward(self, x: Tensor) -> Tensor:
        """Bytes or words [B, C, H, W] → the same [B, C, H', W']."""
        check_words(x)
        values = x.to(torch.float64) - self.zero
        return self.divided(self.sums(values), self.sums(torch.ones_like(values[:1, :1])))

    def sums(self, x: Tensor) -> Tensor:
        """Over windows, of nothing beyond the maps."""
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, divisor_override=1)

    def terms(self) -> int:
        """Of the largest window."""
        return self.kernel_size[0] * self.kernel_size[1] * _MOST


class QRoot(Reduced):
    """The root of a sum of squares; arguments as `Reduced`'s."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → without those axes."""
        check_words(x)
        finer = self.finer(self.count(x), x.dtype == torch.uint8)
        squares = (x.to(torch.int64) - self.zero).square().sum(self.dim, keepdim=self.keepdim)
        return self.scaled(isqrt(squares << (2 * finer)).to(torch.float64) * 2.0**-finer)

    def finer(self, count: int, of_bytes: bool) -> int:
        """K of so many values."""
        room = ROOT // (count * (BYTE if of_bytes else _MOST) ** 2 + 1)
        if not room:
            raise ValueError(f"{count:,} squares are added up: too many for 64 bits")
        return (room.bit_length() - 1) // 2

    def bound(self) -> int:
        """Of a root below 2^31."""
        return 2**31 * self.multiplier


QUOTIENTS: Mapping[str, Op] = {
    "qdiv": Op(QDiv, ("zeros", "multiplier", "exponent", *_OUT)),
    "qmean_pool2d": Op(
        QMeanPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "multiplier", "exponent", "zero", *_OUT),
    ),
    "qroot": Op(QRoot, ("dim", "keepdim", "multiplier", "exponent", "zero", *_OUT)),
}
"""Module ops, by their names in a graph."""
