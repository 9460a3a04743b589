"""Ops: the closed table of what a graph's nodes may do. Plain torch modules and functions, nothing else.

A module op owns weights and becomes `torch.nn`'s module of that kind, a tensor op is a weight or constant itself; a
function op only computes. Sizes are read from the tensors at run time, so that no graph freezes a batch.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Op:
    """One operation.

    Args:
        call: a module's or tensor's constructor, or the function itself.
        attributes: the keyword arguments that a node may set.
        tensors: of an ATen operation, which of them are tensors.
    """

    call: Callable[..., Any]
    attributes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def reshape(x: Tensor, *sizes: int, shape: Sequence[int | str]) -> Tensor:
    """Reshape to `shape`, in which `"batch"` is the size of x's first axis and `"input"` takes the next of `sizes`."""
    following = iter(sizes)
    return x.reshape([_size(x, item, following) for item in shape])


def expand(x: Tensor, *sizes: int, shape: Sequence[int | str]) -> Tensor:
    """Repeat a tensor along axes of size 1; `shape` as for `reshape`, -1 keeps an axis."""
    following = iter(sizes)
    return x.expand([_size(x, item, following) for item in shape])


def _size(x: Tensor, item: int | str, following: Any) -> int:
    if item == "batch":
        return x.shape[0]
    return next(following) if item == "input" else int(item)


def prepend(tokens: Tensor, x: Tensor) -> Tensor:
    """Put the same tokens [1, n, C] before those of every image of x [B, N, C]."""
    return torch.cat([tokens.expand(x.shape[0], -1, -1), x], 1)


def pad_same(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Pad [B, C, H, W] with zeros so that a convolution gives ⌈size / stride⌉; the odd row goes right and below."""
    return F.pad(x, same_padding(x.shape[-2:], kernel_size, stride, dilation))


def same_padding(
    sizes: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """By how much `pad_same` pads maps of these sizes: left, right, above, below."""
    padding: list[int] = []
    for size, k, s, d in zip(sizes, kernel_size, stride, dilation, strict=True):
        total = max((-(size // -s) - 1) * s + (k - 1) * d + 1 - size, 0)
        padding = [total // 2, total - total // 2, *padding]
    return padding


class LayerNorm2d(nn.LayerNorm):
    """Normalise [B, C, H, W] over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """While training leave out the branch of each image with probability p, and scale up those that stay.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016).
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}, expected 0 to 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of the images that are drawn zeros."""
        if not self.training or self.p == 0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p) if self.p < 1 else kept)


class GroupNorm(nn.GroupNorm):
    """torch's own, whose bias may be left out."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(num_groups, num_channels, eps)
        if not bias:
            self.register_parameter("bias", None)


def slices(x: Tensor, spec: Sequence[Any]) -> Tensor:
    """Index a tensor: an item is a whole number, null for a new axis, "..." or [start, stop, step]."""
    items = [slice(*item) if isinstance(item, list | tuple) else ... if item == "..." else item for item in spec]
    return x[tuple(items)]


def gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Take the slices that a list of whole numbers names."""
    return x.index_select(dim, index)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Attention before its softmax, q·kᵀ/√d; d is the width that the head has, not the one it once had."""
    return q @ k.mT / math.sqrt(q.shape[-1])


def channel_affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scale and shift the channels of [B, C, H, W], or of tokens [B, N, C]."""
    shape = (1, -1, 1, 1) if x.dim() == 4 else (1, 1, -1)
    scaled = x * weight.reshape(shape)
    return scaled if bias is None else scaled + bias.reshape(shape)


