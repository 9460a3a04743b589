"""Quotients: what divides by what it is given, as an ONNX program that gives the same bytes, in double precision."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from zoo.onnx.storing import HALF, less, scaled, stored
from zoo.onnx.tokens import root_of
from zoo.onnx.writing import Writing, formless
from zoo.structure.graph.graph import Node
from zoo.structure.graph.integer import BYTE, SINGLE
from zoo.structure.graph.tokens import WORD

MAX_COUNT = 2**22  # of squares that double precision adds up


def _divided(writing: Writing, numerator: str, divisor: Any, op: Any) -> str:
    """Numerators are multiplied by 2^-exponent exactly, so that the quotient is rounded as in torch."""
    value = writing.emit("Mul", numerator, np.float64(op.multiplier * 2.0**-op.exponent))
    quotient = writing.emit("Add", writing.emit("Div", value, divisor), HALF)
    return stored(writing, writing.emit("Floor", quotient), op, np.float64)


def _quotient(writing: Writing, node: Node, a: str, b: str) -> str:
    op = writing.module(node)
    sides = zip((a, b), op.zeros, strict=True)
    numerator, divisor = (less(writing, x, zero, np.float64) for x, zero in sides)
    return _divided(writing, numerator, writing.emit("Max", divisor, np.float64(1)), op)


def _mean(writing: Writing, node: Node, x: str) -> str:
    """Sums are convolutions by ones of each channel by itself, in single precision where that holds them."""
    op, (_, channels, *size) = writing.module(node), writing.shape(node)
    if math.prod(op.kernel_size) * (WORD + BYTE) >= SINGLE:
        raise formless(node)
    counts = op.sums(torch.ones(1, 1, *size, dtype=torch.float64))
    hanging = [
        (out - 1) * s + k - height - p
        for out, s, k, height, p in zip(counts.shape[2:], op.stride, op.kernel_size, size, op.padding, strict=True)
    ]
    ends = [max(p, h) for p, h in zip(op.padding, hanging, strict=True)]
    value, ones = less(writing, x, op.zero, np.float32), np.ones((channels, 1, *op.kernel_size), np.float32)
    window = {"strides": op.stride, "pads": [*op.padding, *ends], "group": channels}
    sums = writing.cast(writing.emit("Conv", value, ones, **window), np.float64)
    return _divided(writing, sums, counts.numpy(), op)


def _root(writing: Writing, node: Node, x: str) -> str:
    op, shape = writing.module(node), writing.shape(node)
    count = math.prod(shape[dim] for dim in op.dim)
    if count >= MAX_COUNT:
        raise formless(node)
    finer = op.finer(count, node.inputs[0] not in writing.words)
    value, dims = less(writing, x, op.zero, np.float64), np.array(op.dim, np.int64)
    squares = writing.emit("ReduceSum", writing.emit("Mul", value, value), dims, keepdims=int(op.keepdim))
    root = root_of(writing, writing.emit("Mul", writing.cast(squares, np.int64), np.int64(4**finer)))
    whole = writing.emit("Mul", writing.cast(root, np.float64), np.float64(2.0**-finer))
    return scaled(writing, whole, op)


QUOTIENTS: Mapping[str, Callable[..., Any]] = {"qdiv": _quotient, "qmean_pool2d": _mean, "qroot": _root}
"""How each is written, by the names of ops in a graph."""
