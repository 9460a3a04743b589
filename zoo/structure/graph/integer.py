"""Integer: the ops of a model that computes in integers alone, from its pixels to its logits.

An activation is a tensor of bytes q, which stand for (q - zero)·step; no step is stored but the last, as all others lie
in the weights and in exponents. Whatever an op computes is requantized by powers of two, halves to even:

    q = clamp(round(accumulator · 2^-exponent) + zero, low, high)

Every value up to there is a whole number below 2^24 in single precision or 2^53 in double, which both hold exactly, so
it makes no difference in which order, by which kernel, on how many threads or in which batch they are added up.

Source of the promise: CortexFoundation, MRT, https://github.com/CortexFoundation/cvm-runtime/blob/b5a25188/docs/mrt.
"""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.structure.graph.checks import check_bytes, check_whole, check_windows, check_words
from zoo.structure.graph.ops import Op

BYTE = 255  # the largest magnitude that an activation less its zero point has
SINGLE = 2**24  # below which single precision holds every whole number
MAX_WEIGHT = 64  # of two on average, so that processors which add two products in 16 bits, saturating, are exact
MAX_EXPONENT = 15  # whatever isn't saturated then lies below SINGLE before it is requantized
MAX_SPREAD = 15  # of the exponents of what is added: 8 bits and these fit single precision
MAX_POWER = 100  # of two, either way; single precision holds what is multiplied by it
_POWERS = torch.tensor([2.0**-exponent for exponent in range(-128, 128)], dtype=torch.float64)
_FAST_MATH = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


class Quantized(nn.Module):
    """What gives bytes; `low` and `high` outside of 0..255 give words, in int32, instead.

    Args:
        out_zero: the byte that stands for 0.
        low: of what is given, such as `out_zero` of what a ReLU follows.
        high: of the same.
    """

    def __init__(self, out_zero: int, low: int, high: int) -> None:
        super().__init__()
        check_whole("low, out_zero and high", [low, out_zero, high], -(2**31), 2**31 - 1)
        if not low <= out_zero <= high:
            raise ValueError(f"out_zero is {out_zero}, expected {low} to {high}")
        self.out_zero, self.low, self.high = out_zero, low, high

    def stored(self, value: Tensor) -> Tensor:
        """Whole numbers and halves → what is given."""
        q = (value.round() + self.out_zero).clamp(self.low, self.high)
        return q.to(torch.uint8 if self.low >= 0 and self.high <= BYTE else torch.int32)


