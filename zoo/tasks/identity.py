"""Which images a figure is of: one hash of their pixels and targets, whatever they lie in and in whatever order.

Formula: sha256 of the sorted sha256(d, target) of all images, where d is sha256 of an image's width, height and pixels
as `decode` gives them, upright and in eight bits of red, green and blue, or of a text sha256 of its bytes in UTF-8;
target is the class's number as the model has it, in eight bytes, or those of all objects with their boxes and flags,
sorted, in single precision. So a folder, parquet and a stream of the same images agree, however their classes are
numbered.

It costs a millisecond for a photograph of 500 x 375 px, which is decoded for the model anyway.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.tasks.columns import text_of
from zoo.tasks.pixels import decode, mode_of


def digest(image: Any) -> Tensor:
    """An image's sha256, [32] bytes: of its pixels, or of the values of one that is a tensor; or a text's."""
    if (text := text_of(image)) is not None:
        return _bytes(text.encode())
    if isinstance(image, Tensor):
        values = image.detach().cpu().float().contiguous()
        return _bytes(f"{tuple(values.shape)}".encode(), values.numpy().tobytes())
    return _of_pixels(decode(image))


@dataclass(frozen=True)
class Identified:
    """A transform that gives an image's `digest` too.

    Args:
        transform: of an image.
        others: more transforms, of the same image, which is decoded once for all of a mode.
    """

    transform: Any
    others: tuple[Any, ...] = ()

    def __call__(self, image: Any) -> list[Tensor]:
        """Image → what each transform makes of it, and its digest."""
        every = (self.transform, *self.others)
        if isinstance(image, Tensor):  # of a data set that preprocesses
            return [*[image] * len(every), digest(image)]
        if text_of(image) is not None:
            return [*(transform(image) for transform in every), digest(image)]
        decoded = {"RGB": decode(image)}
        return [*(transform(_taken(transform, image, decoded)) for transform in every), _of_pixels(decoded["RGB"])]

    def boxed(self, image: Any, label: Any) -> tuple[list[Tensor], Tensor]:
        """Image and label of boxes → what the first transform makes of the image, and its digest; the target."""
        decoded = {"RGB": decode(image)}
        tensor, target = self.transform.boxed(_taken(self.transform, image, decoded), label)
        return [tensor, _of_pixels(decoded["RGB"])], target


def _taken(transform: Any, image: Any, decoded: dict[str, Any]) -> Any:
    """What a transform is given: the image of its mode, decoded by the first that wants it."""
    mode = mode_of(transform)
    if mode is None:
        return image
    if mode not in decoded:
        decoded[mode] = decode(image, mode)
    return decoded[mode]


def with_targets(digests: Tensor, targets: Tensor) -> Tensor:
    """The digests of images [B, 32], each with its target [B, ...]."""
    pairs = zip(digests.cpu(), targets.cpu(), strict=True)
    return torch.stack([_bytes(image.numpy().tobytes(), _told(target)) for image, target in pairs])


def _told(target: Tensor) -> bytes:
    """What a target says; of boxes (`zoo.models.targets`) without what the model or the batch adds."""
    if target.ndim < 2:
        return target.numpy().tobytes()
    objects = sorted(target[1:, :6].tolist())
    return torch.tensor([each for each in objects if each[4] >= 0]).numpy().tobytes()


def identity(digests: Tensor) -> str:
    """The hash of all images, in 64 hexadecimal digits, from `with_targets` of each [N, 32]."""
    return hashlib.sha256(b"".join(sorted(each.tobytes() for each in digests.numpy()))).hexdigest()


def _of_pixels(decoded: Any) -> Tensor:
    return _bytes(f"{decoded.size}".encode(), decoded.tobytes())


def _bytes(*parts: bytes) -> Tensor:
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)
