"""TOML in, frozen entries out: one file per family, a model is what differs from it."""

import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any

from msgspec import Raw, Struct, defstruct, structs, to_builtins

from zoo.catalog import index
from zoo.catalog.entry import FIGURES, Entry, Preprocessing, Reported
from zoo.declarations import Finite, validated
from zoo.errors import CatalogError, ZooError

# A row as a file has it: figures, and what they hold for, side by side.
_FIGURES = [(figure, Finite | None, None) for figure in FIGURES]
_CONDITIONS = [(each.name, each.type, each.default) for each in structs.fields(Reported) if each.name != "figures"]
_ROWS = GenericAlias(list, (defstruct("Row", [*_FIGURES, *_CONDITIONS], forbid_unknown_fields=True),))


class _Family(Struct, forbid_unknown_fields=True):
    family: dict[str, Any] = {}
    model: list[dict[str, Any]] = []


INDEXED = 1_000  # models; fewer are read in a tenth of a second


@functools.cache
def read_catalog(folder: Path) -> Mapping[str, Entry]:
    """Read a catalog.

    Args:
        folder: of `<family>.toml` files, in folders named for the project that they come from, or side by side.

    Returns:
        Name → entry.

    Raises:
        CatalogError: no such folder, or a file can't be understood; the message names file, entry and key.
    """
    if not folder.is_dir():
        raise CatalogError(f"catalog folder {folder} isn't there; unset ZOO_CATALOG or create it")
    place = index.place(folder)
    known, parts = index.taken(place), {}
    found: dict[str, Entry | Raw] = {}
    for file in sorted(folder.rglob("*.toml")):
        key = str(file.relative_to(folder))
        part, models = _part(file, known.get(key))
        for name in models:
            if name in found:
                one, other = (index.Entries(each, place)[name] for each in (found, models))
                where = f"{one.project}/{one.family} and in {other.project}/{other.family}"
                raise CatalogError(f"{folder}: {name} stands in {where}")
        found |= models
        if part is not None:
            parts[key] = part
    if len(found) >= INDEXED and parts != known:
        index.keep(place, parts)
    return index.Entries(found, place)


def read_recipes(file: Path, of_base: Callable[[str], Mapping[str, Any]]) -> list[Entry]:
    """Read a file of recipes of one's own: the keys of a catalog's, of which the base says what isn't said.

    Args:
        file: with a `[[model]]` for each, and what they share in `[family]`.
        of_base: a base's id → its architecture, task, input and licence.

    Returns:
        The models, in the file's order.

    Raises:
        CatalogError: it can't be read or understood; the message names file, entry and key.
    """
    table = validated(_Family, _toml(file), f"{file}:", CatalogError)
    found = []
    for model in table.model:
        data = _merge(table.family, model)
        base, where = data.get("base"), f"{file.name}: {data.get('name', 'model without a name')}"
        base = base.get("id") if isinstance(base, dict) else base
        if not isinstance(base, str):
            raise CatalogError(f"{where}.base is {base!r}, expected a model's name, such as ./mine")
        try:
            said = of_base(base)
        except ZooError as error:
            raise CatalogError(f"{where}.base: {error}") from None
        found.append(structs.replace(_entry(file, {**said, **data, "status": "recipe"}), project="own"))
    names = [entry.name for entry in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CatalogError(f"{file.name} has {twice} twice: give each model a name of its own")
    if not found:
        raise CatalogError(f"{file} has no [[model]]: expected one for each model that shall be made")
    return found


def _part(file: Path, known: index.Part | None) -> tuple[index.Part | None, Mapping[str, Entry | Raw]]:
    """What an index says of a file, if it can, and the file's models: read if the index doesn't know this state."""
    try:
        state = index.state(file)
    except OSError as error:
        raise CatalogError(f"{file}: {error.strerror}") from None
    if known is not None and known.state == state:
        return known, known.models
    models: dict[str, Entry | Raw] = {}
    packed: dict[str, Raw] = {}
    for told in _merged(file, _toml(file)):
        entry = _entry(file, told)
        if entry.name in models:
            where = f"{entry.project}/{entry.family}"
            raise CatalogError(f"{file.parent}: {entry.name} stands in {where} and in {where}")
        models[entry.name] = entry
        if (fields := index.packed(told, entry)) is not None:
            packed[entry.name] = fields
    return (index.Part(state, packed) if len(packed) == len(models) else None), models


def _toml(file: Path) -> Any:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file}: {error}") from None
    except OSError as error:
        raise CatalogError(f"{file}: {error.strerror}") from None


def entries(file: Path, data: Any) -> list[Entry]:
    """The models of one file: what a family shares, each with what differs from it."""
    return [_entry(file, told) for told in _merged(file, data)]


def _merged(file: Path, data: Any) -> list[dict[str, Any]]:
    table = validated(_Family, data, f"{file}:", CatalogError)
    return [_merge(table.family, model) for model in table.model]


def _merge(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Let a model's tables extend the family's; a plain value replaces it."""
    tables = ("recipe", "options", "distil", "schedule", "augment", "budget", "preprocessing")
    merged = {**shared, **own}
    for key in tables:
        if isinstance(shared.get(key), dict) and isinstance(own.get(key), dict):
            merged[key] = _merge(shared[key], own[key])
    return merged


def _entry(file: Path, data: dict[str, Any]) -> Entry:
    """The entry of a model's fields, which are completed in place."""
    name = str(data.get("name", "model without a name"))
    where = f"{file.name}: {name if name.isprintable() else repr(name)}"
    for key in ("family", "project"):
        if key in data:
            raise CatalogError(f"{where}: {key} isn't set here, it is the name of the file's place")
    data |= {"family": file.stem, "project": file.parent.name}
    data.setdefault("status", "published" if "repo" in data else "origin" if "origin" in data else "recipe")
    if isinstance(data.get("base"), str):
        data["base"] = {"id": data["base"]}
    for key in ("reported", "baselines"):
        if key in data:
            validated(_ROWS, data[key], f"{where}.{key}", CatalogError)
            data[key] = [_reported(row) for row in data[key]]
    if "preprocessing" in data:
        data["preprocessing"] = to_builtins(
            validated(Preprocessing, data["preprocessing"], f"{where}.preprocessing", CatalogError)
        )
    entry: Entry = validated(Entry, data, where, CatalogError)
    for key in ("mean", "std"):
        values = entry.preprocessing.get(key)
        if values is not None and len(values) != entry.input[0]:
            expected = f"a number for each of {entry.input[0]} channels"
            raise CatalogError(f"{where}.preprocessing.{key} is {list(values)}, expected {expected}")
    return entry


def _reported(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its figures apart."""
    figures = {key: row[key] for key in row if key in FIGURES}
    return {"figures": figures, **{key: row[key] for key in row if key not in figures}}
