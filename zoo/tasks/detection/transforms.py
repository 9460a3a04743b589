"""Images as a detector takes them, with boxes that go along, and the way back to the image's own pixels.

`letterbox` keeps an image's shape and fills up with grey; `stretch` fills the input. Both resize to whole pixels, and
the scales are those of these whole pixels, so the way back is exact:

    letterbox of 4 x 3 px to 8 x 8 px:   ........   new 8 x 6, scale 2, left 0, top 1
                                         xxxxxxxx
                                         ... six rows
                                         ........
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta, Struct
from PIL import Image
from torch import Tensor

from zoo.declarations import Whole, validated
from zoo.errors import DataError
from zoo.models.targets import clipped, target_of
from zoo.tasks.loader import Transform
from zoo.tasks.pixels import Pixels, decode

MODES = {1: "L", 3: "RGB"}
GREY = 114
LEFT_OVER = 0.1  # share of an object's area that must be in view after augmentation
LEAST = 2  # pixels that it must be wide and high
SEEDS = 2**24  # of mosaics: whole numbers that a target's float32 holds

Unit = Annotated[float, Meta(ge=0, le=1)]
NOTHING: Mapping[str, Sequence[Any]] = {"boxes": [], "labels": [], "crowd": [], "difficult": [], "area": []}


class Augment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How images are varied in training.

    Args:
        hue: largest turn of the colours, of a whole turn.
        saturation: largest relative change.
        value: the same, of brightness.
        flip: probability of a mirror image.
        scale: largest relative change of size.
        translate: largest shift, of the image's width and height.
        mosaic: probability that an image becomes one of four crops in one.
        close_mosaic: the last epochs, so many, have none.
    """

    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.015
    saturation: Unit = 0.7
    value: Unit = 0.4
    flip: Unit = 0.5
    scale: Annotated[float, Meta(ge=0, le=0.9)] = 0.5
    translate: Unit = 0.1
    mosaic: Unit = 1.0
    close_mosaic: Whole = 0


def letterbox(width: int, height: int, to: tuple[int, int]) -> tuple[int, int, int, int]:
    """New width and height of an image, and where it lies in an input of the size `to`, as (left, top)."""
    scale = min(to[0] / width, to[1] / height)
    new = [min(most, max(1, round(side * scale))) for side, most in zip((width, height), to, strict=True)]
    return new[0], new[1], (to[0] - new[0]) // 2, (to[1] - new[1]) // 2


def stretch(width: int, height: int, to: tuple[int, int]) -> tuple[int, int, int, int]:
    """As `letterbox`, for an image that becomes all of the input."""
    return *to, 0, 0


RESIZES = {"letterbox": letterbox, "stretch": stretch}


@dataclass(frozen=True)
class Fitted:
    """An image of any size → a model's input.

    Args:
        size: width and height of the input.
        resize: a name of RESIZES.
        mode: of the image, `RGB` or `L`.
        resample: Pillow's.
        mean: of each channel, 0..1.
        std: of each channel.
    """

    size: tuple[int, int]
    resize: str
    mode: str
    resample: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Pixels) -> Tensor:
        """Image → [C, H, W]."""
        return self.located(image)[0]

    def boxed(self, image: Pixels, label: Mapping[str, Sequence[Any]]) -> tuple[Tensor, Tensor]:
        """Image and label of a row → [C, H, W], and a target as `targets` describes it."""
        tensor, geometry = self.located(image)
        return tensor, target_of(label, geometry)

    def located(self, image: Pixels) -> tuple[Tensor, tuple[float, ...]]:
        """Image → [C, H, W], and scale_x, scale_y, left, top, width, height of the upright image in it."""
        canvas, geometry = self.canvas(image)
        return self.normalised(canvas), geometry

    def canvas(self, image: Pixels) -> tuple[Image.Image, tuple[float, ...]]:
        """The input as an image, and the geometry."""
        decoded = decode(image, self.mode)
        width, height = decoded.size
        new_width, new_height, left, top = RESIZES[self.resize](width, height, self.size)
        if decoded.size != (new_width, new_height):
            decoded = decoded.resize((new_width, new_height), self.resample)
        if decoded.size != self.size:
            canvas = Image.new(self.mode, self.size, (GREY,) * len(self.mean))
            canvas.paste(decoded, (left, top))
            decoded = canvas
        return decoded, (new_width / width, new_height / height, left, top, width, height)

    def normalised(self, canvas: Image.Image) -> Tensor:
        """The input as a tensor [C, H, W]."""
        pixels = torch.from_numpy(np.array(canvas)).reshape(*canvas.size[::-1], -1).permute(2, 0, 1)
        mean, std = (torch.tensor(part)[:, None, None] for part in (self.mean, self.std))
        return pixels.div(255).sub_(mean).div_(std)


