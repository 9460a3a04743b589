"""Tokens: what transformers compute in whole numbers, as an ONNX program that gives the same bytes.

Sums of products are MatMulIntegers, or MatMuls in a precision that holds them; all else is in double precision, which
holds what is below 2^53.

A quotient is ⌊n/d + 1/2⌋ of whole numbers n and d. It lies 1/2d from a half at least, or on one, and is rounded twice,
by (n/d + 1)·2^-53 at most each time: so the same comes out as in whole numbers where n + d < 2^51. Of a softmax these
are 2^b·e ≤ 2^45 and Σe ≤ 2^45; of a norm of N values, quotients are below 2^12·√N, roots below 2^31 and 2^39/√N.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from zoo.onnx.lookup import found
from zoo.onnx.storing import HALF, less, scaled, stored
from zoo.onnx.writing import Writing, formless
from zoo.structure.graph.graph import Node
from zoo.structure.graph.integer import BYTE, powers
from zoo.structure.graph.tokens import EPS, FRACTION, WORD, QNorm, coarser, room

_NEVER = 2**16  # beyond the difference of any two words
MAX_COUNT = 2**22  # of values whose squares double precision adds up


def _rescaled(writing: Writing, node: Node, x: str) -> str:
    op = writing.module(node)
    return scaled(writing, less(writing, x, op.zero, np.float64), op)


def _summed(writing: Writing, node: Node, x: str) -> str:
    op = writing.module(node)
    told = {"keepdims": int(op.keepdim)}
    value = less(writing, x, op.zero, np.float64)
    return scaled(writing, writing.emit("ReduceSum", value, np.array(op.dim, np.int64), **told), op)


def _multiplied(writing: Writing, node: Node, a: str, b: str) -> str:
    """Of bytes in 32 bits; of a softmax, whose sum is 2^15 and K/2, in single precision; of other words in double."""
    op = writing.module(node)
    if node.inputs[0] not in writing.words:
        sums = writing.emit("MatMulInteger", a, b, *map(np.uint8, op.zeros))
    else:
        dtype = np.float32 if node.inputs[0] in writing.shares and not op.zeros[0] else np.float64
        sides = zip((a, b), op.zeros, strict=True)
        sums = writing.emit("MatMul", *(less(writing, x, zero, dtype) for x, zero in sides))
    return scaled(writing, sums, op)


def _softmax(writing: Writing, node: Node, x: str) -> str:
    op, axis = writing.module(node), np.array([writing.module(node).dim], np.int64)
    low, high = op.table.cpu().to(torch.int64)
    raised = (high[:, None] * low).flatten()[: _NEVER + 1]
    raised = raised[: int(raised.nonzero().max()) + 2].to(torch.float64).numpy()  # beyond, all are as the last
    x = writing.cast(x, np.int32)
    below = writing.emit("Sub", writing.emit("ReduceMax", x, axis), x)
    each = found(writing, raised, writing.emit("Min", below, np.int32(len(raised) - 1)), writing.shape(node))
    unit = writing.emit("Mul", writing.emit("ReduceSum", each, axis), np.float64(2.0**-op.bits))
    rounded = writing.emit("Add", writing.emit("Div", each, unit), HALF)
    whole = writing.emit("Min", rounded, np.float64(2**op.bits - 1))  # what is behind the point is cut off
    shares = writing.cast(whole, np.uint8 if op.bits == 8 else np.int32)
    if op.dim % len(writing.shape(node)) == len(writing.shape(node)) - 1:
        writing.shares.add(node.name)
    return shares


def _normed(writing: Writing, node: Node, x: str) -> str:
    op, shape = writing.module(node), writing.shape(node)
    most = BYTE if node.inputs[0] not in writing.words else WORD + op.zero
    value, axis = less(writing, x, op.zero, np.float64), op.axis % len(shape)
    if op.groups is not None:
        count = math.prod(shape[1:]) // op.groups
        value, along = writing.emit("Reshape", value, np.array([-1, op.groups, count], np.int64)), 2
    else:
        count, along = shape[axis], axis
    y = _normalized(writing, node, value, along, count, most)
    if op.groups is not None:
        y = writing.emit("Reshape", y, np.array(shape, np.int64))
    scale, sides = powers(op.exponent.cpu(), torch.float64), [1] * (len(shape) - axis - 1)
    weight, bias = ((each.cpu() * scale).view(-1, *sides).numpy() for each in (op.weight, op.bias))
    return stored(writing, writing.emit("Add", writing.emit("Mul", y, weight), bias), op, np.float64)


def _normalized(writing: Writing, node: Node, x: str, axis: int, count: int, most: int) -> str:
    """What `QNorm.normalized` gives; sums and quotients in double precision, what needs more in int64."""
    op: QNorm = writing.module(node)
    if cut := coarser(count, most):
        halved = writing.emit("Add", writing.emit("Mul", x, np.float64(2.0**-cut)), HALF)
        x, most = writing.emit("Floor", halved), (most >> cut) + 1
    least = int(op.eps) >> (2 * cut)
    eps, more = (least * count**2) >> EPS, room(count, most, least)
    if not more or count >= MAX_COUNT:
        raise formless(node)
    finer, dims = (more.bit_length() - 1) // 2, np.array([axis], np.int64)
    times = writing.emit("Mul", x, np.float64(count))
    squares = writing.cast(writing.emit("ReduceSum", writing.emit("Mul", x, x), dims), np.int64)
    spread = writing.emit("Add", writing.emit("Mul", squares, np.int64(count)), np.int64(eps))
    if op.centered:
        total = writing.emit("ReduceSum", x, dims)
        times = writing.emit("Sub", times, total)
        whole = writing.cast(total, np.int64)
        spread = writing.emit("Sub", spread, writing.emit("Mul", whole, whole))
    root = root_of(writing, writing.emit("Mul", spread, np.int64(4**finer)))
    above = writing.cast(writing.emit("Max", root, np.int64(1)), np.float64)
    unit = writing.emit("Mul", above, np.float64(2.0 ** -(finer + FRACTION)))
    return writing.emit("Floor", writing.emit("Add", writing.emit("Div", times, unit), HALF))


def root_of(writing: Writing, x: str) -> str:
    """⌊√x⌋, as `structure.graph.tokens.isqrt`."""
    root = writing.cast(writing.emit("Sqrt", writing.cast(x, np.float64)), np.int64)
    over = writing.emit("Greater", writing.emit("Mul", root, root), x)
    root = writing.emit("Sub", root, writing.cast(over, np.int64))
    more = writing.emit("Add", root, np.int64(1))
    under = writing.emit("LessOrEqual", writing.emit("Mul", more, more), x)
    return writing.emit("Add", root, writing.cast(under, np.int64))


def _embedded(writing: Writing, node: Node, x: str) -> str:
    return writing.emit("Gather", writing.module(node).weight.cpu().numpy(), writing.cast(x, np.int64))


TOKENS: Mapping[str, Callable[..., Any]] = {
    "qrescale": _rescaled,
    "qsum": _summed,
    "qmatmul": _multiplied,
    "qsoftmax": _softmax,
    "qnorm": _normed,
    "qembedding": _embedded,
}
"""How each is written, by the names of ops in a graph."""
