"""Checks of integer ops: of their attributes when they are made, of what they are given when they run."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_SIDE = 2**31 - 1


def check_words(*activations: Tensor) -> None:
    """Raise ValueError, unless activations are of bytes or words."""
    for each in activations:
        if each.dtype not in (torch.uint8, torch.int16, torch.int32):
            raise ValueError(f"what is read is {each.dtype}, expected bytes or words")


def check_bytes(x: Tensor) -> None:
    """Raise ValueError, unless an activation is of bytes, of which the bounds of accumulators are."""
    if x.dtype != torch.uint8:
        raise ValueError(f"what is read is {x.dtype}, expected bytes")


def check_whole(name: str, values: Sequence[int], low: int, high: int) -> None:
    """Raise ValueError, unless all values are whole numbers from low to high."""
    if not all(type(each) is int and low <= each <= high for each in values):
        raise ValueError(f"{name}: found {', '.join(map(str, values))}, expected whole numbers, {low} to {high}")


def check_windows(
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] | None = None
) -> None:
    """Raise ValueError, unless windows have two sizes each, only the padding 0; without dilation they are a pool's."""
    sides = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation or (1, 1)}
    for name, values in sides.items():
        check_whole(name, values, int(name != "padding"), MAX_SIDE)
        if len(values) != 2:
            raise ValueError(f"{name} is {list(values)}, expected two sizes, of rows and of columns")
    if dilation is None and any(2 * pad > size for pad, size in zip(padding, kernel_size, strict=True)):
        raise ValueError(f"padding is {list(padding)}, expected at most half of the windows' {list(kernel_size)}")
