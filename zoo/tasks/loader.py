"""Images into batches, which don't depend on who loads them.

One core decodes and augments some 300 images of 500 x 375 px a second: 1.1 ms is libjpeg's, 0.8 to 1.5 ms Pillow's
bicubic resizing. JPEG's draft mode would save nothing there, as half the size is less than a crop of 224 px needs, and
it would change the pixels that figures were measured on. What helps is workers.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
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
Pair = Callable[[Any, Any, Any], tuple[Any, Any]]
Taken = Callable[[Any, Any], tuple[Any, Any]]  # a pair of a transform
SINGLE_PROCESS = 10_000  # images that one process loads before workers would have started
PREFETCH = 4  # batches per worker


@dataclass(frozen=True)
class Mixed:
    """Samples that are made of several.

    Args:
        size: of the groups that a batch is cut into; its last one may be smaller.
        made: a picklable function from the samples of a group, and the number of one of them, to what that one becomes.
    """

    size: int
    made: Callable[[Sequence[Any], int], Any]

    def group(self, position: int, batch_size: int) -> range:
        """The positions in an epoch of the group that a position is of."""
        slot = position % batch_size
        start = slot - slot % self.size
        return range(position - slot + start, position - slot + min(start + self.size, batch_size))


def labelled(transform: Transform, image: Any, label: Any) -> tuple[Any, Any]:
    """What a transform makes of an image, with the image's label."""
    if isinstance(image, Tensor) and not isinstance(transform, Identified):  # of a torch data set that preprocesses
        return image, label
    return transform(image), label


def loader(
    data: "Data | Stream",
    transform: Transform,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int | None = None,
    workers: int = 0,
    limit_batches: int | None = None,
    pair: Pair = labelled,
    collate: Callable[[list[Any]], Any] | None = None,
    mixed: Mixed | None = None,
) -> DataLoader[tuple[Tensor, Any]]:
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
        pair: a picklable function from the transform, an image and its label to a sample, where the transform changes
            what the label means.
        collate: a picklable function from samples to a batch; None is torch's.
        mixed: how samples of a training batch are made of several of it.

    Raises:
        DataError: there are fewer images than one training batch needs.
    """
    limit = None if limit_batches is None else limit_batches * batch_size
    taken = partial(pair, transform)
    samples: Dataset[tuple[Tensor, Any]]
    if epoch is not None and hasattr(data, "__len__") and len(data) < batch_size:
        raise DataError(f"expected at least one batch of {batch_size} images, found {len(data)}; lower batch_size")
    if isinstance(data, Stream) and epoch is None:
        data = data.data
    if isinstance(data, Stream):
        samples = _Rows(batch_size, mixed, Epoch(data, batch_size, seed, epoch or 0), taken, limit)
    elif isinstance(data, require("datasets", "eval").IterableDataset):
        if epoch is not None:
            raise DataError("a stream to train on needs the number of its images: zoo.tasks.lengths.counted finds it")
        samples = _Stream(data if limit is None else data.take(limit), taken, batch_size)
    else:
        order = np.arange(len(data)) if epoch is None else np.random.default_rng([seed, epoch]).permutation(len(data))
        samples = _Samples(batch_size, mixed, data, order[:limit], taken, seed, epoch)
    return _loading(samples, workers, collate, batch_size=batch_size, drop_last=epoch is not None)


def taking_turns(loader: DataLoader[Any], process: int, processes: int) -> DataLoader[Any]:
    """The batches of a loader that one of several processes evaluates: of so many in turn, its own.

    Of a stream each process reads its own shards, one after the other (`sharded`), which make other batches of the same
    images; where there are fewer shards than processes each reads all rows, but decodes those of its own batches alone.

    Args:
        loader: from `loader` without an epoch, or any that has a batch sampler.
        process: which one, from 0.
        processes: how many there are.
    """
    if processes == 1:
        return loader
    same = partial(_loading, workers=loader.num_workers, collate=loader.collate_fn)
    if isinstance(loader.dataset, _Stream):
        parts = sharded(loader, processes)
        mine = {"data": loader.dataset.data.shard(processes, process)} if parts else {"turn": (process, processes)}
        return same(replace(loader.dataset, **mine), batch_size=loader.batch_size)
    return same(loader.dataset, batch_sampler=[*islice(loader.batch_sampler or (), process, None, processes)])


def sharded(loader: DataLoader[Any], processes: int) -> bool:
    """Whether several processes read a part of a loader's images each, from end to end, and don't take turns."""
    return processes > 1 and isinstance(loader.dataset, _Stream) and loader.dataset.data.num_shards >= processes


def ahead(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader, each loaded while the one before it is computed: by its workers, or else by a thread.

    Decoding, resizing and hashing let other threads run.
    """
    if loader.num_workers:
        yield from loader
        return
    batches = iter(loader)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def images_of(loader: DataLoader[Any]) -> int | None:
    """How many images a loader without an epoch gives, where that is known."""
    data: Any = loader.dataset
    if hasattr(data, "__len__"):
        return len(data)
    told = data.data.info.splits if isinstance(data, _Stream) else None
    return (told or {})[str(data.data.split)].num_examples if told and str(data.data.split) in told else None


