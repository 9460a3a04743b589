"""Lookup: tables of 256 bytes as a line where they are one, else as they are; tables of more values."""

from typing import Any

import numpy as np
from torch import Tensor

from zoo.onnx.writing import Shape, Writing

FAR = 2.0**17  # beyond every offset
ROUNDED = 2.0**-23  # share of a number, twice of what single precision rounds it by


def looked_up(writing: Writing, x: str, table: Tensor, shape: Shape) -> str:
    """The values of tables [C, 256] at bytes [B, C, ...], of one table at any, of a shape."""
    values = table.cpu().numpy()
    if (line := _line(values)) is not None:
        slope, offset = (each[:, None, None] if len(each) > 1 else each[0] for each in line)
        scaled = writing.emit("Add", writing.emit("Mul", writing.cast(x, np.float32), slope), offset)
        q = writing.emit("QuantizeLinear", scaled, np.float32(1), np.uint8(0))
        return writing.clipped(q, int(values.min()), int(values.max()))
    place = writing.cast(x, np.int32)
    if len(values) > 1:
        place = writing.emit("Add", place, (256 * np.arange(len(values), dtype=np.int32))[:, None, None])
    return found(writing, values.reshape(-1), place, shape)


def found(writing: Writing, values: Any, place: str, shape: Shape) -> str:
    """Values [N] at places of a shape; onnxruntime's GatherElements takes a fifth of the time of its Gather."""
    flat = writing.emit("Reshape", place, np.array([1, -1], np.int64))
    each = writing.emit("GatherElements", values[None], flat, axis=1)
    return writing.emit("Reshape", each, np.array(shape, np.int64))


def _line(tables: Any) -> tuple[Any, Any] | None:
    """Slopes and offsets [C] with clamp(round(x·slope + offset)) = table[x], which take a third of a lookup's time.

    None where it doesn't hold for each of the 256 bytes, or comes so near to a half that rounding could matter.
    """
    low, high = int(tables.min()), int(tables.max())
    lines = np.array([_widest(table.astype(np.float64), low, high) for table in tables], np.float32).T
    slope, offset = lines.astype(np.float64)[..., None]
    scaled = slope * np.arange(256)
    values = scaled + offset
    settled = np.abs(values - np.floor(values) - 0.5) > ROUNDED * (np.abs(scaled) + np.abs(values))
    return (lines[0], lines[1]) if settled.all() and (values.round().clip(low, high) == tables).all() else None


def _widest(table: Any, low: int, high: int) -> tuple[float, float]:
    """The line that stays farthest from all halves: of what is clamped one side is free.

    The room that a slope leaves to the offset is a concave function of it: thirds are cut off until it is found.
    """
    x = np.arange(256)
    lower, upper = np.where(table > low, table - 0.5, -np.inf), np.where(table < high, table + 0.5, np.inf)
    left, right = -256.0, 256.0

    def room(slope: float) -> tuple[float, float]:
        return max((lower - slope * x).max(), -FAR), min((upper - slope * x).min(), FAR)

    for _ in range(100):
        third = (right - left) / 3
        (a, b), (c, d) = room(left + third), room(right - third)
        left, right = (left, right - third) if b - a > d - c else (left + third, right)
    least, most = room(left)
    return left, (least + most) / 2
