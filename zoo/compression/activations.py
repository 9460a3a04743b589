"""Activations: what layers read and put out while images go through a model, as one row for each position."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from zoo.measurement.divergence import as_one

MAX_ROWS = 16_384  # of a layer over all images: patches overlap, so more of them tell nothing new;
PER_IMAGE = 64  # of each image, where that makes more


@dataclass(frozen=True)
class Draw:
    """Which rows of a layer are looked at: of one image the same ones, whatever batch it is in.

    Args:
        images: numbers of a batch's images in the calibration set.
        most: rows of each.
    """

    images: range
    most: int

    def of(self, items: int, positions: int) -> Tensor | None:
        """Positions drawn of each item [items, k], rising; None where all are taken.

        Args:
            items: images, or parts of them (windows), one after the other.
            positions: rows of each item.
        """
        share = max(1, self.most * len(self.images) // items)
        if positions <= share:
            return None
        first = self.images.start * items // len(self.images)
        return torch.stack([_drawn(first + item, positions, share) for item in range(items)])


@lru_cache(maxsize=4096)
def _drawn(number: int, positions: int, count: int) -> Tensor:
    """At random, as a stride would meet the image's grid."""
    return torch.randperm(positions, generator=torch.Generator().manual_seed(number))[:count].sort().values


def drawing(batches: Sequence[Tensor]) -> Iterator[tuple[Draw, Tensor]]:
    """Batches of images [B, C, H, W], each with the rows that are looked at."""
    first, most = 0, max(PER_IMAGE, MAX_ROWS // max(1, sum(map(len, batches))))
    for batch in batches:
        yield Draw(range(first, first + len(batch)), most), batch
        first += len(batch)


def rows(layer: nn.Module, y: Tensor) -> Tensor:
    """One row for each position [rows, channels], at least in single precision.

    Args:
        layer: a linear layer or a convolution.
        y: what it puts out, or what a pointwise one reads.
    """
    if isinstance(layer, nn.Conv2d):
        y = y.movedim(-3, -1)
    return wide(y.reshape(-1, y.shape[-1]))


def wide(x: Tensor) -> Tensor:
    """In single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def thinned(rows: Tensor, draw: Draw) -> Tensor:
    """Those of a batch's rows [rows, n], image after image, that are looked at."""
    items = len(draw.images) if len(rows) % len(draw.images) == 0 else 1  # or they are none of images
    at = draw.of(items, len(rows) // items)
    if at is None:
        return rows
    return rows[(at + torch.arange(items)[:, None] * (len(rows) // items)).flatten().to(rows.device)]


def patches(layer: nn.Module, x: Tensor, draw: Draw) -> Tensor:
    """What a layer multiplies its weight with, one row for each output position looked at [rows, n].

    Args:
        layer: a linear layer or an ungrouped two-dimensional convolution.
        x: what it reads.
        draw: which rows.
    """
    if not isinstance(layer, nn.Conv2d):
        return thinned(x.reshape(-1, x.shape[-1]), draw)
    x = _padded(layer, x)
    width, (down, right), (k, m), (step, skip) = x.shape[3], layer.stride, layer.kernel_size, layer.dilation
    across = (width - skip * (m - 1) - 1) // right + 1
    positions = ((x.shape[2] - step * (k - 1) - 1) // down + 1) * across
    at = draw.of(len(x), positions)
    at = torch.arange(positions).expand(len(x), -1) if at is None else at
    corner = at // across * down * width + at % across * right
    kernel = torch.arange(k)[:, None] * step * width + torch.arange(m) * skip
    index = (corner[:, :, None] + kernel.flatten()).flatten(1).to(x.device)
    values = x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1))
    each: Tensor = values.unflatten(2, (-1, kernel.numel())).transpose(1, 2)
    return each.flatten(2).flatten(0, 1)


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The input with the layer's own padding; timm's Conv2dSame computes it from the size."""
    if type(layer).__name__ != "Conv2dSame":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode)
    amounts: list[int] = []
    for size, k, step, d in zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True):
        lacking = max((-(-size // step) - 1) * step + (k - 1) * d + 1 - size, 0)
        amounts = [lacking // 2, lacking - lacking // 2, *amounts]
    return F.pad(x, amounts)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are removed when the context closes."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Before = Callable[[str, Any, Tensor, Draw], Tensor | None]
"""A layer's path, the layer, what it reads, the rows that are looked at → what it reads in its stead, if not None."""
After = Callable[[str, Any, Tensor, Tensor, Draw], Tensor | None]
"""The same with what the layer puts out → what goes on in its stead."""


def observe(
    run: Callable[[Tensor], Any],
    layers: Mapping[str, nn.Module],
    batches: Sequence[Tensor],
    *,
    before: Before | None = None,
    after: After | None = None,
) -> None:
    """Run batches and look at what layers read and put out.

    Args:
        run: takes a batch, most often a model; what it returns isn't kept.
        layers: path → layer.
        batches: images [B, C, H, W].
        before: shown what a layer is about to read.
        after: shown that and what it puts out.
    """
    draw, handles = Draw(range(0), 0), []

    def reads(path: str, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        x = before and before(path, layer, args[0], draw)
        return None if x is None else (x, *args[1:])

    def writes(path: str, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        return after and after(path, layer, args[0], y, draw)

    for path, layer in layers.items():
        if before is not None:
            handles.append(layer.register_forward_pre_hook(partial(reads, path)))
        if after is not None:
            handles.append(layer.register_forward_hook(partial(writes, path)))
    with hooked(handles):
        for draw, batch in drawing(batches):  # noqa: B007  # hooks look at the draw
            run(batch)


def outputs_of(run: Callable[[Tensor], Any], batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """What a model puts out for each batch [B, C, H, W], in double precision."""
    for batch in batches:
        with torch.no_grad():  # not across the yield: it would reach whoever asks
            outputs = as_one(run(batch)).double()
        yield outputs


def portions(needs: Sequence[Collection[str]], size: Mapping[str, int], max_bytes: int) -> Iterator[slice]:
    """Needs in turn, as many at a time as fit, and one at the least.

    Args:
        needs: paths of layers that are needed together.
        size: path → bytes of what is collected of it.
        max_bytes: held at once.

    >>> [*portions(["a", "b", "a", "c"], {"a": 5, "b": 3, "c": 1}, 8)]
    [slice(0, 3, None), slice(3, 4, None)]
    """
    start = 0
    while start < len(needs):
        end, held = start + 1, {*needs[start]}
        while end < len(needs) and sum(size[path] for path in held | {*needs[end]}) <= max_bytes:
            held |= {*needs[end]}
            end += 1
        yield slice(start, end)
        start = end
