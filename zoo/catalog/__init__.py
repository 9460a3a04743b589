"""The catalog: every model that is known, what is claimed of it and how it is made. Imports no torch.

`entry` says what is known of one model, `methods` how models are made smaller, `papers` what they come from. `reader`
reads `<project>/<family>.toml`, `index` keeps what a large one says, this file looks models up. What was measured here
is a Report (`report`), what became of a model's layers are Changes (`changes`); `data_names` tells how data sets are
named. `dense` holds what timm reports of its dense classifiers.
"""

import difflib
import fnmatch
import functools
import heapq
import math
import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.catalog.entry import STATUSES, Entry
from zoo.catalog.methods import METHODS, available
from zoo.catalog.reader import read_catalog
from zoo.errors import UnknownName
from zoo.files import read_json

_HERE = Path(__file__).parent
EMBEDDED = _HERE / "embedded"
PLANS = _HERE / "plans"
COMPARED = 1_000  # names that a wrong one is held against in full
DIVISORS = {None: 1000, "torch-dag": 1000, "ptdeco": 1024}  # counting → what its kmapp divide 2·macs/(H·W) by


@dataclass(frozen=True)
class Size:
    """What a model costs and how good it is, as far as is known without building it.

    Args:
        params: parameters.
        macs: multiply-accumulates of one image.
        top1: accuracy, 0..1.
        map: of a detector, 0..1: COCO's.
        map50: of a detector, 0..1: VOC's.
        reported: which of these are a source's figures (macs in its own counting); the others we measured.
    """

    params: float | None = None
    macs: float | None = None
    top1: float | None = None
    map: float | None = None
    map50: float | None = None
    reported: tuple[str, ...] = ()


def names(
    pattern: str = "*",
    *,
    all: bool = False,
    method: str | None = None,
    task: str | None = None,
    base: str | None = None,
    status: str | None = None,
    project: str | None = None,
    max_macs: float | None = None,
    max_params: float | None = None,
    sort: str = "name",
) -> list[str]:
    """List the models of the catalog.

    Args:
        pattern: shell pattern, `*` and `?`; a word without either matches anywhere in a name.
        all: also those that nobody has built yet (status `recipe`).
        method: only those compressed by this method.
        task: only those for this task, the Hub's name of it.
        base: only those made from such a base: a pattern as for names.
        status: only those of this status.
        project: only those that come from this project.
        max_macs: only those known to take at most so many multiply-accumulates.
        max_params: only those known to have at most so many parameters.
        sort: `name`, `macs` or `params` from small to large, or `top1` from best to worst; the unknown come last.

    Returns:
        Names.

    Raises:
        UnknownName: no such method, status, project or order.

    >>> names("digits_cnn*", method="prune", sort="macs")
    ['digits_cnn_pruned_25', 'digits_cnn_pruned_50']
    """
    if sort not in ORDERS:
        raise UnknownName(f"no order {sort!r}, known are {', '.join(ORDERS)}")
    projects = {entry.project for entry in _entries().values()}
    for what, value, known in (
        ("method", method, METHODS),
        ("status", status, STATUSES),
        ("project", project, projects),
    ):
        if value is not None and value not in known:
            raise UnknownName(f"no {what} {value!r}, known are {', '.join(sorted(known))}")
    wanted = {"task": task, "status": status, "project": project}
    chosen = [
        entry
        for entry in _entries().values()
        if matches(entry.name, pattern)
        and (all or status == "recipe" or entry.status != "recipe")
        and (method is None or entry.recipe.method == method)
        and (base is None or (entry.base is not None and matches(entry.base.id, base)))
        and not any(value is not None and getattr(entry, key) != value for key, value in wanted.items())
        and (max_macs is None or _macs(entry) <= max_macs)
        and (max_params is None or _params(entry) <= max_params)
    ]
    return [entry.name for entry in sorted(chosen, key=lambda entry: (ORDERS[sort](entry), entry.name))]


