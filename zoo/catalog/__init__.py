"""The catalog: one TOML file per family, read into frozen entries. Imports no torch."""

import difflib
import fnmatch
import functools
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from zoo.catalog.entry import METHODS, STATUSES, Base, Budget, Entry, Figure, Origin, Recipe
from zoo.errors import BudgetError, CatalogError, UnknownName

_HERE = Path(__file__).parent
EMBEDDED = _HERE.parent / "embedded"


def names(pattern: str = "*", *, all: bool = False, method: str | None = None) -> list[str]:
    """List the models of the catalog.

    Args:
        pattern: shell pattern, `*` and `?`; a word without either matches anywhere in a name.
        all: also those that can't be loaded yet (status `recipe`).
        method: only those compressed by this method.

    Returns:
        Names, sorted.

    >>> names("digits_cnn*")
    ['digits_cnn', 'digits_cnn_pruned_25', 'digits_cnn_pruned_50']
    """
    if not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    return sorted(
        entry.name
        for entry in _entries().values()
        if fnmatch.fnmatch(entry.name, pattern)
        and (all or entry.status != "recipe")
        and (method is None or entry.recipe.method == method)
    )


def info(name: str) -> Entry:
    """Look one model up.

    Args:
        name: as `names` lists it.

    Returns:
        Its entry.

    Raises:
        UnknownName: no such model; the message names near ones.
    """
    entry = _entries().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, _entries(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "zoo list shows all of them"
        raise UnknownName(f"no model {name!r} in the catalog; {hint}")
    return entry


def _entries() -> Mapping[str, Entry]:
    own = os.environ.get("ZOO_CATALOG")
    return _read(_HERE) if not own else {**_read(_HERE), **_read(Path(own))}


@functools.cache
def _read(folder: Path) -> Mapping[str, Entry]:
    if not folder.is_dir():
        raise CatalogError(f"catalog folder {folder} isn't there; unset ZOO_CATALOG or create it")
    entries = [entry for file in sorted(folder.glob("*.toml")) for entry in _family(file)]
    seen: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in seen:
            raise CatalogError(f"{folder}: {entry.name} stands in {seen[entry.name].family} and in {entry.family}")
        seen[entry.name] = entry
    return seen


def _family(file: Path) -> list[Entry]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file}: {error}") from None
    shared, models = data.get("family", {}), data.get("model", [])
    if unknown := data.keys() - {"family", "model"}:
        raise CatalogError(f"{file}: unknown table {sorted(unknown)[0]!r}, known are family, model")
    _kind(f"{file}: family", shared, dict)
    _kind(f"{file}: model", models, list)
    for model in models:
        _kind(f"{file}: model", model, dict)
    return [_entry(file, _merge(shared, model)) for model in models]


def _merge(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Let a model's tables extend the family's; a plain value replaces it."""
    tables = ("recipe", "options", "distil", "schedule", "augment", "budget")
    merged = {**shared, **own}
    for key in tables:
        if isinstance(shared.get(key), dict) and isinstance(own.get(key), dict):
            merged[key] = _merge(shared[key], own[key])
    return merged


def _entry(file: Path, data: dict[str, Any]) -> Entry:
    where = f"{file.name}: {data.get('name', 'model without a name')}"
    data = {**data, "family": file.stem}
    base = data.get("base")
    if base is not None:
        data["base"] = Base(base) if isinstance(base, str) else _record(Base, base, f"{where}.base")
    for key, kind in (("recipe", dict), ("reported", list), ("input", list)):
        _kind(f"{where}.{key}", data.get(key, kind()), kind)
    recipe = dict(data.get("recipe", {}))
    _kind(f"{where}.recipe.teachers", recipe.get("teachers", []), list)
    if "budget" in recipe:
        recipe["budget"] = _record(Budget, recipe["budget"], f"{where}.recipe.budget")
    recipe["teachers"] = tuple(recipe.get("teachers", ()))
    data["recipe"] = _record(Recipe, recipe, f"{where}.recipe")
    data["reported"] = tuple(_record(Figure, row, f"{where}.reported") for row in data.get("reported", []))
    if "origin" in data:
        data["origin"] = _record(Origin, data["origin"], f"{where}.origin")
    data["input"] = tuple(data.get("input", (3, 224, 224)))
    data.setdefault("status", "published" if "repo" in data else "origin" if "origin" in data else "recipe")
    entry: Entry = _record(Entry, data, where)
    _one_of(f"{where}.status", entry.status, STATUSES)
    if entry.recipe.method is not None:
        _one_of(f"{where}.recipe.method", entry.recipe.method, METHODS)
    return entry


def _kind(where: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        names: dict[Any, str] = {dict: "table", list: "list"}
        raise CatalogError(f"{where} is a {names.get(type(value), type(value).__name__)}, expected a {names[kind]}")


def _one_of(where: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CatalogError(f"{where} is {value!r}, expected one of {', '.join(known)}")


def _record(kind: type[Any], data: Any, where: str) -> Any:
    _kind(where, data, dict)
    known = {f.name for f in fields(kind)}
    for key in data.keys() - known:
        raise CatalogError(f"{where}: unknown key {key!r}, known are {', '.join(sorted(known))}")
    try:
        return kind(**data)
    except TypeError as error:
        raise CatalogError(f"{where}: {str(error).partition('() ')[2]}") from None
    except BudgetError as error:
        raise CatalogError(f"{where}: {error}") from None
