"""Data for training and evaluation, by name, folder or Hub id, or as an object: always rows of `image` and `label`.

Images are handed on as they are stored; `zoo.tasks.pixels` alone decodes them.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from zoo.catalog.data_names import data_name, folder_named, form_of_boxes, limited
from zoo.errors import DataError, as_cause, first_line, require
from zoo.interruption import acts_at_last
from zoo.tasks import columns, draws, objects
from zoo.tasks.digits import digit_pairs, digits
from zoo.tasks.folders import SPLITS, folder_of_data, split_of
from zoo.tasks.inside import check_card
from zoo.tasks.scenes import digit_scenes

if TYPE_CHECKING:
    from datasets import Dataset, IterableDatasetDict

    from zoo.tasks.columns import Data

NOISE_IMAGES, NOISE_CLASSES = 64, 1000
RENDERED = {"digit_pairs": digit_pairs, "digit_scenes": digit_scenes}


@acts_at_last()  # the library hashes each transform, and catches whatever is raised meanwhile
def dataset(
    spec: Any,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    skip_damaged: bool = False,
    boxes: str | None = None,
) -> "Data":
    """Open a data set of images and their classes or boxes, or of texts and their classes.

    Args:
        spec: `digits`, `digit_pairs`, `digit_scenes` (with boxes), `noise` (random pixels in 1,000 classes, to try a
            pipeline with), a folder, or the id of a data set on the Hub (`ILSVRC/imagenet-1k`), which is streamed. A
            folder has one sub-folder per class within `train` and `validation`, images with metadata, parquet files or
            tars in Hub layout (of texts, with a column `text`), or objects as COCO or VOC has them
            (`zoo.tasks.annotations`). `SPEC[:N]` is the same with the limit N, `SPEC.xywh` or `SPEC.xyxy` says what its
            boxes are where it doesn't tell. Or an object, as `zoo.tasks.objects.opened` takes it.
        split: `train` or `test`; of a folder or Hub data set, `test` is its validation split where there is one. An
            object without splits is taken whole.
        limit: draw at most so many images from all of it, each class in its share; a draw from a stream is held in
            memory. `digit_pairs` and `digit_scenes` have exactly so many.
        seed: of the draw.
        skip_damaged: leave out images that can't be decoded, and list them; of a stream, as it is read.
        boxes: what they are, `xywh` or `xyxy`, of an object that doesn't tell; None takes what the name says.

    Returns:
        A data set (an iterable one if streamed) with the columns `image`, as `zoo.tasks.pixels.decode` takes it, and
        `label`: a class's number, or boxes as `zoo.models.targets` describes them.

    Raises:
        UnknownName: the word names no data set.
        DataError: the split, the columns or the images are missing, or the Hub can't be reached.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    form = boxes or form_of_boxes(spec)
    spec, most = limited(spec)
    limit = min((each for each in (most, limit) if each is not None), default=None)
    if isinstance(spec, str) and spec in RENDERED:
        return RENDERED[spec](split, limit)
    name = data_name(spec)
    opened = _opened(spec, split, form)
    if columns.is_stream(opened):
        hub = spec if isinstance(spec, str) else None
        labels = partial(_labels_alone, spec, split) if hub else _unknown
        return _of_stream(name, opened, labels, limit, seed, skip_damaged, hub, form)
    data = columns.of_table(name, opened, form)
    _check_form(name, data, form)
    data = data if limit is None else draws.drawn(data, limit, seed, name)
    return draws.undamaged(data, name) if skip_damaged else data


def _opened(spec: Any, split: str, form: str | None) -> Any:
    """A data set as its library gives it."""
    if not isinstance(spec, str):
        return objects.opened(spec, split, form)
    if spec == "digits":
        return digits(split)
    if spec == "noise":
        return _noise(split)
    folder = folder_named(spec)
    return split_of(spec, _hub(spec), split) if folder is None else folder_of_data(folder, split)


def _of_stream(
    name: str,
    opened: Any,
    labels: Callable[[str], Sequence[Any] | None],
    limit: int | None,
    seed: int,
    skip: bool,
    hub: str | None,
    form: str | None,
) -> "Data":
    _, label = columns.columns_of(name, opened)
    stream = columns.of_stream(name, opened, partial(labels, label), hub, form)
    _check_form(name, stream, form)
    data = stream if limit is None else draws.drawn_of_stream(stream, limit, seed, name, partial(labels, label))
    if not skip:
        return data
    return data.filter(draws.whole, input_columns=["image"]) if columns.is_stream(data) else draws.undamaged(data, name)


def _check_form(name: str, data: "Data", form: str | None) -> None:
    if form and not columns.has_boxes(data):
        raise DataError(f"{name}: it has no boxes that could be {form}: leave .{form} out")


def _labels_alone(name: str, split: str, label: str) -> list[Any] | None:
    """The labels of a stream, read without its images; None where its files don't let that be done."""
    datasets = require("datasets", "eval")
    try:
        rows = split_of(name, datasets.load_dataset(name, streaming=True, columns=[label]), split)
        return [row[label] for row in rows]
    except Exception:  # the library lets through whatever its readers raise; the stream itself says what is wrong
        return None


def _unknown(label: str) -> None:
    return None


def _hub(spec: str) -> "IterableDatasetDict":
    datasets = require("datasets", "eval")
    check_card(spec)
    try:
        return datasets.load_dataset(spec, streaming=True)
    except Exception as error:  # the library lets through whatever its HTTP client and file readers raise
        if "gated" in str(error):
            page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/datasets/{spec}"
            raise DataError(f"{spec} is gated: accept its terms on {page}, then: hf auth login") from as_cause(error)
        raise DataError(
            f"{spec}: neither a folder here nor a data set that could be opened on the Hub ({first_line(error)}); "
            "check the name and the network, and if it is gated accept its terms there and run: hf auth login"
        ) from as_cause(error)


def _noise(split: str) -> "Dataset":
    datasets = require("datasets", "eval")
    rng = np.random.default_rng(list(SPLITS).index(split))
    pixels = rng.integers(0, 256, (NOISE_IMAGES, 96, 128, 3), dtype=np.uint8)
    labels = rng.integers(0, NOISE_CLASSES, NOISE_IMAGES)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(NOISE_CLASSES)}
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": labels}, datasets.Features(features)
    )
