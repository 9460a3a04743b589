"""Calibration: what every method is given, checked once; a method then trusts its images and its model."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import DataError, StructureError
from zoo.measurement.macs import input_size, like_images, vocab_size
from zoo.measurement.passes import pass_sizes
from zoo.printable import logger
from zoo.structure.tensors import tensors_of

log = logger(__name__)

FEW = 64  # images, below which the statistics of wide layers are mostly noise
HELD_BACK = 4  # one image in so many, where some are
PARTED = 4 * HELD_BACK  # images at least: less tells nothing
EXPECTED = "expected a list of batches [B, C, H, W]"


def check_finite(model: nn.Module) -> None:
    """Check that a model's weights are numbers; a buffer may hold infinities, as masks of attention do.

    Raises:
        StructureError: a tensor isn't, named.
    """
    for path, tensor in tensors_of(model).items():
        held = tensor.detach()
        if held.isnan().any() or (isinstance(tensor, nn.Parameter) and held.isinf().any()):
            raise StructureError(f"{type(model).__name__}: {path} isn't finite; load the weights anew")


def batched(model: nn.Module, data: Iterable[Any]) -> list[Tensor]:
    """Calibration images as a model takes them.

    Args:
        model: with `pretrained_cfg`, which says what size it takes.
        data: batches of images [B, C, H, W], or (images, labels) of which the labels aren't looked at, or one batch.

    Returns:
        Batches [B, C, H, W] on the model's device and of its type; dealt out anew where one held a single image, which
        has no variance.

    Raises:
        DataError: these aren't batches of such images, or there are no two that differ.
        StructureError: the model doesn't say what size it takes.
    """
    taken = like_images(model)
    batches = [_images(model, number, given) for number, given in enumerate(_batches(data))]
    batches = [batch for batch in batches if len(batch)]
    count = sum(map(len, batches))
    if not count:
        raise DataError("calibration: no images; pass at least one batch")
    if count == 1:
        raise DataError("calibration: 1 image; pass at least two that differ, some hundred make reliable statistics")
    first = batches[0][:1]
    if all(torch.equal(batch, first.expand_as(batch)) for batch in batches):
        raise DataError(f"calibration: all {count} images are the same; pass images that differ")
    if count < FEW:
        log.warning("calibration: %d images; some hundred make reliable statistics", count)
    if any(len(batch) < 2 for batch in batches):
        batches = dealt(batches)
    layout = torch.channels_last  # depthwise convolutions take half the time so, on a CPU, and others no longer
    return [batch.to(taken.device, taken.dtype, memory_format=layout) for batch in batches]


def dealt(batches: Sequence[Tensor]) -> list[Tensor]:
    """The same images in the even batches of `pass_sizes`, so that how they came makes no difference.

    Args:
        batches: images [B, C, H, W].
    """
    sizes = [*map(len, batches)]
    even = pass_sizes(sum(sizes), batches[0].shape[-2:].numel())
    return list(batches) if sizes == even else list(torch.cat([*batches]).split(even))


def parted(batches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Images shown and others held back, one in four, whatever order and batches they came in.

    Args:
        batches: images [B, C, H, W].

    Returns:
        Batches of each.

    Raises:
        DataError: there are too few.
    """
    count = sum(map(len, batches))
    if count < PARTED:
        raise DataError(f"calibration: {count} images, expected at least {PARTED} where some are held back")
    back = torch.arange(count) % HELD_BACK == 0
    images = _in_order(batches)
    return dealt([images[~back]]), dealt([images[back]])


def judged(batches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Images to fit to, and those that judge the fit: held back, or of too few images all of them again.

    Args:
        batches: images [B, C, H, W], in whatever order they came.

    Returns:
        Batches of each; one list twice where none are held back.
    """
    if sum(map(len, batches)) >= PARTED:
        return parted(batches)
    every = dealt([_in_order(batches)])
    return every, every


def _in_order(batches: Sequence[Tensor]) -> Tensor:
    """All images in an order of their own: drawn, as their sums rise."""
    images = torch.cat([*batches])
    sums = torch.tensor([float(image.double().sum()) for image in images], dtype=torch.float64)
    order = sums.argsort(stable=True)[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return images[order.to(images.device)]


def _batches(data: Iterable[Any]) -> Iterable[Any]:
    if isinstance(data, Tensor):
        return [data]
    if not isinstance(data, Iterable):
        raise DataError(f"calibration: found {type(data).__name__}, {EXPECTED}")
    return data


def _images(model: nn.Module, number: int, given: Any) -> Tensor:
    """The images of a batch, checked."""
    images = given[0] if isinstance(given, list | tuple) and given else given
    where = f"calibration: batch {number}"
    if not isinstance(images, Tensor):
        raise DataError(f"{where} is of type {type(images).__name__}, {EXPECTED}")
    if images.ndim != 4:
        raise DataError(f"{where} is {list(images.shape)}, {EXPECTED}")
    count = vocab_size(model)
    if count is None and not images.is_floating_point():
        raise DataError(f"{where} is {images.dtype}, expected floats; pass the images through zoo.transform(model)")
    if count is not None and (images.dtype != torch.int64 or not 0 <= int(images.min()) <= int(images.max()) < count):
        raise DataError(
            f"{where}: expected token ids (torch.int64), 0 to {count - 1}: pass texts through zoo.transform(model)"
        )
    size = input_size(model)
    if tuple(images.shape[1:]) != size:
        sizes, taken = (" x ".join(map(str, shape)) for shape in (images.shape[1:], size))
        raise DataError(
            f"calibration: images are {sizes}, the model takes {taken}; pass them through zoo.transform(model), or set "
            f"model.pretrained_cfg['input_size'] where that is wrong"
        )
    return images.detach()