def window_partition(x: Tensor, window_size: Sequence[int]) -> Tensor:
    """Cut [B, H, W, C] into windows [B·windows, h, w, C]."""
    B, H, W, C = x.shape
    h, w = window_size
    return x.reshape(B, H // h, h, W // w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, C)


def window_reverse(x: Tensor, window_size: Sequence[int], img_size: Sequence[int]) -> Tensor:
    """Put windows [B·windows, h, w, C] together again, [B, H, W, C]."""
    (h, w), (H, W) = window_size, img_size
    return x.reshape(-1, H // h, W // w, h, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, x.shape[-1])


def merge_patches(x: Tensor) -> Tensor:
    """Stack the channels of every 2 x 2 pixels of [B, H, W, C], [B, H/2, W/2, 4C]."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).flatten(3)


def masked(attention: Tensor, mask: Tensor) -> Tensor:
    """Add the mask of each window [windows, L, L] to the scores of its heads [B·windows, heads, L, L]."""
    windows, L, _ = mask.shape
    return (attention.reshape(-1, windows, attention.shape[1], L, L) + mask[None, :, None]).reshape(attention.shape)


def concat(*tensors: Tensor, dim: int) -> Tensor:
    """Concatenate."""
    return torch.cat(tensors, dim)


def cast(x: Tensor, like: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Change the type of the values, to that of another tensor or to a fixed one."""
    return x.to(like.dtype if like is not None else dtype)


def zeros(like: Tensor, *, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Make zeros where another tensor lies, of its type unless told."""
    return like.new_zeros(size, dtype=dtype)


def ones(like: Tensor, *, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Make ones where another tensor lies, of its type unless told."""
    return like.new_ones(size, dtype=dtype)


def full(like: Tensor, *, size: Sequence[int], fill_value: float, dtype: torch.dtype | None = None) -> Tensor:
    """Make a tensor of one value where another tensor lies, of its type unless told."""
    return like.new_full(size, fill_value, dtype=dtype)


def arange(like: Tensor, *, end: float, start: float = 0, dtype: torch.dtype | None = None) -> Tensor:
    """Count from `start` to below `end` where another tensor lies."""
    return torch.arange(start, end, dtype=dtype, device=like.device)


def int_mul(a: int, b: int) -> int:
    """Multiply sizes."""
    return a * b


def int_add(a: int, b: int) -> int:
    """Add sizes."""
    return a + b


def int_sub(a: int, b: int) -> int:
    """Subtract sizes."""
    return a - b


def int_floordiv(a: int, b: int) -> int:
    """Divide sizes, rounding down."""
    return a // b


def int_mod(a: int, b: int) -> int:
    """Take the rest of a division of sizes."""
    return a % b


SIZES = (int_mul, int_add, int_sub, int_floordiv, int_mod)  # shape arithmetic

MODULES: Mapping[str, Op] = {
    "conv2d": Op(
        nn.Conv2d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"),
    ),
    "linear": Op(nn.Linear, ("in_features", "out_features", "bias")),
    "batch_norm2d": Op(nn.BatchNorm2d, ("num_features", "eps", "momentum", "affine")),
    "layer_norm": Op(nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "layer_norm2d": Op(LayerNorm2d, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "group_norm": Op(GroupNorm, ("num_groups", "num_channels", "eps", "bias")),
    "dropout": Op(nn.Dropout, ("p",)),
    "dropout2d": Op(nn.Dropout2d, ("p",)),
    "alpha_dropout": Op(nn.AlphaDropout, ("p",)),
    "feature_alpha_dropout": Op(nn.FeatureAlphaDropout, ("p",)),
    "drop_path": Op(DropPath, ("p",)),
    "conv1d": Op(
        nn.Conv1d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"),
    ),
    "conv_transpose2d": Op(
        nn.ConvTranspose2d,
        (
            *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
            *("output_padding", "groups", "bias", "dilation"),
        ),
    ),
    "batch_norm1d": Op(nn.BatchNorm1d, ("num_features", "eps", "momentum", "affine")),
    "rms_norm": Op(nn.RMSNorm, ("normalized_shape", "eps")),
    "prelu": Op(nn.PReLU, ("num_parameters",)),
    "embedding": Op(nn.Embedding, ("num_embeddings", "embedding_dim")),
}
TENSORS: Mapping[str, Op] = {
    "parameter": Op(lambda shape: nn.Parameter(torch.empty(shape)), ("shape",)),
    "buffer": Op(lambda shape, dtype="float32": torch.empty(shape, dtype=DTYPES[dtype]), ("shape", "dtype")),
}
FUNCTIONS: Mapping[str, Op] = {
    "relu": Op(F.relu),
    "relu6": Op(F.relu6),
    "silu": Op(F.silu),
    "gelu": Op(F.gelu, ("approximate",)),
    "hardswish": Op(F.hardswish),
    "hardsigmoid": Op(F.hardsigmoid),
    "sigmoid": Op(torch.sigmoid),
    "softmax": Op(F.softmax, ("dim",)),
    "add": Op(torch.add),
    "sub": Op(torch.sub),
    "mul": Op(torch.mul),
    "div": Op(torch.div),
    "pow": Op(torch.pow, ("exponent",)),
    "scale": Op(torch.mul, ("other",)),
    "shift": Op(torch.add, ("other",)),
    "exp": Op(torch.exp),
    "clamp": Op(torch.clamp, ("min", "max")),
    "normalize": Op(F.normalize, ("dim", "eps")),
    "norm": Op(torch.linalg.vector_norm, ("ord", "dim", "keepdim")),
    "mean": Op(torch.mean, ("dim", "keepdim")),
    "matmul": Op(torch.matmul),
    "transpose": Op(torch.transpose, ("dim0", "dim1")),
    "permute": Op(torch.permute, ("dims",)),
    "flatten": Op(torch.flatten, ("start_dim", "end_dim")),
    "reshape": Op(reshape, ("shape",)),
    "expand": Op(expand, ("shape",)),
    "unsqueeze": Op(torch.unsqueeze, ("dim",)),
    "concat": Op(concat, ("dim",)),
    "chunk": Op(torch.chunk, ("chunks", "dim")),
    "unbind": Op(torch.unbind, ("dim",)),
    "item": Op(operator.getitem, ("index",)),
    "size": Op(Tensor.size, ("dim",)),
    "slices": Op(slices, ("spec",)),
    "gather": Op(gather, ("dim",)),
    "roll": Op(torch.roll, ("shifts", "dims")),
    "pad_same": Op(pad_same, ("kernel_size", "stride", "dilation")),
    "prepend": Op(prepend),
    "scores": Op(scores),
    "channel_affine": Op(channel_affine),
    "window_partition": Op(window_partition, ("window_size",)),
    "window_reverse": Op(window_reverse, ("window_size", "img_size")),
    "merge_patches": Op(merge_patches),
    "masked": Op(masked),
    "max_pool2d": Op(F.max_pool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "avg_pool2d": Op(
        F.avg_pool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    ),
    "adaptive_avg_pool2d": Op(F.adaptive_avg_pool2d, ("output_size",)),
    "upsample": Op(F.interpolate, ("size", "scale_factor", "mode", "align_corners")),
    "attention": Op(F.scaled_dot_product_attention, ("scale",)),
    "cast": Op(cast, ("dtype",)),
    "zeros": Op(zeros, ("size", "dtype")),
    "ones": Op(ones, ("size", "dtype")),
    "full": Op(full, ("size", "fill_value", "dtype")),
    "arange": Op(arange, ("start", "end", "dtype")),
    **{function.__name__: Op(function, ("a", "b")) for function in SIZES},
}
