"""Watch: times contenders, a glance at one or several that take turns, and keeps what it finds."""

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zoo.catalog.entry import Base
from zoo.errors import in_one_line
from zoo.measurement.latency import BUSY, CLOCKS, Call, Timing, compare, waiting
from zoo.measurement.macs import input_size
from zoo.printable import logger
from zoo.structure.base import initialised
from zoo.structure.graph.certificate import check_floats
from zoo.structure.sources import is_base_id
from zoo.verbs.backends import BACKENDS
from zoo.verbs.candidates import Candidate, built
from zoo.verbs.contenders import Contender
from zoo.verbs.timings import Conditions, remember

log = logger(__name__)

SLOW = 4  # times the limit, from which one call tells enough
CALLS = 3  # of a glance


@dataclass
class Watch:
    """Times models.

    Args:
        device: where they compute.
        batch: images of one call.
        backend: a row of `BACKENDS`.
        dtype: of the floats; None keeps each model's own.
        clock: a row of `CLOCKS`.
        limit: milliseconds; what takes many times as long is called once.
        conditions: what timings hold for.
        bar: of progress.
        beside: the model that was looked at first: it tells how fast the machine is just now.
        usual: milliseconds that it took, each time that nobody else had the cores.
    """

    device: torch.device
    batch: int
    backend: str
    dtype: torch.dtype | None
    clock: str
    limit: float | None
    conditions: Conditions
    bar: Any
    beside: Call | None = None
    usual: list[float] = field(default_factory=list)

    def glance(self, contender: Contender) -> float:
        """About how long a model takes: the least of a few calls, as the machine was, on the whole, for the first."""
        call, waited = self._started(contender), self._waiting()
        self.beside = self.beside or call
        own, others = [], []
        for _ in range(CALLS):
            others.append(self._spent(self.beside))
            own.append(self._spent(call))
            if self.limit is not None and own[0] > SLOW * self.limit:
                break
        quiet = self._quiet(waited)
        self.usual += others if quiet else []
        ms = max(min(own) / min(others) * statistics.median(self.usual or others), 1e-6)
        log.info("%s: about %.3g ms", contender.name, ms)
        if quiet:
            remember(self.conditions, {contender.structure: ms}, {})
        self.bar.update()
        return ms

    def together(self, contenders: Sequence[Contender], rounds: int) -> Mapping[str, Timing]:
        """How long models take that take turns."""
        log.info("%d models take turns in %d rounds", len(contenders), rounds)
        calls = {each.structure: self._started(each) for each in contenders}
        waited = self._waiting()
        timings = compare(calls, rounds=rounds, clock=CLOCKS[self.clock])
        if self._quiet(waited):
            remember(self.conditions, {}, timings)
        return timings

    def _started(self, contender: Contender) -> Call:
        with _quiet():  # the row says what stands in
            model = initialised(Base(contender.name)).eval() if is_base_id(contender.name) else built(contender.name)
        if self.dtype is not None:
            check_floats(model, "given another dtype")
        model = model.to(device=self.device, dtype=self.dtype)
        images = Candidate(contender.name, model, input_size(model)).images(self.batch)
        backend = BACKENDS[self.backend]
        with in_one_line(f"{contender.name} doesn't run on {tuple(images.shape)}"):
            call = backend.started(backend.prepared(model, images), images)
            call()  # the first is slower
        return call

    def _waiting(self) -> Callable[[], float | None]:
        return waiting(torch.get_num_threads())

    def _quiet(self, waited: Callable[[], float | None]) -> bool:
        """Whether times tell of no others' work too; else they aren't kept."""
        return self.clock == "cpu" or (waited() or 0.0) <= BUSY

    def _spent(self, call: Call) -> float:
        clock = CLOCKS[self.clock]
        begun = clock()
        call()
        return 1e3 * (clock() - begun)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of building a model."""
    loading = logger("zoo.verbs.loading")
    level = loading.level
    loading.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loading.setLevel(level)
