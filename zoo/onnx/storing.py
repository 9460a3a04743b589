"""Storing: whole numbers that were computed in floating point, as the bytes or words that an op gives."""

from typing import Any

import numpy as np

from zoo.onnx.writing import Writing
from zoo.structure.graph.integer import BYTE, Quantized

ONE = np.float32(1)
HALF = np.float64(0.5)


def is_byte(op: Quantized) -> bool:
    """Whether an op gives bytes."""
    return op.low >= 0 and op.high <= BYTE


def stored(writing: Writing, value: str, op: Quantized, dtype: Any) -> str:
    """Whole numbers and halves → what an op gives; QuantizeLinear rounds, halves to even, by itself."""
    if is_byte(op) and dtype == np.float32:
        return writing.clipped(writing.emit("QuantizeLinear", value, ONE, np.uint8(op.out_zero)), op.low, op.high)
    whole = writing.emit("Round", value)
    moved = writing.emit("Add", whole, dtype(op.out_zero)) if op.out_zero else whole
    within = writing.emit("Clip", moved, dtype(op.low), dtype(op.high))
    return writing.cast(within, np.uint8 if is_byte(op) else np.int32)


def scaled(writing: Writing, accumulator: str, op: Any) -> str:
    """Whole numbers, times multiplier·2^-exponent, as what an op gives."""
    scale = np.float64(op.multiplier * 2.0**-op.exponent)
    return stored(writing, writing.emit("Mul", writing.cast(accumulator, np.float64), scale), op, np.float64)


def less(writing: Writing, x: str, zero: int, dtype: Any) -> str:
    """Bytes or words less what stands for 0."""
    value = writing.cast(x, dtype)
    return writing.emit("Sub", value, dtype(zero)) if zero else value
