"""`bench`: how long models take on this machine, beside the dense ones that they must beat."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct, to_builtins
from msgspec.structs import replace as replace_struct
from torch import nn

from zoo.catalog.entry import Base
from zoo.declarations import validated
from zoo.errors import StructureError, in_one_line, require
from zoo.hub.repository import versions
from zoo.measurement.latency import CLOCKS, ONE_IN, Call, Timing, compare, processor, waiting
from zoo.printable import logger
from zoo.structure.base import MAX_ARGUMENT
from zoo.verbs.backends import BACKENDS
from zoo.verbs.candidates import Candidate, Named, base_of, candidate
from zoo.verbs.cold_starts import Cold, cold_start
from zoo.verbs.loading import check_device

log = logger(__name__)

ROUNDS = 50  # at which a difference of 10 % is found where times scatter by 2 %


class Row(Struct, frozen=True):
    """How long one model takes.

    Args:
        name: of the model.
        backend: that computes it.
        batch: images of one call.
        input: channels, height and width of them.
        macs: of one image; None of an ONNX file.
        base: the name of what it is compared with; None of that itself, and where there is none.
        timing: milliseconds, how many times as fast as the base it is, and their intervals.
        verdict: what can be told of that.
        cold: a fresh process, where it was asked for.
    """

    name: str
    backend: str
    batch: int
    input: tuple[int, int, int]
    macs: int | None
    base: str | None
    timing: Timing
    verdict: str | None
    cold: Cold | None = None


class Bench(Struct, frozen=True):
    """How long models take, and where that holds.

    Args:
        machine: what computed.
        device: as torch calls it.
        threads: of each model.
        dtype: of floats; None is each model's own.
        versions: of the libraries.
        rounds: how many turns each model had.
        clock: what milliseconds are of.
        one_in: so many intervals hold what they should but for one.
        waited: share of the time that the threads were ready and others had the cores; None where no Linux tells.
        rows: a model at a batch each; a base stands before what it is compared with.
    """

    machine: str
    device: str
    threads: int
    dtype: str | None
    versions: dict[str, str]
    rounds: int
    clock: str
    one_in: int
    waited: float | None
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """Plain data, of a row's timing each figure by its own name."""
        plain: dict[str, Any] = to_builtins(self)
        rows = [{**row, **row.pop("timing"), **(row.pop("cold") or {})} for row in plain["rows"]]
        return {**plain, "rows": rows}


class _Group(Struct):
    """What takes turns: a base and what is compared with it; or what is compared with nothing."""

    base: Candidate | None
    models: list[Candidate]


def bench(
    models: Named | Sequence[Named],
    *,
    base: Named | bool = True,
    device: str | torch.device = "cpu",
    batch: int | Sequence[int] = 1,
    threads: int | None = None,
    backend: str | None = None,
    dtype: torch.dtype | None = None,
    rounds: int = ROUNDS,
    clock: str = "wall",
    input: Sequence[int] | None = None,
    cold: bool = False,
) -> Bench:
    """Time models on this machine, each beside the dense one that it was made of; no weights are fetched.

    Models take turns, in an order that is drawn anew in each round, and are compared round by round. A difference is
    told where the interval of the ratios lies beyond what a copy of the base shows in the same rounds, and beyond 3 %:
    see `zoo.measurement.latency`.

    Args:
        models: a name, as `load` and `create` take it, an ONNX file, a module, which is copied; or several of these.
        base: what all are compared with; True is each one's own dense base, False none.
        device: where they compute.
        batch: images of one call, or several such numbers.
        threads: of torch and onnxruntime; None is what torch has.
        backend: `eager`, `compile` or `onnxruntime`; None is eager, and onnxruntime for ONNX files.
        dtype: of the floats; None keeps each model's own.
        rounds: how many turns each has; fewer than 15 tell nothing.
        clock: `wall`, or `cpu`: what this process alone computes, which on a busy machine, with one thread, is what a
            model would take on a core of its own.
        input: channels, height and width of the images; None takes each model's own.
        cold: also start each in fresh processes, for its memory and the seconds up to its first output.

    Returns:
        The rows, and the machine that they hold for.

    Raises:
        UnknownName, HubError, RepositoryError, StructureError: as for `create`; or an option can't be.
        MissingExtra: onnx, onnxscript or onnxruntime isn't installed.

    Example:
        for row in zoo.bench("digits_cnn_pruned_25", batch=[1, 16]).rows:
            print(row.name, row.batch, row.timing.ms, row.verdict)
    """
    several = [models] if isinstance(models, str | os.PathLike | Base | nn.Module) else list(models)
    batches = list(batch) if isinstance(batch, Sequence) else [batch]
    check_counts("bench", [*(("batch", each) for each in batches), ("rounds", rounds), ("threads", threads)])
    if not several or not batches:
        raise StructureError("bench: nothing to time: name a model, and the images of a batch")
    check_backend("bench", backend, clock, device, dtype)
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    with threaded(threads):
        groups = _groups([candidate(each, input=input, **where) for each in several], base, where)
        sources = {each.name: each.source for group in groups for each in _all(group)}
        if cold and None in sources.values():
            module = next(name for name, source in sources.items() if source is None)
            raise StructureError(f"{module} is a module of this process, which no fresh one has: leave cold out")
        waited = waiting(torch.get_num_threads())
        rows = [row for size in batches for group in groups for row in _rows(group, size, backend, rounds, clock)]
        share = waited()
        if cold:
            rows = [_started(row, sources[row.name], str(device), dtype) for row in rows]
        machine, count = processor(torch.device(device)), torch.get_num_threads()
    return Bench(
        machine=machine,
        device=str(device),
        threads=count,
        dtype=str(dtype).removeprefix("torch.") if dtype else None,
        versions={key: str(each) for key, each in versions().items()},
        rounds=rounds,
        clock=clock,
        one_in=ONE_IN,
        waited=share,
        rows=rows,
    )


