"""Signals: what layers read and put out while images go through a model, as one row for each position."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MAX_ROWS = 16_384  # of one batch and layer: patches overlap, so more of them tell nothing new


def rows(layer: nn.Module, y: Tensor) -> Tensor:
    """One row for each position [rows, channels], at least in single precision.

    Args:
        layer: a linear layer or a convolution.
        y: what it puts out, or what a pointwise one reads.
    """
    if isinstance(layer, nn.Conv2d):
        y = y.movedim(-3, -1)
    return y.reshape(-1, y.shape[-1]).to(torch.promote_types(y.dtype, torch.float32))


def thinned(rows: Tensor) -> Tensor:
    """At most `MAX_ROWS` of the rows, drawn at random but the same of as many: a stride would meet the image's grid."""
    if len(rows) <= MAX_ROWS:
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MAX_ROWS].sort().values
    return rows[drawn.to(rows.device)]


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are removed when the context closes."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def chunked(needed: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    """Layers in turn, as many at a time as fit, and one at the least.

    Args:
        needed: path → bytes of what is collected of it.
        max_bytes: held at once.
    """
    chunk: list[str] = []
    for path, size in needed.items():
        if chunk and sum(needed[each] for each in chunk) + size > max_bytes:
            yield chunk
            chunk = []
        chunk.append(path)
    if chunk:
        yield chunk
