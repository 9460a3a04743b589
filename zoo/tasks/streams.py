"""Streams to train on: rows by their position in an epoch, read from many places at once by whoever wants them.

The rows of an epoch, shard after shard in an order drawn from (seed, epoch), are cut into `GROUPS` x `LANES` stretches
of equal length, the lanes. Batch b takes its rows from the lanes of group b mod `GROUPS`, an equal part from each, and
each lane mixes its rows within windows of `WINDOW`. So a batch of a set sorted by class, even of one file, has images
of `LANES` far-off places; processes, whose parts of a batch lie in different lanes, read different rows; so do workers,
who take turns with batches; and a row has its position whoever reads. What is skipped isn't decoded, and whole shards
of it aren't read.

That needs the number of rows of each shard. Where only their total is known, an epoch is one lane that is mixed within
as many rows, its shards in an order drawn from (seed, epoch), and every process and worker reads all of it, but decodes
its own share alone.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError

LANES, GROUPS, WINDOW = 16, 4, 64  # 4,096 rows in memory, undecoded: 450 MB of ImageNet, shared out over the workers


@dataclass(frozen=True)
class Stream:
    """A stream that knows how many rows it has.

    Args:
        data: an IterableDataset of `datasets`, with the columns `image` and `label`.
        total: its rows, or as many as an epoch shall have; if it ends sooner it begins again.
        rows: of each of its shards; nothing where that isn't known.
    """

    data: Any
    total: int
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.total

    @property
    def features(self) -> Any:
        """The columns, as `datasets` describes them."""
        return self.data.features


@dataclass
class Epoch:
    """The rows of one epoch, by position; positions of a lane are wanted in ascending order, or it is read again.

    Args:
        stream: what is read.
        batch_size: rows of a batch; a last partial one is left out.
        seed: of the order.
        number: of the epoch.
    """

    stream: Stream
    batch_size: int
    seed: int
    number: int
    _open: dict[int, "_Lane"] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size * self.batch_size

    @cached_property
    def lanes(self) -> int:
        """How many lanes a batch has rows from."""
        return math.gcd(self.batch_size, LANES) if self.stream.rows else 1

    @cached_property
    def groups(self) -> int:
        """After how many batches lanes come again."""
        return GROUPS if self.stream.rows else 1

    def place(self, position: int) -> tuple[int, int]:
        """The lane of a position, and its place in the lane."""
        batch, slot = divmod(position, self.batch_size)
        turn, group = divmod(batch, self.groups)
        each = self.batch_size // self.lanes
        lane, within = divmod(slot, each)
        return group * self.lanes + lane, turn * each + within

    def row(self, position: int) -> tuple[int, Mapping[str, Any]]:
        """The number of a row in the stream, and the row."""
        lane, place = self.place(position)
        if lane not in self._open:
            self._open[lane] = _Lane(self, lane)
        return self._open[lane].row(place)

    @cached_property
    def starts(self) -> list[int]:
        """Where each lane begins, and the last one ends, in the epoch's sequence of rows."""
        batches, each = len(self) // self.batch_size, self.batch_size // self.lanes
        counts = [len(range(group, batches, self.groups)) * each for group in range(self.groups)]
        return [0, *accumulate(count for count in counts for _ in range(self.lanes))]

    @cached_property
    def shards(self) -> tuple[NDArray[np.int64], list[int], list[int]]:
        """The shards in the epoch's order, where each begins in that order, and where in the stream's own."""
        order = np.random.default_rng([self.seed, self.number]).permutation(len(self.stream.rows))
        begins = [0, *accumulate(self.stream.rows[shard] for shard in order)]
        return order, begins, [0, *accumulate(self.stream.rows)]

    def read(self, first: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows from one place of the epoch's sequence on, each with its number in the stream."""
        if not self.stream.rows:
            yield from self._passes(first)
            return
        order, begins, own = self.shards
        start = bisect_right(begins, first) - 1
        for index in range(start, len(order)):
            shard = int(order[index])
            skipped = first - begins[index] if index == start else 0
            data = self.stream.data.shard(self.stream.data.num_shards, shard)
            wanted = range(own[shard] + skipped, own[shard + 1])
            yield from zip(wanted, _rows(data, skipped), strict=False)

    def _passes(self, first: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The stream again and again."""
        number, begun = 0, -1
        for each in count():
            if begun == number:
                return  # it is empty
            begun, seed = number, np.random.SeedSequence([self.seed, self.number, each]).generate_state(1)[0]
            for row in _rows(self.stream.data.shuffle(seed=int(seed), buffer_size=1), 0):  # of its shards alone
                if number >= first:
                    yield number, row
                number += 1


class _Lane:
    """One lane of an epoch."""

    def __init__(self, epoch: Epoch, number: int) -> None:
        self.epoch, self.number = epoch, number
        self.first, self.end = epoch.starts[number : number + 2]
        self.size = WINDOW if epoch.stream.rows else WINDOW * LANES * GROUPS
        self.window, self.at = -1, -1
        self.held: dict[int, tuple[int, Mapping[str, Any]]] = {}
        self.rows: Iterator[Any] = iter(())

    def row(self, place: int) -> tuple[int, Mapping[str, Any]]:
        window, within = divmod(place, self.size)
        if window != self.window or within not in self.held:
            self._read(window)
        return self.held.pop(within)

    def _read(self, window: int) -> None:
        start = self.first + window * self.size
        rows = min(self.size, self.end - start)
        near = not self.epoch.stream.rows or start < self.at + self.size  # else it is opened anew, further on
        if not (0 <= self.at <= start and near):
            self.rows, self.at = self.epoch.read(start), start
        seed = [self.epoch.seed, self.epoch.number, self.number, window]
        order = np.random.default_rng(seed).permutation(rows).tolist()
        self.held = dict(zip(order, islice(self.rows, start - self.at, start - self.at + rows), strict=False))
        self.window, self.at = window, start + rows
        if len(self.held) < rows:
            raise DataError(
                f"a stream of {len(self.epoch.stream)} images ended too soon: its files changed; start again"
            )


def _rows(data: Any, skipped: int) -> Iterator[Mapping[str, Any]]:
    """Rows of a stream, in a worker as elsewhere: iterating over it there would give a part of it."""
    for batch in (data.skip(skipped) if skipped else data).iter(WINDOW):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))
