"""TOML in, frozen entries out: one file per family, a model is what differs from it."""

import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from zoo.catalog.entry import (
    COUNTINGS,
    FIGURES,
    INTERPOLATIONS,
    METHODS,
    PREPROCESSING,
    STATUSES,
    Base,
    Budget,
    Entry,
    Origin,
    Recipe,
    Reported,
)
from zoo.errors import BudgetError, CatalogError


@functools.cache
def read(folder: Path) -> dict[str, Entry]:
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
    seen: dict[str, Entry] = {}
    for file in sorted(folder.rglob("*.toml")):
        for entry in _family(file):
            if entry.name in seen:
                where = f"{seen[entry.name].project}/{seen[entry.name].family}"
                raise CatalogError(f"{folder}: {entry.name} stands in {where} and in {entry.project}/{entry.family}")
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
    tables = ("recipe", "options", "distil", "schedule", "augment", "budget", "preprocessing")
    merged = {**shared, **own}
    for key in tables:
        if isinstance(shared.get(key), dict) and isinstance(own.get(key), dict):
            merged[key] = _merge(shared[key], own[key])
    return merged


def _entry(file: Path, data: dict[str, Any]) -> Entry:
    where = f"{file.name}: {data.get('name', 'model without a name')}"
    for key in ("family", "project"):
        if key in data:
            raise CatalogError(f"{where}: {key} isn't set here, it is the name of the file's place")
    data = {**data, "family": file.stem, "project": file.parent.name}
    base = data.get("base")
    if base is not None:
        data["base"] = Base(base) if isinstance(base, str) else _record(Base, base, f"{where}.base")
    for key, kind in (("recipe", dict), ("reported", list), ("baselines", list), ("input", list)):
        _kind(f"{where}.{key}", data.get(key, kind()), kind)
    recipe = dict(data.get("recipe", {}))
    _kind(f"{where}.recipe.teachers", recipe.get("teachers", []), list)
    for teacher in recipe.get("teachers", []):
        if not isinstance(teacher, str):
            raise CatalogError(f"{where}.recipe.teachers has {teacher!r}, expected names")
    for key in ("options", "distil", "schedule", "augment"):
        _kind(f"{where}.recipe.{key}", recipe.get(key, {}), dict)
    if "budget" in recipe:
        recipe["budget"] = _record(Budget, recipe["budget"], f"{where}.recipe.budget")
    recipe["teachers"] = tuple(recipe.get("teachers", ()))
    data["recipe"] = _record(Recipe, recipe, f"{where}.recipe")
    for key in ("reported", "baselines"):
        data[key] = tuple(_reported(row, f"{where}.{key}") for row in data.get(key, []))
    if "origin" in data:
        data["origin"] = _record(Origin, data["origin"], f"{where}.origin")
    data["input"] = tuple(data.get("input", (3, 224, 224)))
    if len(data["input"]) != 3 or not all(type(size) is int and size > 0 for size in data["input"]):
        raise CatalogError(f"{where}.input is {list(data['input'])}, expected channels, height and width")
    data["preprocessing"] = _preprocessing(data.get("preprocessing", {}), data["input"][0], f"{where}.preprocessing")
    data.setdefault("status", "published" if "repo" in data else "origin" if "origin" in data else "recipe")
    entry: Entry = _record(Entry, data, where)
    _one_of(f"{where}.status", entry.status, STATUSES)
    if entry.recipe.method is not None:
        _one_of(f"{where}.recipe.method", entry.recipe.method, METHODS)
    return entry


def _preprocessing(data: Any, channels: int, where: str) -> dict[str, Any]:
    """By timm's names, with tuples as timm has them."""
    _kind(where, data, dict)
    for key in data.keys() - set(PREPROCESSING):
        raise CatalogError(f"{where}: unknown key {key!r}, known are {', '.join(PREPROCESSING)}")
    for key in data.keys() & {"mean", "std"}:
        values = data[key] if isinstance(data[key], list) else []
        if len(values) != channels or not all(_number(value) and (value > 0 or key == "mean") for value in values):
            raise CatalogError(f"{where}.{key} is {data[key]!r}, expected a number for each of {channels} channels")
    if "interpolation" in data:
        _one_of(f"{where}.interpolation", data["interpolation"], INTERPOLATIONS)
    if "crop_pct" in data and not (_number(data["crop_pct"]) and 0 < data["crop_pct"] <= 1):
        raise CatalogError(f"{where}.crop_pct is {data['crop_pct']!r}, expected a share above 0, at most 1")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _reported(row: Any, where: str) -> Reported:
    """A row as the file has it, figures and what they hold for side by side."""
    _kind(where, row, dict)
    figures = {key: value for key, value in row.items() if key in FIGURES}
    conditions = [f.name for f in fields(Reported) if f.name != "figures"]
    for key in row.keys() - figures.keys() - set(conditions):
        raise CatalogError(f"{where}: unknown key {key!r}, known are {', '.join((*FIGURES, *conditions))}")
    for figure, value in figures.items():
        if not _number(value):
            raise CatalogError(f"{where}.{figure} is {value!r}, expected a number")
    if "counting" in row:
        _one_of(f"{where}.counting", row["counting"], COUNTINGS)
    rest = {key: value for key, value in row.items() if key in conditions}
    reported: Reported = _record(Reported, {**rest, "figures": figures}, where)
    return reported


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
    for field in fields(kind):
        plain = field.type in (str, str | None, int, int | None)
        value = data.get(field.name)
        if (
            plain
            and field.name in data
            and (
                isinstance(value, bool) or not isinstance(value, field.type)  # type: ignore[arg-type]
            )
        ):
            expected = str(getattr(field.type, "__name__", field.type)).removesuffix(" | None")
            raise CatalogError(f"{where}.{field.name} is {value!r}, expected {expected}")
    try:
        return kind(**data)
    except TypeError as error:
        raise CatalogError(f"{where}: {str(error).partition('() ')[2]}") from None
    except BudgetError as error:
        raise CatalogError(f"{where}: {error}") from None