def info(name: str) -> Entry:
    """Look one model up.

    Args:
        name: as `names` lists it.

    Returns:
        Its entry.

    Raises:
        UnknownName: no such model; the message names near ones.
    """
    entry = known(name)
    if entry is None:
        near = difflib.get_close_matches(name, _likely(name), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "zoo list --all shows all of them"
        raise UnknownName(f"no model {name!r} in the catalog; {hint}")
    return entry


def known(name: str) -> Entry | None:
    """A model's entry; None where the catalog has none of that name."""
    return _entries().get(name)


def _likely(name: str) -> list[str]:
    """Names that share most with a wrong one, as comparing it with each of many in full takes seconds."""
    parts = {name[at : at + 3] for at in range(max(1, len(name) - 2))}
    return heapq.nlargest(COMPARED, _entries(), key=lambda each: sum(part in each for part in parts))


def obstacle(entry: Entry) -> str | None:
    """Why a model can't be loaded, and how to have it all the same; None if nothing stands in the way."""
    if entry.status in ("embedded", "published", "origin"):
        return None
    method = entry.recipe.method
    if entry.base is None:
        way = f"it has no base to be made from (zoo show {entry.name})"
    elif method is not None and method not in available():
        way = f"its method, {method}, isn't among what this version can do"
    elif method is not None and entry.base.source == "zoo":
        way = f"{entry.base.id} has no weights; of yours it is made with: zoo compress FOLDER --method {method}"
    else:
        way = f"make it with: zoo build {entry.name}"
    return f"it isn't built yet; {way}"


def results(entry: Entry) -> Mapping[str, Any]:
    """What we measured of a model: its `model_cards/results/<name>.json`; empty if nothing was."""
    if read_catalog(_HERE).get(entry.name) != entry:  # a user's own of that name
        return {}
    installed = _HERE / "results"
    folder = installed if installed.is_dir() else _HERE.parent.parent / "model_cards" / "results"
    return _results(folder / f"{entry.name}.json")


def stand_in(entry: Entry) -> Mapping[str, Any]:
    """A structure of the wheel in the place of one that is known only after conversion: base and plan; or empty."""
    return _results(PLANS / f"{entry.name}.json") if read_catalog(_HERE).get(entry.name) == entry else {}


@functools.cache
def _results(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.exists() else {}


def size(entry: Entry) -> Size:
    """What a model costs: by our own measurement, or by its source's where there is none yet."""
    measured = results(entry).get("measured", {})
    claimed: dict[str, float] = {}
    for row in entry.reported:
        if "params_m" in row.figures:
            claimed.setdefault("params", 1e6 * row.figures["params_m"])
        if row.input not in (None, entry.input[-1]):
            continue  # macs and accuracy must be of the same input
        figures = dict(row.figures)
        if "kmapp" in figures:
            _, height, width = entry.input
            figures["macs"] = figures["kmapp"] * DIVISORS[row.counting] * height * width / 2
        claimed = {**figures, **claimed}
    known = {key: {**claimed, **measured}.get(key) for key in ("params", "macs", "top1", "map", "map50")}
    return Size(**known, reported=tuple(key for key in known if key in claimed and key not in measured))


def _macs(entry: Entry) -> float:
    return size(entry).macs or math.inf


def _params(entry: Entry) -> float:
    return size(entry).params or math.inf


ORDERS: Mapping[str, Callable[[Entry], float]] = {
    "name": lambda _: 0,
    "macs": _macs,
    "params": _params,
    "top1": lambda entry: -(size(entry).top1 or 0),
}


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern as `names` takes it."""
    return fnmatch.fnmatchcase(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")


def _entries() -> Mapping[str, Entry]:
    own = os.environ.get("ZOO_CATALOG")
    return read_catalog(_HERE) if not own else ChainMap(read_catalog(_path(own)), read_catalog(_HERE))  # type: ignore[arg-type]  # none is changed


_path = functools.cache(Path)  # which remembers its hash