def check_counts(verb: str, counts: Sequence[tuple[str, Any]]) -> None:
    """Check that what is counted, an option and its value each, is a number from 1 on; None is left alone.

    Raises:
        StructureError: it is none.
    """
    for option, count in counts:
        if count is not None:
            validated(Annotated[int, Meta(ge=1, le=MAX_ARGUMENT)], count, f"{verb}: {option}", StructureError)


def check_backend(verb: str, backend: str | None, clock: str, device: Any, dtype: Any) -> None:
    """Check that what shall compute does so here.

    Raises:
        StructureError: it doesn't, or isn't known.
        MissingExtra: its package isn't installed.
    """
    for option, value, table in (("backend", backend or "eager", BACKENDS), ("clock", clock, CLOCKS)):
        if value not in table:
            raise StructureError(f"{verb}: {option} {value!r} isn't known, expected {' or '.join(table)}")
    check_device(device, verb)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise StructureError(
            f"{verb}: dtype is {dtype!r}, expected a floating-point torch.dtype such as torch.bfloat16"
        )
    if backend == "onnxruntime":
        for package in ("onnx", "onnxruntime"):
            require(package, "onnx")
        if torch.device(device).type != "cpu":
            raise StructureError(f"{verb}: onnxruntime computes on the CPU here, device is {str(device)!r}")
        if dtype not in (None, torch.float32):
            raise StructureError(f"{verb}: onnxruntime computes in float32 here, dtype is {dtype}: leave it out")


@contextlib.contextmanager
def threaded(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads, then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _groups(models: Sequence[Candidate], base: Named | bool, where: Mapping[str, Any]) -> list[_Group]:
    """What takes turns; a dense model that others were made of is their base, where it is among them."""
    groups: dict[Any, _Group] = {}
    for each in models:
        wanted = each.base if base is True else None if base is False else base
        key = wanted if wanted is None else (_identity(wanted), each.input)
        if key not in groups:
            groups[key] = _Group(wanted if wanted is None else _dense(wanted, each, models, where), [])
        groups[key].models.append(each)
    bases = {id(group.base) for group in groups.values()}
    for group in groups.values():
        group.models = _distinct([each for each in group.models if id(each) not in bases], group.base)
    return [group for group in groups.values() if group.models]


def _identity(base: Named) -> str:
    return json.dumps([base.id, dict(base.args)], sort_keys=True) if isinstance(base, Base) else ""


def _dense(base: Named, like: Candidate, models: Sequence[Candidate], where: Mapping[str, Any]) -> Candidate:
    """What a model is compared with, for images as it takes them."""
    if not isinstance(base, Base):
        found = candidate(base, input=like.input, **where)
        return replace(found, name=f"{found.name} (base)")
    same = (each for each in models if (each.dense, each.input) == (base, like.input))
    return next(same, None) or base_of(base, like, **where)


def _all(group: _Group) -> list[Candidate]:
    return [*([group.base] if group.base else []), *group.models]


def _distinct(models: Sequence[Candidate], base: Candidate | None) -> list[Candidate]:
    """Models whose names differ, from their base's too: of those that are alike a further one has its number."""
    seen = Counter([base.name] if base else [])
    found = []
    for each in models:
        seen[each.name] += 1
        found.append(each if seen[each.name] == 1 else replace(each, name=f"{each.name} ({seen[each.name]})"))
    return found


def _rows(group: _Group, batch: int, backend: str | None, rounds: int, clock: str) -> list[Row]:
    """Rows of what takes turns, at one batch."""
    log.info("bench: %d images a call: %s", batch, ", ".join(each.name for each in _all(group)))
    used = {each.name: backend or ("onnxruntime" if isinstance(each.model, bytes) else "eager") for each in _all(group)}
    calls: dict[str, Call] = {}
    copy = None
    for each in _all(group):
        row, images = BACKENDS[used[each.name]], each.images(batch)
        with in_one_line(f"{each.name} doesn't run on {tuple(images.shape)}"):
            prepared = row.prepared(each.model, images)
            calls[each.name] = row.started(prepared, images)
            calls[each.name]()
            copy = row.started(prepared, images) if each is group.base else copy
    against = group.base.name if group.base else None
    timings = compare(calls, against, copy, rounds=rounds, clock=CLOCKS[clock])
    found = zip(_all(group), timings.values(), strict=True)
    return [
        Row(
            *(each.name, used[each.name], batch, each.input, each.macs),
            base=None if each is group.base else against,
            timing=timing,
            verdict=timing.verdict,
        )
        for each, timing in found
    ]


def _started(row: Row, source: str | Base | None, device: str, dtype: torch.dtype | None) -> Row:
    """A row with what a fresh process shows."""
    assert source is not None
    return replace_struct(row, cold=cold_start(source, row.backend, row.batch, row.input, device, dtype))