def _loading(samples: Dataset[Any], workers: int, collate: Any, **batches: Any) -> DataLoader[Any]:
    return DataLoader(
        samples,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=torch.accelerator.is_available(),
        collate_fn=collate,
        worker_init_fn=_deaf_to_ctrl_c,
        generator=torch.Generator(),  # without one of its own it draws from the caller's
        **batches,
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
# and counts the images of a shortened one right. No class may have a `set_epoch`, which accelerate would call.
@dataclass(frozen=True)
class _Positions(Dataset[tuple[Tensor, Any]]):
    batch_size: int
    mixed: Mixed | None

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[tuple[Tensor, Any]]:
        if self.mixed is None:
            return self.samples(positions)
        groups = [self.mixed.group(position, self.batch_size) for position in positions]
        wanted = sorted(set().union(*groups))  # also what other processes have of a group
        found = dict(zip(wanted, self.samples(wanted), strict=True))
        pairs = zip(groups, positions, strict=True)
        return [self.mixed.made([found[each] for each in group], group.index(position)) for group, position in pairs]

    def samples(self, positions: list[int]) -> list[tuple[Tensor, Any]]:
        raise NotImplementedError


@dataclass(frozen=True)
class _Samples(_Positions):
    data: Any
    order: "np.ndarray[Any, np.dtype[np.int64]]"
    taken: Taken
    seed: int
    epoch: int | None

    def __len__(self) -> int:
        return len(self.order)

    def samples(self, positions: list[int]) -> list[tuple[Tensor, Any]]:
        indices = self.order[positions].tolist()
        rows = self.data[indices]
        with generators_kept():
            return [
                _sample(self.taken, placed(image, index), label, self.seed, self.epoch, index)
                for index, image, label in zip(indices, rows["image"], rows["label"], strict=True)
            ]


@dataclass(frozen=True)
class _Rows(_Positions):
    rows: Epoch
    taken: Taken
    limit: int | None

    def __len__(self) -> int:
        return len(self.rows) if self.limit is None else min(self.limit, len(self.rows))

    def samples(self, positions: list[int]) -> list[tuple[Tensor, Any]]:
        with generators_kept():
            return [self._sample(*self.rows.row(position)) for position in positions]

    def _sample(self, number: int, row: Mapping[str, Any]) -> tuple[Tensor, Any]:
        image, label = placed(row["image"], number), row["label"]
        return _sample(self.taken, image, label, self.rows.seed, self.rows.number, number)


@dataclass(frozen=True)
class _Stream(IterableDataset[tuple[Tensor, Any]]):
    data: Any
    taken: Taken
    batch_size: int
    turn: tuple[int, int] = 0, 1  # of so many batches which one is taken

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        worker, (mine, every) = get_worker_info(), self.turn
        for index, row in enumerate(self.data):
            if index // self.batch_size % every != mine:
                continue
            which = f"{worker.id}/{index}" if worker else index  # each worker counts its own shards
            with generators_kept():
                sample = _sample(self.taken, placed(row["image"], which), row["label"], 0, None, which)
            yield sample


def _sample(taken: Taken, image: Any, label: Any, seed: int, epoch: int | None, index: int | str) -> tuple[Tensor, Any]:
    if epoch is not None:
        random.seed(f"{seed} {epoch} {index}")
        np.random.seed(random.getrandbits(32))
        # torch.manual_seed would seed every accelerator as well
        torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        return taken(image, label)
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
