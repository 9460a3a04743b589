"""Contenders: models whose accuracy on a data set and whose structure are known, of the catalog and timm's dense ones.

Accuracies of different data sets never meet. Of one structure with several weights, the most accurate stands for all.
"""

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping

from msgspec import Struct, structs, to_builtins

from zoo import catalog
from zoo.catalog.dense import DATA, Dense, dense
from zoo.catalog.entry import Entry
from zoo.errors import DataError
from zoo.measurement.expectation import Cost
from zoo.structure.description import DEFAULT_TASK
from zoo.structure.sources import SOURCES
from zoo.verbs.conversions import converted_before

FLOAT = 4  # bytes
MACS, LAYERS = 50, 50  # of a parameter, and of an output; and of a model: where its base isn't in timm's table


class Contender(Struct, frozen=True):
    """A model that may be picked.

    Args:
        name: as `load` takes it.
        structure: equal for models that take the same time.
        top1: accuracy, 0..1.
        reported: whether a source says so; False where it was measured here.
        compressed: whether it is made smaller than a dense base.
        params: parameters; None where that isn't known.
        macs: multiply-accumulates of one image; None where that isn't known.
        side: of the images in pixels.
        license: of the weights; None where it isn't known.
        cost: from which its time is expected.
        stand_in: whether its exact widths are known only after conversion.
    """

    name: str
    structure: str
    top1: float
    reported: bool
    compressed: bool
    params: float | None
    macs: float | None
    side: int
    license: str | None
    cost: Cost
    stand_in: bool = False


class Limits(Struct, frozen=True):
    """What is asked of a model beside its latency; None asks nothing.

    Args:
        params: at most.
        macs: at most.
        top1: at least, 0..1.
        memory_mb: megabytes of the weights, at most.
        licenses: one of these; empty allows any.
    """

    params: float | None = None
    macs: float | None = None
    top1: float | None = None
    memory_mb: float | None = None
    licenses: tuple[str, ...] = ()


def _memory(contender: Contender) -> float | None:
    return None if contender.params is None else FLOAT * contender.params / 2**20


_ASKED: Mapping[str, tuple[str, Callable[[Contender], float | None], Callable[[float, float], bool]]] = {
    "params": ("parameters", lambda each: each.params, lambda found, most: found <= most),
    "macs": ("multiply-accumulates", lambda each: each.macs, lambda found, most: found <= most),
    "top1": ("accuracy", lambda each: each.top1, lambda found, least: found >= least),
    "memory_mb": ("memory", _memory, lambda found, most: found <= most),
}


def contenders(dataset: str, task: str, limits: Limits) -> tuple[list[Contender], dict[str, int]]:
    """All models that may be picked, the most accurate of each structure.

    Args:
        dataset: that the accuracies are of.
        task: the Hub's name of it.
        limits: what is asked of them.

    Returns:
        The models; why others were left out → how many.

    Raises:
        DataError: nothing is known of such a data set.
    """
    left: Counter[str] = Counter()
    known = [*_of_catalog(dataset, task, left), *(_of_timm() if (dataset, task) == (DATA, DEFAULT_TASK) else ())]
    if not known and not left:
        sets = sorted({entry.dataset for entry in _entries() if entry.dataset and entry.task == task})
        raise DataError(f"no model for {task} is known by its accuracy on {dataset}; known are {', '.join(sets)}")
    allowed: dict[str, Contender] = {}
    for each in sorted(known, key=lambda each: (-each.top1, each.name)):
        reason = refused(each, limits)
        if reason or each.structure in allowed:
            left[reason or "of one structure with a more accurate one"] += 1
        else:
            allowed[each.structure] = each
    return list(allowed.values()), dict(left.most_common())


def refused(contender: Contender, limits: Limits) -> str:
    """Why a model isn't what is asked for; empty where it is."""
    if limits.licenses and contender.license not in limits.licenses:
        return "another licence"
    for name, asked in structs.asdict(limits).items():
        if name == "licenses" or asked is None:
            continue
        words, figure, fits = _ASKED[name]
        found = figure(contender)
        if found is None:
            return f"{words} not known"
        if not fits(found, asked):
            return f"{words} not as asked"
    return ""


