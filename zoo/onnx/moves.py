"""Moves: ops that compute nothing but put values elsewhere, as an ONNX program has them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.onnx.export import IMAGES
from zoo.onnx.writing import Shape, Writing, formless
from zoo.structure.graph.graph import CALLS, INTS, Node

_WINDOW = {"kernel_size": None, "padding": 0, "dilation": 1}


def _size(writing: Writing, node: Node, *inputs: Any) -> None:
    """Sizes are known: those of the batch follow from the others."""


def _reshaped(writing: Writing, node: Node, x: str, *sizes: Any) -> str:
    shape: Shape = writing.shapes[node.name]
    if shape.count(-1) > 1:
        raise formless(node)
    return writing.emit("Reshape", x, np.array(shape, np.int64))


def _transposed(writing: Writing, node: Node, x: str) -> str:
    rank, told = len(writing.shape(node)), node.attributes
    order = [*range(rank)]
    if node.op == "permute":
        order = [dim % rank for dim in told["dims"]]
    else:
        a, b = (told.get(key, usual) % rank for key, usual in (("dim0", -2), ("dim1", -1)))
        order[a], order[b] = order[b], order[a]
    return writing.emit("Transpose", x, perm=order)


def _concatenated(writing: Writing, node: Node, *inputs: str) -> str:
    return writing.emit("Concat", *inputs, axis=node.attributes["dim"])


def _stacked(writing: Writing, node: Node, *inputs: str) -> str:
    axis = node.attributes.get("dim", 0) % len(writing.shapes[node.name])
    rows = [writing.emit("Unsqueeze", each, np.array([axis], np.int64)) for each in inputs]
    return writing.emit("Concat", *rows, axis=axis)


def _split(writing: Writing, node: Node, x: str) -> list[str]:
    axis = node.attributes.get("dim", 0)
    sizes = [part[axis] for part in writing.shapes[node.name]]
    return writing.emit_parts(len(sizes), "Split", x, np.array(sizes, np.int64), axis=axis)


def _unbound(writing: Writing, node: Node, x: str) -> list[str]:
    axis, shapes = node.attributes.get("dim", 0), writing.shapes[node.name]
    parts = writing.emit_parts(len(shapes), "Split", x, np.ones(len(shapes), np.int64), axis=axis)
    return [writing.emit("Squeeze", part, np.array([axis], np.int64)) for part in parts]


def _repeated(writing: Writing, node: Node, x: str, *sizes: Any) -> str:
    """Along axes of size 1; where one becomes the batch's, by as much as there are images."""
    before, after = writing.shape(node), writing.shapes[node.name]
    grown = (1,) * (len(after) - len(before)) + before
    if any(new == -1 != old for old, new in zip(grown[1:], after[1:], strict=True)):
        raise formless(node)
    shape = np.array([1 if new == -1 else new for new in after], np.int64)
    if after[0] == -1 != grown[0]:
        batch = writing.emit("Shape", IMAGES, start=0, end=1)
        return writing.emit("Expand", x, writing.emit("Concat", batch, shape[1:], axis=0))
    return writing.emit("Expand", x, shape)


def _item(writing: Writing, node: Node, parts: Sequence[str]) -> str:
    index: int = node.attributes["index"]
    return parts[index]


def _largest(writing: Writing, node: Node, x: str) -> str:
    """The largest of each window; what stands at its ends is told in full, which rounding sizes up may add to."""
    told = node.attributes
    kernel, padding, dilation = (_pair(told.get(key, usual)) for key, usual in _WINDOW.items())
    stride = _pair(told.get("stride")) or kernel
    sizes = zip(writing.shape(node)[2:], writing.shapes[node.name][2:], kernel, stride, padding, dilation, strict=True)
    ends = [max((out - 1) * s + d * (k - 1) + 1 - size - p, 0) for size, out, k, s, p, d in sizes]
    pads = [*padding, *ends]
    return writing.emit("MaxPool", x, kernel_shape=kernel, strides=stride, pads=pads, dilations=dilation)


def _pair(value: Any) -> list[int]:
    pair = [value, value] if isinstance(value, int) else [*(value or ())]
    return pair * 2 if len(pair) == 1 else pair


def _padded(writing: Writing, node: Node, x: str) -> str:
    rank = len(writing.shape(node))
    if node.op == "pad_same":
        before, after = writing.shape(node), writing.shapes[node.name]
        grown = [b - a for a, b in zip(before, after, strict=True)]
        starts, ends = [each // 2 for each in grown], [each - each // 2 for each in grown]
    elif node.attributes.get("mode", "constant") == "constant":
        pairs = [*node.attributes["pad"]]
        missing = [0] * (rank - len(pairs) // 2)
        starts, ends = [*missing, *pairs[-2::-2]], [*missing, *pairs[::-2]]
    else:
        raise formless(node)
    dtype = np.int32 if node.inputs[0] in writing.words else np.uint8
    value = dtype(node.attributes.get("value") or 0)
    return writing.emit("Pad", x, np.array([*starts, *ends], np.int64), value)


def _moved(writing: Writing, node: Node, x: str) -> str:
    """What puts the values of each image elsewhere, or leaves some out: the places that they come from."""
    size, shape = writing.shape(node)[1:], writing.shapes[node.name]
    count = math.prod(size)
    if "$" in str(node.attributes) or shape[0] != -1 or writing.shape(node)[0] != -1:
        raise formless(node)
    each, both = (CALLS[node.op].call(_places(n, size), **node.attributes) for n in (1, 2))
    if not torch.equal(both, torch.cat([each, each + count])):
        raise formless(node)
    flat = writing.emit("Reshape", x, np.array([-1, count], np.int64))
    found = writing.emit("Gather", flat, each.flatten().long().numpy(), axis=1)
    return writing.emit("Reshape", found, np.array(shape, np.int64))


def _places(images: int, size: Shape) -> Tensor:
    return torch.arange(images * math.prod(size), dtype=torch.float64).view(images, *size)  # which all ops take


MOVES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("size", *INTS), _size),
    **dict.fromkeys(("flatten", "reshape", "unsqueeze", "aten.squeeze.dims", "aten.squeeze.dim"), _reshaped),
    **dict.fromkeys(("aten.reshape_as", "aten.view_as", "aten.unflatten.int", "aten.squeeze"), _reshaped),
    **dict.fromkeys(("transpose", "permute", "aten.mT"), _transposed),
    "concat": _concatenated,
    "aten.stack": _stacked,
    **dict.fromkeys(("chunk", "aten.split_with_sizes", "aten.split.Tensor"), _split),
    "unbind": _unbound,
    "item": _item,
    **dict.fromkeys(("expand", "aten.expand_as"), _repeated),
    "max_pool2d": _largest,
    **dict.fromkeys(("pad_same", "aten.constant_pad_nd", "aten.pad"), _padded),
    **dict.fromkeys(("slices", "upsample", "roll", "aten.flip", "aten.slice.Tensor", "aten.select.int"), _moved),
    **dict.fromkeys(("aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.upsample_nearest2d.vec"), _moved),
}
"""How each is written, by the names of ops in a graph."""
