"""The two data sets that need no download: scikit-learn's digits, and pairs of them.

`digits` has 1,797 grey images of 8 x 8 px in 10 classes. `digit_pairs` has as many images as one likes: two digits on
a textured ground of 64 x 64 px, in 100 classes (10 · left + right). A pair of the test split is made of digits of the
test split alone, so nothing that was trained on is ever tested.

Source: https://archive.ics.uci.edu/dataset/80 (E. Alpaydin, C. Kaynak; the test part, as scikit-learn bundles it).
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.errors import require

if TYPE_CHECKING:
    from datasets import Dataset

SIDE = 64
SIZES = {"train": 100_000, "test": 5_000}
SEEDS = {"train": 0, "test": 1}


@cache
def digits(split: str) -> "Dataset":
    """The 1,347 `train` or 450 `test` images of scikit-learn's digits, split with equal shares of each class.

    Returns:
        A data set of `image` (PIL, mode L, 8 x 8 px, 0..255) and `label` (0..9).
    """
    datasets = require("datasets", "eval")
    pixels, labels = half(split)
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": labels},
        features=datasets.Features(
            {"image": datasets.Image(mode="L"), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
        ),
    )


def digit_pairs(split: str, size: int | None = None) -> "Dataset":
    """Two digits side by side on a textured ground; image i is always the same, whatever the size.

    Images are rendered when they are read; until then the column `image` holds their numbers.

    Args:
        split: `train` or `test`.
        size: the number of images; 100,000 or 5,000 if None. Any 100 in a row hold each class once.

    Returns:
        A data set of `image` (PIL, mode L, 64 x 64 px, 0..255) and `label` (0..99).
    """
    datasets = require("datasets", "eval")
    numbers = np.arange(SIZES[split] if size is None else size)
    pixels, labels = half(split)
    glyphs = [[Image.fromarray(image) for image in pixels[labels == digit]] for digit in range(10)]
    pairs = datasets.Dataset.from_dict(
        {"image": numbers, "label": numbers % 100},
        features=datasets.Features(
            {
                "image": datasets.Value("int64"),
                "label": datasets.ClassLabel(names=[f"{pair:02d}" for pair in range(100)]),
            }
        ),
    )
    transform = partial(_render_batch, glyphs=glyphs, seed=SEEDS[split])
    return pairs.with_transform(transform, columns=["image"], output_all_columns=True)


def half(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The digits of a split: pixels [N, 8, 8] of 0..255, and labels [N]."""
    sklearn_datasets = require("sklearn.datasets", "eval")
    model_selection = require("sklearn.model_selection", "eval")
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    halves = model_selection.train_test_split(images, labels, test_size=450, stratify=labels, random_state=0)
    part = ("train", "test").index(split)
    pixels = np.rint(halves[part] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return pixels, halves[2 + part]


def _render_batch(batch: dict[str, list[int]], *, glyphs: list[list[Image.Image]], seed: int) -> dict[str, list[Any]]:
    if "image" not in batch:
        return {}
    return {"image": [_render(number, glyphs, seed) for number in batch["image"]]}


def _render(number: int, glyphs: list[list[Image.Image]], seed: int) -> Image.Image:
    rng = np.random.default_rng([seed, number])
    ground = Image.fromarray(rng.integers(0, 112, (6, 6), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    ink = Image.new("L", (SIDE, SIDE))
    for place, digit in enumerate(divmod(number % 100, 10)):
        which, scale, across, down = rng.random(4)
        side = int(22 + 10 * scale)
        corner = (int(32 * place + across * (33 - side)), int(down * (SIDE + 1 - side)))
        glyph = glyphs[digit][int(which * len(glyphs[digit]))]
        ink.paste(glyph.resize((side, side), Image.Resampling.BILINEAR), corner)
    contrast = np.float32(0.15 + 0.6 * rng.random())
    noise = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    pixels = np.asarray(ground) + contrast * np.asarray(ink) + 16 * noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
