"""Tokens: the integer ops of transformers and of norms: products of two activations, sums, softmax, and normalizing.

What they read and give are bytes or words, whole numbers of 16 bits with a sign, which a stream of residuals has.
Accumulators stay below 2^53 in double precision, or below 2^62 where they are int64; roots and quotients are those of
whole numbers, so that no digit depends on how a machine divides.

    softmax     p_i = ⌊(2^(b+1)·e_i + Σe) / (2·Σe)⌋,   e_i = T₁[d >> 8]·T₀[d & 255],   d = max x - x_i
    norm        y = ⌊(2^(k+13)·d + r) / 2r⌋·w + bias,   d = n·x - Σx,   r = ⌊√(4^k·(n·Σx² - (Σx)² + ε))⌋

k, which makes the root finer, is the largest by which nothing reaches 2^62, nor 2^78/n of n values. So many words that
they would by themselves are halved before, ⌊x/2^c + 1/2⌋, as often as it takes.

Source: Kim et al., I-BERT (ICML 2021), https://arxiv.org/abs/2101.01321, for the order of the steps; its polynomials
are tables here.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo.structure.graph.checks import check_whole, check_words
from zoo.structure.graph.integer import BYTE, Quantized, exact, is_traced, powers
from zoo.structure.graph.ops import Op

WORD = 2**15 - 1  # the largest magnitude of a word
MAX_TERMS = 2**15  # of one sum of products
MAX_MULTIPLIER = 2**15 - 1
MAX_RATIO = 124  # of two, either way
DOUBLE = 2**53  # below which double precision holds every whole number
ROOT = 2**62  # below which the root of a whole number is exact
FRACTION = 12  # bits of what is normalized, after the point
EPS = 16  # bits of ε, after the point
ONE = 2**15  # of tables of exponentials
_OUT = ("out_zero", "low", "high")


class Scaled(Quantized):
    """What is requantized by any ratio: round(accumulator·multiplier·2^-exponent) + zero, clamped.

    Args:
        multiplier: of 15 bits.
        exponent: of the ratio.
        out_zero: as for `Quantized`, and `low` and `high`.
    """

    def __init__(self, multiplier: int, exponent: int, out_zero: int, low: int, high: int) -> None:
        super().__init__(out_zero, low, high)
        check_whole("multiplier", [multiplier], 1, MAX_MULTIPLIER)
        check_whole("exponent", [exponent], -MAX_RATIO, MAX_RATIO)
        self.multiplier, self.exponent = multiplier, exponent

    def scaled(self, accumulator: Tensor) -> Tensor:
        """Whole numbers in double precision → what is given."""
        return self.stored(accumulator * self.multiplier * 2.0**-self.exponent)

    def bound(self) -> int:
        """The most that the accumulator can be, multiplied."""
        raise NotImplementedError


class QRescale(Scaled):
    """Bytes or words at another step: (x - zero)·multiplier·2^-exponent; arguments as `Scaled`'s."""

    def __init__(
        self, multiplier: int, exponent: int, zero: int = 0, out_zero: int = 0, low: int = 0, high: int = BYTE
    ) -> None:
        super().__init__(multiplier, exponent, out_zero, low, high)
        self.zero = _byte(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        check_words(x)
        return self.scaled(x.to(torch.float64) - self.zero)

    def bound(self) -> int:
        """Of a word."""
        return (WORD + BYTE) * self.multiplier


class Reduced(Scaled):
    """What is computed along axes.

    Args:
        dim: the axes, of which torch would take all where none is told.
        keepdim: they stay, with size 1.
        multiplier: as for `Scaled`, and what follows.
    """

    def __init__(
        self,
        dim: Sequence[int],
        keepdim: bool = False,
        multiplier: int = 1,
        exponent: int = 0,
        zero: int = 0,
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        super().__init__(multiplier, exponent, out_zero, low, high)
        if not dim:
            raise ValueError("dim is empty, expected the axes")
        self.dim, self.keepdim, self.zero = tuple(dim), keepdim, _byte(zero)

    def count(self, x: Tensor) -> int:
        """How many values become one."""
        return math.prod(x.shape[dim] for dim in self.dim)


class QSum(Reduced):
    """A sum; dividing by how many they are is left to the step of what is given. Arguments as `Reduced`'s."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → without those axes."""
        check_words(x)
        _few(self.count(x))
        return self.scaled((x.to(torch.float64) - self.zero).sum(self.dim, keepdim=self.keepdim))

    def bound(self) -> int:
        """Of MAX_TERMS words."""
        return MAX_TERMS * (WORD + BYTE) * self.multiplier


class QMatMul(Scaled):
    """A product of two activations, the first of bytes or words, the second of bytes: Σ (a - zeros[0])·(b - zeros[1]).

    Arguments as `Scaled`'s, and the zeros of both.
    """

    def __init__(
        self,
        zeros: Sequence[int],
        multiplier: int,
        exponent: int,
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        super().__init__(multiplier, exponent, out_zero, low, high)
        if len(zeros) != 2:
            raise ValueError(f"zeros are {zeros}, expected two")
        self.zeros = tuple(map(_byte, zeros))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., N, K] and [..., K, M] → [..., N, M]."""
        check_words(a)
        if b.dtype != torch.uint8:
            raise ValueError(f"the second factor is {b.dtype}, expected bytes")
        _few(b.shape[-2])
        a, b = (x.to(torch.float64) - zero for x, zero in zip((a, b), self.zeros, strict=True))
        with exact(a):
            return self.scaled(a @ b)

    def bound(self) -> int:
        """Of MAX_TERMS products of a word and a byte; a word has 0 as zero."""
        largest = WORD + self.zeros[0]
        return MAX_TERMS * largest * BYTE * self.multiplier


class QSoftmax(nn.Module):
    """Softmax along an axis, by two tables of exponentials, of the low and the high byte of what is below the largest.

    Args:
        dim: the axis.
        bits: of what is given, in which 1 is 2^bits: 8 of bytes, 15 of words, less one that wouldn't fit.
    """

    table: Tensor

    def __init__(self, dim: int, bits: int = 15) -> None:
        super().__init__()
        if bits not in (8, 15):
            raise ValueError(f"bits are {bits}, expected 8 or 15")
        self.dim, self.bits = dim, bits
        self.register_buffer("table", torch.zeros(2, 256, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Bytes or words → bytes or words."""
        check_words(x)
        _few(x.shape[self.dim])
        x = x.to(torch.int64)
        below = x.amax(self.dim, keepdim=True) - x
        low, high = self.table.to(torch.int64)
        raised = high[below >> 8] * low[below & BYTE]
        total = raised.sum(self.dim, keepdim=True)
        shares = torch.div((raised << (self.bits + 1)) + total, 2 * total, rounding_mode="floor")
        return shares.clamp(max=2**self.bits - 1).to(torch.uint8 if self.bits == 8 else torch.int32)

    def bound(self) -> int:
        """Of the numerator, 2^(bits + 1)·e + Σe.

        Raises:
            ValueError: the tables aren't of exponentials, which are 1 at 0 and in 0..1.
        """
        low, high = int(self.table.min()), int(self.table.max())
        if low < 0 or high > ONE or int(self.table[:, 0].min()) < ONE:
            raise ValueError(f"its exponentials are {low} to {high}, expected 0 to {ONE}, which the first are")
        return ONE * ONE * ((1 << (self.bits + 1)) + MAX_TERMS)


class QNorm(Quantized):
    """Normalize by mean and deviation, of the channels of each pixel or token or of groups of channels; scale, shift.

    Args:
        channels: C.
        axis: of the channels.
        groups: each normalized with all its pixels; without one, the channels of each pixel are.
        centered: the mean is taken off, else it is a norm by the root of the mean square.
        zero: of x.
        out_zero: as for `Quantized`, and `low` and `high`.
    """

    weight: Tensor
    bias: Tensor
    exponent: Tensor
    eps: Tensor

    def __init__(
        self,
        channels: int,
        axis: int = -1,
        groups: int | None = None,
        centered: bool = True,
        zero: int = 0,
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        super().__init__(out_zero, low, high)
        check_whole("channels", [channels], 1, 2**31 - 1)
        if groups is not None and (groups < 1 or channels % groups or axis != 1):
            raise ValueError(f"groups are {groups}, expected a divisor of the {channels} channels on axis 1")
        self.channels, self.axis, self.groups, self.centered = channels, axis, groups, centered
        self.zero = _byte(zero)
        self.register_buffer("weight", torch.zeros(channels, dtype=torch.int16))
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.int32))
        self.register_buffer("exponent", torch.zeros(channels, dtype=torch.int8))
        self.register_buffer("eps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Bytes or words → the same shape."""
        check_words(x)
        most = BYTE if x.dtype == torch.uint8 else WORD + self.zero
        x = x.to(torch.int64) - self.zero
        if self.groups is None:
            y = self.normalized(x, self.axis, most)
        else:
            y = self.normalized(x.reshape(len(x), self.groups, -1), -1, most).view_as(x)
        shape = [1] * x.ndim
        shape[self.axis] = -1
        accumulator = (y * self.weight.view(shape) + self.bias.view(shape)).to(torch.float64)
        return self.stored(accumulator * powers(self.exponent, torch.float64).view(shape))

    def normalized(self, x: Tensor, dim: int, most: int) -> Tensor:
        """Whole numbers of at most `most` → (x - mean)/deviation along an axis, 2^FRACTION times."""
        count = int(x.shape[dim])  # which torch.jit traces as a tensor
        if cut := coarser(count, most):
            x, most = (x + (1 << (cut - 1))) >> cut, (most >> cut) + 1
        if not (x.is_meta or is_traced()) and not room(count, most, int(self.eps) >> (2 * cut)):
            raise ValueError(f"{count} values with ε {int(self.eps)} are normalized at once: too many for 64 bits")
        eps = ((self.eps >> (2 * cut)) * count**2) >> EPS
        powers_of_4 = 1 << torch.arange(2, 62, 2, device=eps.device)
        finer = (squared(count) // (count**2 * most**2 + eps + 1) >= powers_of_4).sum()
        total = x.sum(dim, keepdim=True) if self.centered else torch.zeros_like(x.narrow(dim, 0, 1))
        spread = count * x.square().sum(dim, keepdim=True) - total.square() + eps
        root = isqrt(spread << (2 * finer)).clamp(min=1)
        numerator = (count * x - total) << (finer + FRACTION + 1)
        return torch.div(numerator + root, 2 * root, rounding_mode="floor")

    def bound(self) -> int:
        """The most that an output can be before its shift: |y| ≤ 2^(FRACTION + 1)·(√n + 1), as (x - mean)² ≤ n·var.

        Raises:
            ValueError: ε isn't 0 or more.
        """
        if int(self.eps) < 0:
            raise ValueError(f"its ε is {int(self.eps)}, expected 0 or more")
        count = self.channels if self.groups is None else MAX_TERMS * self.channels // self.groups
        largest = 2 ** (FRACTION + 1) * (math.isqrt(count) + 1) + 1
        weight = self.weight.to(torch.int64).abs()
        return int((weight * largest + self.bias.to(torch.int64).abs()).max())


class QEmbedding(nn.Module):
    """Numbers of words of a vocabulary → the bytes of each.

    Args:
        num_embeddings: how many there are.
        embedding_dim: bytes of each.
    """

    weight: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_embeddings, embedding_dim, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """[...] → [..., D]."""
        if x.is_floating_point():
            raise ValueError(f"what is read is {x.dtype}, expected bytes, words or token ids")
        return self.weight[x.to(torch.int64)]


def isqrt(x: Tensor) -> Tensor:
    """⌊√x⌋ of whole numbers in 0..2^62, whatever a machine's root rounds to.

    >>> isqrt(torch.tensor([0, 3, 4, 2**62 - 1])).tolist()
    [0, 1, 2, 2147483647]
    """
    root = x.to(torch.float64).sqrt().to(torch.int64)
    root = root - (root.square() > x).to(torch.int64)
    return root + ((root + 1).square() <= x).to(torch.int64)


def _byte(zero: int) -> int:
    check_whole("zero", [zero], 0, BYTE)
    return zero


def squared(count: int) -> int:
    """What a norm of this many values takes the root of stays below: 2^62, or 2^78/n, so that quotients are exact."""
    return min(ROOT, 2**78 // count)


def coarser(count: int, most: int) -> int:
    """How often values of at most `most` are halved, so that this many can be normalized at once."""
    return next(
        cut for cut in range(63) if 2 * (count * ((most >> cut) + bool(cut))) ** 2 <= squared(count) or not most >> cut
    )


def room(count: int, most: int, eps: int) -> int:
    """How many times as much as this many values of at most `most` can reach, is allowed."""
    return squared(count) // (count**2 * most**2 + (eps * count**2 >> EPS) + 1)


def _few(count: int) -> None:
    if count > MAX_TERMS:
        raise ValueError(f"{count:,} are added up, expected at most {MAX_TERMS:,}: give it smaller images")


TOKENS: Mapping[str, Op] = {
    "qrescale": Op(QRescale, ("multiplier", "exponent", "zero", *_OUT)),
    "qsum": Op(QSum, ("dim", "keepdim", "multiplier", "exponent", "zero", *_OUT)),
    "qmatmul": Op(QMatMul, ("zeros", "multiplier", "exponent", *_OUT)),
    "qsoftmax": Op(QSoftmax, ("dim", "bits")),
    "qnorm": Op(QNorm, ("channels", "axis", "groups", "centered", "zero", *_OUT)),
    "qembedding": Op(QEmbedding, ("num_embeddings", "embedding_dim")),
}
"""Module ops, by their names in a graph."""
