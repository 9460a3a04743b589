"""Images into batches, which don't depend on who loads them.

One core decodes and augments some 300 images of 500 x 375 px a second: 1.1 ms is libjpeg's, 0.8 to 1.5 ms Pillow's
bicubic resizing. JPEG's draft mode would save nothing there, as half the size is less than a crop of 224 px needs, and
it would change the pixels that figures were measured on. What helps is workers.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from zoo.errors import DataError, require
from zoo.tasks.identity import Identified
from zoo.tasks.pixels import Pixels, placed
from zoo.tasks.streams import Epoch, Stream

if TYPE_CHECKING:
    from zoo.tasks.columns import Data

Transform = Callable[[Pixels], Any]
SINGLE_PROCESS = 10_000  # images that one process loads before workers would have started
PREFETCH = 4  # batches per worker


def loader(
    data: "Data | Stream",
    transform: Transform,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int | None = None,
    workers: int = 0,
    limit_batches: int | None = None,
) -> DataLoader[tuple[Tensor, int]]:
    """Batches of images [B, C, H, W] (float32) and labels [B] (int64), the same on every process and machine.

    With an epoch, images come in an order drawn from (seed, epoch), each augmented by (seed, epoch, its index), and a
    last partial batch is dropped; the number of workers changes nothing. Without one they come in order, all of them.
    A stream to train on has an order of its own (`zoo.tasks.streams`), which as little depends on workers and
    processes; evaluated by several workers, whose shards take turns, it comes in another order.

    Args:
        data: what `dataset` returns, or a `Stream` of it.
        transform: a picklable function from an image to a tensor [C, H, W].
        batch_size: images per batch.
        seed: of the order and the augmentation.
        epoch: the number of the training epoch; None for evaluation.
        workers: processes that load; 0 loads in this one.
        limit_batches: stop after so many batches.

    Raises:
        DataError: there are fewer images than one training batch needs.
    """
    limit = None if limit_batches is None else limit_batches * batch_size
    samples: Dataset[tuple[Tensor, int]]
    if epoch is not None and hasattr(data, "__len__") and len(data) < batch_size:
        raise DataError(f"expected at least one batch of {batch_size} images, found {len(data)}; lower batch_size")
    if isinstance(data, Stream) and epoch is not None:
        samples = _Rows(Epoch(data, batch_size, seed, epoch), transform, limit)
    elif isinstance(data, Stream):
        return loader(data.data, transform, batch_size, workers=workers, limit_batches=limit_batches)
    elif isinstance(data, require("datasets", "eval").IterableDataset):
        if epoch is not None:
            raise DataError("a stream to train on needs the number of its images: zoo.tasks.lengths.counted finds it")
        samples = _Stream(data if limit is None else data.take(limit), transform)
    else:
        order = np.arange(len(data)) if epoch is None else np.random.default_rng([seed, epoch]).permutation(len(data))
        samples = _Samples(data, order[:limit], transform, seed, epoch)
    return DataLoader(
        samples,
        batch_size,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=torch.accelerator.is_available(),
        drop_last=epoch is not None,
        worker_init_fn=_deaf_to_ctrl_c,
        generator=torch.Generator(),  # without one of its own it draws from the caller's
    )


def _deaf_to_ctrl_c(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that the worker loads for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def workers_for(data: "Data | Stream") -> int:
    """How many processes should load images here: a core each, shared with the other training processes."""
    if not hasattr(data, "__len__") or len(data) < SINGLE_PROCESS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


# The order lies in the data, not in a sampler: accelerate then shards and skips batches of it as of any other data,
# and counts the images of a shortened one right. Neither class may have a `set_epoch`, which accelerate would call.
@dataclass(frozen=True)
class _Samples(Dataset[tuple[Tensor, int]]):
    data: Any
    order: "np.ndarray[Any, np.dtype[np.int64]]"
    transform: Transform
    seed: int
    epoch: int | None

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, positions: list[int]) -> list[tuple[Tensor, int]]:
        indices = self.order[positions].tolist()
        rows = self.data[indices]
        with generators_kept():
            return [
                (_apply(self.transform, placed(image, index), self.seed, self.epoch, index), label)
                for index, image, label in zip(indices, rows["image"], rows["label"], strict=True)
            ]

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.__getitems__([position])[0]


@dataclass(frozen=True)
class _Rows(Dataset[tuple[Tensor, int]]):
    rows: Epoch
    transform: Transform
    limit: int | None

    def __len__(self) -> int:
        return len(self.rows) if self.limit is None else min(self.limit, len(self.rows))

    def __getitems__(self, positions: list[int]) -> list[tuple[Tensor, int]]:
        with generators_kept():
            return [self._sample(*self.rows.row(position)) for position in positions]

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.__getitems__([position])[0]

    def _sample(self, number: int, row: Mapping[str, Any]) -> tuple[Tensor, int]:
        image = placed(row["image"], number)
        return _apply(self.transform, image, self.rows.seed, self.rows.number, number), row["label"]


@dataclass(frozen=True)
class _Stream(IterableDataset[tuple[Tensor, int]]):
    data: Any
    transform: Transform

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        for index, row in enumerate(self.data):
            which = f"{worker.id}/{index}" if worker else index  # each worker counts its own shards
            with generators_kept():
                image = _apply(self.transform, placed(row["image"], which), 0, None, which)
            yield image, row["label"]


def _apply(transform: Transform, image: Any, seed: int, epoch: int | None, index: int | str) -> Any:
    if isinstance(image, Tensor) and not isinstance(transform, Identified):  # of a torch data set that preprocesses
        return image
    if epoch is not None:
        random.seed(f"{seed} {epoch} {index}")
        np.random.seed(random.getrandbits(32))
        # torch.manual_seed would seed every accelerator as well
        torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        return transform(image)  # a tensor, or of `Views` one for each network
    except DataError as error:
        raise DataError(f"{error}; --skip-damaged leaves such images out") from None


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the global generators of Python, numpy and torch as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