class QLayer(Quantized):
    """A layer: bytes x, weights w of output o, a bias and an exponent for each: Σ w·(x - zero) + bias, requantized.

    Args:
        shape: of the weights [O, ...].
        zero: of x.
        out_zero: of what is given.
        low: of the same.
        high: of the same.
    """

    weight: Tensor
    bias: Tensor
    exponent: Tensor
    paired = True  # two products fit 16 bits

    def __init__(self, shape: Sequence[int], zero: int, out_zero: int, low: int, high: int) -> None:
        super().__init__(out_zero, low, high)
        check_whole("zero", [zero], 0, BYTE)
        check_whole("sizes of its weights", shape, 1, 2**31 - 1)
        self.zero = zero
        self.register_buffer("weight", torch.zeros(*shape, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.int32))
        self.register_buffer("exponent", torch.zeros(shape[0], dtype=torch.int8))

    def magnitudes(self) -> Tensor:
        """|w| of each output [O, K], as bytes on the CPU; -128, which its own absolute value is, reads 128."""
        return self.weight.cpu().flatten(1).abs().view(torch.uint8)

    def bound(self, magnitudes: Tensor | None = None) -> Tensor:
        """The most that the accumulator of each output can be, Σ|w|·255 + |bias|, in int64 on the CPU [O]."""
        magnitudes = self.magnitudes() if magnitudes is None else magnitudes
        sums = torch.from_numpy(magnitudes.numpy().sum(1, dtype="uint32"))  # in half of the time that torch takes
        return sums.to(torch.int64) * BYTE + self.bias.cpu().to(torch.int64).abs()

    def forward(self, x: Tensor) -> Tensor:
        """Bytes → bytes, or int32."""
        check_bytes(x)
        single = _keeps_single(x) and bool(x.is_meta or self.bound().max() < SINGLE)  # of the weights as they are now
        dtype = torch.float32 if single else torch.float64
        with exact(x):
            accumulator = self.accumulated(x.to(dtype) - self.zero, self.weight.to(dtype), self.bias.to(dtype))
            return self.stored(accumulator * self.scale(accumulator))

    def accumulated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Σ w·x + bias."""
        raise NotImplementedError

    def scale(self, accumulator: Tensor) -> Tensor:
        """2^-exponent, exactly, in the shape of the outputs."""
        return powers(self.exponent, accumulator.dtype)


class QConv2d(QLayer):
    """A convolution of bytes [B, C, H, W]; what lies outside counts as `zero`. Arguments as torch's and `QLayer`'s."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        zero: int = 0,
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        check_windows(kernel_size, stride, padding, dilation)
        check_whole("groups", [groups], 1, in_channels)
        super().__init__([out_channels, in_channels // groups, *kernel_size], zero, out_zero, low, high)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)

    def accumulated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return Σ w·x + bias [B, O, H', W']."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def scale(self, accumulator: Tensor) -> Tensor:
        """2^-exponent of each channel."""
        return super().scale(accumulator).view(1, -1, 1, 1)


class QLinear(QLayer):
    """A linear layer of bytes [..., C]. Arguments as torch's and `QLayer`'s."""

    def __init__(
        self, in_features: int, out_features: int, zero: int = 0, out_zero: int = 0, low: int = 0, high: int = BYTE
    ) -> None:
        super().__init__([out_features, in_features], zero, out_zero, low, high)
        self.in_features, self.out_features = in_features, out_features

    def accumulated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return Σ w·x + bias [..., O]."""
        return F.linear(x, weight, bias)


class QAdd(Quantized):
    """A sum: (a - zeros[0])·2^-exponents[0] + (b - zeros[1])·2^-exponents[1]; arguments as `Quantized`'s."""

    def __init__(
        self, zeros: Sequence[int], exponents: Sequence[int], out_zero: int = 0, low: int = 0, high: int = BYTE
    ) -> None:
        super().__init__(out_zero, low, high)
        check_whole("zeros", zeros, 0, BYTE)
        check_whole("exponents", exponents, -MAX_POWER, MAX_POWER)
        if len(zeros) != 2 or len(exponents) != 2 or abs(exponents[0] - exponents[1]) > MAX_SPREAD:
            raise ValueError(f"zeros and exponents are {zeros} and {exponents}, expected two each, at most 15 apart")
        self.zeros, self.exponents = tuple(zeros), tuple(exponents)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two tensors of bytes or words, one of which may be repeated, → bytes or words."""
        sides = zip((a, b), self.zeros, self.exponents, strict=True)
        dtype = _holding(a, b)
        a, b = ((x.to(dtype) - zero) * 2.0**-exponent for x, zero, exponent in sides)
        return self.stored(a + b)


class QMul(Quantized):
    """A product: (a - zeros[0])·(b - zeros[1])·2^-exponent; arguments as `Quantized`'s."""

    def __init__(self, zeros: Sequence[int], exponent: int, out_zero: int = 0, low: int = 0, high: int = BYTE) -> None:
        super().__init__(out_zero, low, high)
        check_whole("zeros", zeros, 0, BYTE)
        check_whole("exponent", [exponent], -MAX_POWER, MAX_POWER)
        if len(zeros) != 2:
            raise ValueError(f"zeros are {zeros}, expected two")
        self.zeros, self.exponent = tuple(zeros), exponent

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two tensors of bytes, one of which may be repeated, → bytes."""
        dtype = _holding(a, b)
        a, b = (x.to(dtype) - zero for x, zero in zip((a, b), self.zeros, strict=True))
        return self.stored(a * b * 2.0**-self.exponent)


class QAvgPool2d(Quantized):
    """A sum over windows, requantized; dividing by their size is left to the step of what is given.

    Args:
        kernel_size: of the windows; without one each map is summed up whole, to one pixel.
        stride: of the same.
        padding: of the same, with what stands for 0.
        zero: of what is summed up.
        exponent: of what is given.
        out_zero: as for `Quantized`, and `low` and `high`.
    """

    def __init__(
        self,
        kernel_size: Sequence[int] | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        zero: int = 0,
        exponent: int = 0,
        out_zero: int = 0,
        low: int = 0,
        high: int = BYTE,
    ) -> None:
        super().__init__(out_zero, low, high)
        check_whole("zero", [zero], 0, BYTE)
        check_whole("exponent", [exponent], -MAX_POWER, MAX_POWER)
        if kernel_size is not None:
            check_windows(kernel_size, stride, padding)
        self.kernel_size = None if kernel_size is None else tuple(kernel_size)
        self.stride, self.padding, self.zero, self.exponent = tuple(stride), tuple(padding), zero, exponent

    def forward(self, x: Tensor) -> Tensor:
        """Bytes or words [B, C, H, W] → the same [B, C, H', W']."""
        few = _holding(x) == torch.float32 and not is_traced() and x.shape[2] * x.shape[3] * BYTE < SINGLE
        x = x.to(torch.float32 if few else torch.float64) - self.zero
        if self.kernel_size is None:
            sums = x.sum((2, 3), keepdim=True)
        else:
            sums = F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, divisor_override=1)
        return self.stored(sums * 2.0**-self.exponent)


class QTable(nn.Module):
    """Any function of one byte: its 256 values."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(256, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Bytes → bytes."""
        check_bytes(x)
        return self.table[x.to(torch.int64)]


class QInput(nn.Module):
    """Images → bytes: a table of 256 values for each channel, read by the pixels.

    Images are bytes 0..255, or floats that were normalised from these: those are taken back to the nearest byte, so
    that what a model is given may differ in its last digits between machines, and what it computes doesn't.

    Args:
        mean: of each channel, of 0..1.
        std: the same of the standard deviation.
    """

    table: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(each > 0 for each in std):
            raise ValueError(f"mean and std are {mean} and {std}, expected one each a channel, std above 0")
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("table", torch.zeros(len(mean), 256, dtype=torch.uint8))

    def pixels(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] → their bytes.

        Raises:
            ValueError: they are neither bytes nor floats, or have another number of channels.
        """
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, expected bytes (torch.uint8), or floats as transforms give")
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise ValueError(f"images are {list(images.shape)}, expected [B, {len(self.mean)}, H, W]")
        if images.dtype == torch.uint8:
            return images
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        mean, std = (torch.tensor(each, dtype=wide.dtype, device=wide.device) for each in (self.mean, self.std))
        values = (wide * std.view(-1, 1, 1) + mean.view(-1, 1, 1)) * BYTE
        return values.nan_to_num(0.0).round().clamp(0, BYTE).to(torch.uint8)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] → bytes."""
        start = 256 * torch.arange(len(self.mean), device=images.device).view(-1, 1, 1)
        return self.table.flatten()[self.pixels(images).to(torch.int64) + start]


class QOutput(nn.Module):
    """Whole numbers → what they stand for, (q - zero)·step in single precision: the one float of a model.

    Args:
        step: that each counts.
        zero: which stands for 0.
    """

    def __init__(self, step: float, zero: int = 0) -> None:
        super().__init__()
        if not step > 0:
            raise ValueError(f"step is {step}, expected a number above 0")
        check_whole("zero", [zero], 0, BYTE)
        self.step, self.zero = step, zero

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - zero)·step."""
        if x.is_floating_point():
            raise ValueError(f"what is read is {x.dtype}, expected bytes or words")
        return (x.to(torch.float32) - self.zero) * self.step


def _holding(*activations: Tensor) -> torch.dtype:
    """Single precision for bytes, double for words."""
    check_words(*activations)
    return torch.float32 if all(each.dtype == torch.uint8 for each in activations) else torch.float64


def powers(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^-exponent, exactly, which no machine's power function promises."""
    return _POWERS.to(exponent.device, dtype)[exponent.to(torch.int64) + 128]


@contextmanager
def exact(x: Tensor) -> Iterator[None]:
    """Without what computes in fewer bits."""
    kind = "cpu" if x.is_meta else x.device.type
    with torch.autocast(kind, enabled=False):
        yield


def is_traced() -> bool:
    """Whether a program is being written down, of which no value may decide."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _keeps_single(x: Tensor) -> bool:
    """Whether single precision's products are what they say: oneDNN's, not NNPACK's, which leave the whole numbers.

    A program that is traced may run under other settings, and with other weights, than it was traced with.
    """
    if is_traced():
        return False
    if x.is_meta:
        return True
    plain = platform.machine() in ("x86_64", "AMD64") and not any(map(os.environ.get, _FAST_MATH))
    if (
        x.device.type != "cpu"
        or not plain
        or not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled())
    ):
        return False
    ops = (getattr(torch.backends.mkldnn, name, None) for name in ("conv", "matmul"))
    set_to = {getattr(each, "fp32_precision", "none") for each in ops}
    return set_to <= {"none", "ieee"} and torch.get_float32_matmul_precision() == "highest"


_OUT = ("out_zero", "low", "high")
INTEGER: Mapping[str, Op] = {
    "qinput": Op(QInput, ("mean", "std")),
    "qconv2d": Op(
        QConv2d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "zero", *_OUT),
    ),
    "qlinear": Op(QLinear, ("in_features", "out_features", "zero", *_OUT)),
    "qadd": Op(QAdd, ("zeros", "exponents", *_OUT)),
    "qmul": Op(QMul, ("zeros", "exponent", *_OUT)),
    "qavg_pool2d": Op(QAvgPool2d, ("kernel_size", "stride", "padding", "zero", "exponent", *_OUT)),
    "qtable": Op(QTable),
    "qoutput": Op(QOutput, ("step", "zero")),
}
"""Module ops, by their names in a graph."""