def _entries() -> list[Entry]:
    return [catalog.info(name) for name in catalog.names(all=True)]


def _of_catalog(dataset: str, task: str, left: Counter[str]) -> list[Contender]:
    entries = [entry for entry in _entries() if entry.dataset == dataset and entry.task == task]
    found = [_of_entry(entry) for entry in entries]
    left.update(each for each in found if isinstance(each, str))
    return [each for each in found if isinstance(each, Contender)]


def _of_entry(entry: Entry) -> Contender | str:
    """A model of the catalog, or why it is no contender."""
    if catalog.obstacle(entry):
        return "not built yet"
    size, row = catalog.size(entry), _row_of(entry)
    params, macs, top1 = size.params, size.macs, size.top1
    if row is not None:  # of timm's own input, which is what is timed
        params, macs, top1 = row.params, row.macs, row.top1
    if top1 is None:
        return "accuracy not known"
    if (structure := _structure(entry)) is None:
        return "structure not known before conversion"
    return Contender(
        entry.name,
        structure,
        top1,
        row is not None or "top1" in size.reported,
        entry.recipe.method is not None,
        params,
        macs,
        entry.input[-1],
        entry.license,
        _cost(entry, params, macs),
        bool(catalog.stand_in(entry)) and converted_before(entry) is None,
    )


def _row_of(entry: Entry) -> Dense | None:
    """The row of timm's table that an entry's own weights have."""
    if entry.origin is None or entry.origin.format != "timm":
        return None
    return _by_id().get(entry.origin.repo.removeprefix("timm/"))


@functools.cache
def _by_id() -> dict[str, Dense]:
    return {row.id: row for row in dense()}


def _structure(entry: Entry) -> str | None:
    """What tells a structure from others; None where it isn't known."""
    if (row := _row_of(entry)) is not None:
        return _timms(row)
    if (folder := converted_before(entry)) is not None:
        return _hashed((folder / "config.json").read_bytes())
    if plan := catalog.stand_in(entry):
        return _hashed(json.dumps(plan, sort_keys=True).encode())
    if entry.status == "embedded":
        config = catalog.EMBEDDED / entry.name / "config.json"
        return _hashed(config.read_bytes()) if config.is_file() else None  # a user's own says so, and isn't there
    return None if entry.status == "origin" else _hashed(repr(to_builtins(entry)).encode())


def _hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _timms(row: Dense) -> str:
    return f"timm {SOURCES['timm'].version} {row.architecture} {row.side}"


def _cost(entry: Entry, params: float | None, macs: float | None) -> Cost:
    """What a smaller model costs, by what its base does: as many layers, which return less."""
    row = _row_of(entry) or (_by_id().get(entry.base.id.removeprefix("timm/")) if entry.base else None)
    if row is None:
        macs = macs or MACS * (params or 1e6)
        return Cost(macs, macs / MACS, LAYERS, family(entry.architecture))
    macs = macs or row.macs * (entry.recipe.budget.macs if entry.recipe.budget else 1)
    return Cost(macs, row.outputs * (macs / row.macs) ** 0.5, row.layers, family(row.architecture))


def _of_timm() -> list[Contender]:
    """Dense classifiers that aren't the catalog's own."""
    own = {row.id for entry in _entries() if (row := _row_of(entry))}
    return [
        Contender(
            f"timm/{row.id}",
            _timms(row),
            row.top1,
            True,
            False,
            row.params,
            row.macs,
            row.side,
            row.license or None,
            Cost(row.macs, row.outputs, row.layers, family(row.architecture)),
        )
        for row in dense()
        if row.id not in own
    ]


def family(architecture: str) -> str:
    """The kind of an architecture: its name up to a number or an underscore.

    >>> family("tf_efficientnetv2_b0"), family("resnet50d")
    ('efficientnetv', 'resnet')
    """
    return re.split(r"[\d_]", architecture.removeprefix("tf_"))[0]


def load_lines(contender: Contender) -> tuple[str, ...]:
    """Python that loads it."""
    lines = [f'zoo.load("{contender.name}")']
    if contender.name.startswith("timm/"):
        lines.append(f'timm.create_model("{contender.name.removeprefix("timm/")}", pretrained=True)')
    return tuple(lines)
