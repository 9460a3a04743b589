"""The data set of boxes that needs no download: 1 to 8 digits of many sizes on a textured ground, 128 x 128 px.

A digit is 12 to 112 px on its longer side, its logarithm uniform, and overlaps another by an IoU of 0.4 at most;
smaller ones lie on top. Digits of the test split are drawn from those of the test split of `digits` alone, so no stroke
that was trained on is ever tested, and class is told by shape, not by colour.
"""

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.errors import require
from zoo.tasks.boxes import label_features
from zoo.tasks.digits import SEEDS, half

if TYPE_CHECKING:
    from datasets import Dataset

SIDE = 128
SIZES = {"train": 6_000, "test": 1_000}
MOST = 8  # digits of an image
SIDES = (12, 112)  # px
OVERLAP = 0.4  # largest IoU of two boxes
TRIES = 64  # places that are tried for the digits of an image
INK = 64  # from which a pixel of 255 counts as a stroke of a digit


class Digit(NamedTuple):
    """A digit in a scene: its class, which of that class, and its box (x1, y1, x2, y2)."""

    label: int
    which: int
    box: tuple[int, int, int, int]


def digit_scenes(split: str, size: int | None = None) -> "Dataset":
    """Scenes of digits with their boxes; image i is always the same, whatever the size.

    Images are rendered when they are read; until then the column `image` holds their numbers.

    Args:
        split: `train` or `test`.
        size: the number of images; 6,000 or 1,000 if None.

    Returns:
        A data set of `image` (PIL, mode RGB, 128 x 128 px) and `label`, as `zoo.models.targets` describes it,
        of classes 0 to 9.
    """
    datasets = require("datasets", "eval")
    numbers = range(SIZES[split] if size is None else size)
    labels = [_label(scene(split, number)) for number in numbers]
    names = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    scenes = datasets.Dataset.from_dict(
        {"image": list(numbers), "label": labels},
        features=datasets.Features({"image": datasets.Value("int64"), "label": label_features(names)}),
    )
    return scenes.with_transform(partial(_render_batch, split=split), columns=["image"], output_all_columns=True)


def scene(split: str, number: int) -> list[Digit]:
    """What is in an image, largest first."""
    rng = np.random.default_rng([SEEDS[split], number])
    wanted, found = int(rng.integers(1, MOST + 1)), list[Digit]()
    for label, which, size, across, down in rng.random((TRIES, 5)).tolist():
        glyphs = _glyphs(split)[int(10 * label)]
        glyph = glyphs[int(which * len(glyphs))]
        side = math.exp(math.log(SIDES[0]) + size * math.log(SIDES[1] / SIDES[0]))
        width, height = (max(1, round(side * part / max(glyph.size))) for part in glyph.size)
        left, top = round(across * (SIDE - width)), round(down * (SIDE - height))
        digit = Digit(int(10 * label), int(which * len(glyphs)), (left, top, left + width, top + height))
        if all(_iou(digit.box, other.box) <= OVERLAP for other in found):
            found.append(digit)
        if len(found) == wanted:
            break
    return sorted(found, key=lambda digit: -_area(digit.box))


def render(split: str, number: int) -> Image.Image:
    """An image."""
    rng = np.random.default_rng([SEEDS[split], number, 1])
    low = rng.integers(0, 160)
    ground = rng.integers(low, low + 96, (6, 6, 3), dtype=np.uint8)
    canvas = Image.fromarray(ground).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noise = rng.standard_normal((SIDE, SIDE, 3), dtype=np.float32)
    for digit in scene(split, number):
        left, top, right, bottom = digit.box
        glyph = _glyphs(split)[digit.label][digit.which].resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        stroke = glyph.point([min(255, max(0, 2 * value - 96)) for value in range(256)])
        dark = np.asarray(canvas.crop(digit.box)).mean() < 128
        ink = rng.integers(160 if dark else 0, 256 if dark else 96, 3)
        canvas.paste(tuple(ink.tolist()), digit.box, stroke)
    return Image.fromarray((np.asarray(canvas) + 12 * noise).clip(0, 255).astype(np.uint8))


@cache
def _glyphs(split: str) -> list[list[Image.Image]]:
    """The digits of each class, cut to their strokes."""
    pixels, labels = half(split)
    return [[_cut(glyph) for glyph in pixels[labels == digit]] for digit in range(10)]


def _cut(glyph: NDArray[np.uint8]) -> Image.Image:
    rows, columns = (np.flatnonzero((glyph >= INK).any(axis)) for axis in (1, 0))
    return Image.fromarray(glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _label(digits: list[Digit]) -> dict[str, list[Any]]:
    return {
        "boxes": [list(digit.box) for digit in digits],
        "labels": [digit.label for digit in digits],
        "crowd": [False] * len(digits),
        "difficult": [False] * len(digits),
        "area": [_area(digit.box) for digit in digits],
    }


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _iou(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    width, height = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    common = max(width, 0) * max(height, 0)
    return common / (_area(box) + _area(other) - common)


def _render_batch(batch: dict[str, list[int]], *, split: str) -> dict[str, list[Any]]:
    if "image" not in batch:
        return {}
    return {"image": [render(split, number) for number in batch["image"]]}
