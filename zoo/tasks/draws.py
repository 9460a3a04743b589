"""Which images of a data set are used: a draw over all of it, and none that is damaged.

A draw of N is the beginning of a draw of more. Each class has its share in it, as in the whole set, so an accuracy on a
draw is one of the whole.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import DataError, require
from zoo.printable import logger
from zoo.progress import bar, shown
from zoo.tasks.columns import has_boxes, labels_of, text_of
from zoo.tasks.pixels import decode, placed

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logger(__name__)

HELD = 10_000  # the largest draw of a stream that is held in memory: 1 GB of ImageNet
THROUGH = 50_000  # the largest stream that is read through for a draw
BUFFER = 2_000  # images, undecoded, that a longer stream is shuffled in: 200 MB of ImageNet
LOOKED_THROUGH = 10_000  # images that are all looked at before a long computation begins
SCANNED = 256  # images in memory during a scan
MOST_LISTED = 3  # of those left out


def order(labels: Sequence[Any] | NDArray[Any], seed: int) -> NDArray[np.int64]:
    """A random order whose every beginning holds each class in its share.

    Formula: sorted by (r + 1/2) / n, where an image is the r-th of its class in random order, of n.

    Args:
        labels: of all images [N].
        seed: of the draw.

    Returns:
        The numbers of the images [N].
    """
    drawn = np.random.default_rng(seed).permutation(len(labels))
    _, classes, counts = np.unique(np.asarray(labels)[drawn], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    ranks = np.empty(len(drawn))
    ranks[by_class] = np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
    return drawn[np.argsort((ranks + 0.5) / counts[classes], kind="stable")]


def drawn(data: "Dataset", limit: int, seed: int, spec: str) -> "Dataset":
    """Some images of map-style data; all of it, in its order, where there are no more."""
    if limit >= len(data):
        return data
    labels = labels_of(data)
    chosen = order(np.zeros(len(data)) if labels is None else labels, seed)[:limit]
    _say(spec, limit, len(data), labels, chosen)
    return data.select(chosen)


def drawn_of_stream(
    stream: "IterableDataset", limit: int, seed: int, spec: str, labels: Callable[[], Sequence[Any] | None]
) -> "Dataset | IterableDataset":
    """Some images of a stream, held in memory where they are few.

    Where the labels can be read alone and the stream isn't long, the draw is that of map-style data. Else shards are
    shuffled and then a buffer, which mixes less.

    Args:
        stream: with the columns `image` and `label`.
        limit: how many.
        seed: of the draw.
        spec: of the data, for what is said.
        labels: reads the labels of all images; None where it can't be done.
    """
    datasets = require("datasets", "eval")
    known = labels()
    if known is not None and has_boxes(stream):
        known = [0] * len(known)
    if known is not None and limit >= len(known):
        return stream
    if known is not None and len(known) <= THROUGH and limit <= HELD:
        chosen = order(known, seed)[:limit]
        rows = _rows(stream, chosen, spec)
        _say(spec, limit, len(known), None if has_boxes(stream) else np.asarray(known), chosen)
        return datasets.Dataset.from_list(rows, features=stream.features)
    shards = stream.reshard() if hasattr(stream, "reshard") else stream
    shuffled = shards.shuffle(seed=seed, buffer_size=max(BUFFER, limit if limit <= HELD else 0)).take(limit)
    if limit > HELD:
        log.info("%s: %d images drawn by a buffer of %d over its shards in random order", spec, limit, BUFFER)
        return shuffled
    rows = list(shuffled)
    of = "" if has_boxes(stream) else f", of {len({row['label'] for row in rows})} classes"
    log.info("%s: %d images drawn by a buffer over its shards in random order%s", spec, len(rows), of)
    return datasets.Dataset.from_list(rows, features=stream.features)


def _rows(stream: "IterableDataset", chosen: NDArray[np.int64], spec: str) -> list[Any]:
    """The rows of these numbers, in that order."""
    place = {int(number): position for position, number in enumerate(chosen)}
    rows: list[Any] = [None] * len(chosen)
    most = int(chosen.max()) + 1
    for number, row in enumerate(shown(stream.take(most), f"draw of {spec}", most, "image")):
        if number in place:
            rows[place[number]] = row
    return rows


def _say(spec: str, limit: int, images: int, labels: NDArray[Any] | None, chosen: NDArray[np.int64]) -> None:
    if labels is None:
        log.info("%s: %d of %d images drawn", spec, limit, images)
    else:
        seen, classes = len(np.unique(labels[chosen])), len(np.unique(labels))
        log.info("%s: %d of %d images drawn, of %d of its %d classes", spec, limit, images, seen, classes)


def undamaged(data: "Dataset", spec: str) -> "Dataset":
    """Map-style data without the images that can't be decoded, which are counted and listed."""
    messages = damaged(data, spec)
    if not messages:
        return data
    named = ", ".join(list(messages.values())[:MOST_LISTED]) + (", ..." if len(messages) > MOST_LISTED else "")
    log.warning("%s: %d of %d images can't be decoded and are left out: %s", spec, len(messages), len(data), named)
    for message in messages.values():
        log.debug("left out: %s", message)
    return data.select([number for number in range(len(data)) if number not in messages])


def whole(image: Any) -> bool:
    """Whether an image of a stream can be decoded; one that can't is listed."""
    message = _damage(image)
    if message:
        log.warning("left out: %s", message)
    return message is None


def check_whole(data: Any, spec: str) -> None:
    """Look at the images of map-style data, where they are few, before a long computation begins.

    Raises:
        DataError: some can't be decoded.
    """
    if not hasattr(data, "__len__") or len(data) > LOOKED_THROUGH:
        return
    if messages := damaged(data, spec):
        first, *others = messages.values()
        also = f", and {len(others)} others of {spec}" if others else ""
        raise DataError(f"{first}{also}; --skip-damaged leaves them out")


def damaged(data: "Dataset", spec: str) -> dict[int, str]:
    """What can't be decoded: the number of each such image, and what is wrong with it."""
    problems: dict[int, str] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with bar(f"decode {spec}", len(data), "image") as decoded, ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(data), SCANNED):
            images = data[start : start + SCANNED]["image"]
            messages = pool.map(_damage, [placed(image, start + i) for i, image in enumerate(images)])
            problems |= {start + i: message for i, message in enumerate(messages) if message}
            decoded.update(len(images))
    return problems


def _damage(image: Any) -> str | None:
    if isinstance(image, torch.Tensor) or text_of(image) is not None:
        return None
    try:
        decode(image)
    except DataError as error:
        return str(error)
    return None