@dataclass(frozen=True)
class Augmented:
    """The same, random through the global generators; boxes go along, and the target is in pixels of the input.

    Args:
        fitted: where the image lies before it is varied.
        vary: of torchvision: image and boxes → image and boxes.
        mosaic: probability that a mosaic is made with the image.
        close_mosaic: the last epochs, so many, have none.
    """

    fitted: Fitted
    vary: Any
    mosaic: float
    close_mosaic: int

    @property
    def mode(self) -> str:
        """Of the image that is taken."""
        return self.fitted.mode

    def __call__(self, image: Pixels) -> Tensor:
        """Image → [C, H, W]."""
        return self.boxed(image, NOTHING)[0]

    def boxed(self, image: Pixels, label: Mapping[str, Sequence[Any]]) -> tuple[Tensor, Tensor]:
        """Image and label of a row → [C, H, W], and a target of the input."""
        from torchvision.tv_tensors import BoundingBoxes

        canvas, geometry = self.fitted.canvas(image)
        width, height = canvas.size
        target = target_of(label, geometry)
        scale, offset = target[0, :2].repeat(2), target[0, 2:4].repeat(2)
        inside, size = target[1:, :4] * scale + offset, (height, width)
        boxes = BoundingBoxes(inside, format="XYXY", canvas_size=size, clamping_mode=None)  # `in_view` does it
        canvas, boxes = self.vary(canvas, boxes)
        objects = in_view(torch.cat([boxes.as_subclass(Tensor), target[1:, 4:]], 1), (0, 0, width, height))
        drawn = torch.randint(1, SEEDS, ()).item() if torch.rand(()) < self.mosaic else 0
        first = torch.tensor([[1, 1, 0, 0, width, height, drawn]])
        return self.fitted.normalised(canvas), torch.cat([first, objects])


def in_view(objects: Tensor, window: Sequence[float]) -> Tensor:
    """Objects [M, 7] of a target, clipped to a window (x1, y1, x2, y2), without those of which too little is left."""
    corner = torch.tensor([*window[:2], *window[:2]])
    seen = clipped(objects[:, :4] - corner, window[2] - window[0], window[3] - window[1]) + corner
    whole, sides = objects[:, 2:4] - objects[:, :2], seen[:, 2:] - seen[:, :2]
    kept = (sides >= LEAST).all(1) & (sides.prod(1) >= LEFT_OVER * whole.prod(1))
    return torch.cat([seen, objects[:, 4:6], sides.prod(1, keepdim=True)], 1)[kept]


def evaluation_transform(pretrained_cfg: Mapping[str, Any]) -> Fitted:
    """The preprocessing that a detector is evaluated with.

    Args:
        pretrained_cfg: timm's keys input_size ([C, H, W]), interpolation, mean and std, and `detector`, of which
            `resize` is a name of RESIZES.

    Returns:
        A function from an image, or what `zoo.tasks.pixels.decode` takes, to a tensor [C, H, W].

    Raises:
        DataError: there is no such preprocessing.
    """
    channels, height, width = pretrained_cfg["input_size"]
    mean, std = tuple(pretrained_cfg["mean"]), tuple(pretrained_cfg["std"])
    resize = (pretrained_cfg.get("detector") or {}).get("resize", "letterbox")
    name = str(pretrained_cfg.get("interpolation", "bilinear")).upper()
    if channels not in MODES or not len(mean) == len(std) == channels:
        raise DataError(
            f"pretrained_cfg: expected 1 or 3 channels, a mean and a std for each, found input_size "
            f"{list(pretrained_cfg['input_size'])}, mean {list(mean)} and std {list(std)}; set input_size, mean and std"
        )
    if resize not in RESIZES or name not in Image.Resampling.__members__:
        raise DataError(
            f"pretrained_cfg: expected resize {' or '.join(RESIZES)} and an interpolation such as bilinear, found "
            f"{resize!r} and {name.lower()!r}"
        )
    return Fitted((width, height), resize, MODES[channels], Image.Resampling[name], mean, std)


def training_transform(pretrained_cfg: Mapping[str, Any], augment: Mapping[str, Any]) -> Transform:
    """Random colours, mirror images, sizes and places around the preprocessing of evaluation.

    Args:
        pretrained_cfg: as for `evaluation_transform`.
        augment: fields of `Augment`.

    Returns:
        A function from an image to a tensor [C, H, W], random through the global generators.

    Raises:
        DataError: there is no such augmentation, or no such preprocessing.
    """
    from torchvision.transforms import v2

    how, fitted = validated(Augment, dict(augment), "augment", DataError), evaluation_transform(pretrained_cfg)
    steps = [
        v2.ColorJitter(brightness=how.value, saturation=how.saturation, hue=how.hue),
        v2.RandomHorizontalFlip(how.flip),
    ]
    if how.scale or how.translate:
        ways = {"translate": (how.translate, how.translate), "scale": (1 - how.scale, 1 + how.scale)}
        steps.append(v2.RandomAffine(0, **ways, interpolation=v2.InterpolationMode.BILINEAR, fill=GREY))
    return Augmented(fitted, v2.Compose(steps), how.mosaic, how.close_mosaic)


def in_epoch(transform: Augmented, left: int) -> Augmented:
    """A training transform as it is when so many epochs are left, the one that begins included."""
    return transform if left > transform.close_mosaic else replace(transform, mosaic=0.0)
