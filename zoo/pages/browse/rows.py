"""Rows: what the page of `zoo browse` says of a model, of the catalog or of a repository's folder."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from zoo import catalog
from zoo.catalog.changes import became
from zoo.catalog.entry import Entry, Reported
from zoo.catalog.methods import METHODS
from zoo.catalog.papers import papers
from zoo.catalog.report import Report
from zoo.declarations import ModelName, Name, Positive, validated
from zoo.errors import RepositoryError
from zoo.files import read_json
from zoo.pages import markdown, words
from zoo.pages.browse.layers import left

ACCURACIES = ("top1", "map", "map50")  # the first that is known leads
HUB = "https://huggingface.co"
MAX_CARD = 2**20  # bytes that are read of one


class Row(Struct, frozen=True, omit_defaults=True):
    """What the page says of one model.

    Args:
        id: no other row's: the name that loads it.
        name: of the model.
        task: the Hub's name of it.
        method: one of METHODS, or `dense`.
        status: of the catalog's, or `folder` of a repository here.
        base: the id of the dense model.
        license: the Hub's id of it.
        data: that the accuracy is of.
        figure: which accuracy: one of ACCURACIES.
        accuracy: 0..1.
        params: parameters.
        macs: of one image.
        ms: of one call, where it was timed.
        reported: which of these are a source's figures; the others we measured.
        load: the line that loads it; empty where nothing does yet.
        obstacle: why not.
        links: title and address.
        facts: what else is known: title and words.
        figures: of whom, figure → value, and what they hold for.
        card: HTML.
        layers: what its plan left of each: path, words, share of the weights.
    """

    id: str
    name: str
    task: str
    method: str
    status: str
    base: str = ""
    license: str = ""
    data: str = ""
    figure: str = ""
    accuracy: float | None = None
    params: float | None = None
    macs: float | None = None
    ms: float | None = None
    reported: tuple[str, ...] = ()
    load: str = ""
    obstacle: str = ""
    links: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    figures: tuple[tuple[str, Mapping[str, Any], str], ...] = ()
    card: str = ""
    layers: tuple[tuple[str, str, float], ...] = ()


def of_catalog(latencies: Mapping[str, float]) -> Iterator[Row]:
    """A row for every entry of the catalog, also those that aren't built yet.

    Args:
        latencies: name → milliseconds of one call.
    """
    for name in catalog.names(all=True):
        yield of_entry(catalog.info(name), latencies.get(name))


def of_entry(entry: Entry, ms: float | None = None) -> Row:
    """The row of an entry of the catalog; of an embedded one with its card and plan."""
    size, measured, obstacle = catalog.size(entry), catalog.results(entry), catalog.obstacle(entry)
    figure = next((key for key in ACCURACIES if getattr(size, key) is not None), "")
    of_data = measured.get("data", {}).get("dataset") if figure and figure not in size.reported else None
    rows = [("measured here", measured["measured"], _conditions(measured["data"]))] if measured else []
    rows += [(row.of or "reported", row.figures, _told(row)) for row in (*entry.reported, *entry.baselines)]
    folder = catalog.EMBEDDED / entry.name if measured and entry.name in _embedded() else None
    return Row(
        **_shape(entry.name, entry.task, entry.recipe.method, entry.base.id if entry.base else ""),
        name=entry.name,
        status=entry.status,
        license=entry.license or "",
        data=of_data or entry.dataset or entry.recipe.data or "",
        figure=figure,
        accuracy=getattr(size, figure) if figure else None,
        params=size.params,
        macs=size.macs,
        ms=ms,
        reported=size.reported,
        load="" if obstacle else f'zoo.load("{entry.name}")',
        obstacle=obstacle or "",
        links=(*_repositories(entry), *_sources(entry)),
        facts=_facts(entry),
        figures=tuple(rows),
        card=_card(folder) if folder else "",
        layers=_layers(folder, entry.base.id if entry.base else "") if folder else (),
    )


def of_folder(folder: Path, place: str, ms: float | None = None) -> Row:
    """The row of a repository's folder, from what it says of itself.

    Args:
        folder: the repository.
        place: the folder as `zoo.load` takes it.
        ms: milliseconds of one call.

    Raises:
        RepositoryError: it isn't a repository, or says what none may.
    """
    config: _Config = validated(
        _Config, read_json(folder / "config.json"), f"{folder / 'config.json'}:", RepositoryError
    )
    ours, recipe = config.zoo, config.zoo.recipe
    results = folder / "results.json"
    report = Report.from_json(read_json(results), str(results)) if results.is_file() else Report(ours.name, {}, {})
    known = report.measured
    figure = next((key for key in ACCURACIES if key in known), "")
    dense = recipe.base or (ours.base.id if ours.base else "")
    return Row(
        **{**_shape(ours.name, ours.task, recipe.method, dense), "id": place},
        name=ours.name,
        status="folder",
        license=config.pretrained_cfg.license or "",
        data=words.dataset_name(str(report.data.get("dataset", ""))),
        figure=figure,
        accuracy=known.get(figure),
        params=known.get("params"),
        macs=known.get("macs"),
        ms=ms,
        load=f"zoo.load({place!r})",
        figures=(("its results", known, _conditions(report.data)),) if known else (),
        card=_card(folder),
        layers=_layers(folder, dense),
    )


def latencies(data: Any, where: str) -> dict[str, float]:
    """Name → milliseconds of what `zoo bench --json` printed; of several batches those of one image.

    Raises:
        RepositoryError: it isn't that.
    """
    bench: _Bench = validated(_Bench, data, f"{where}: of zoo bench --json,", RepositoryError)
    found: dict[str, float] = {}
    for row in sorted(bench.rows, key=lambda row: row.batch):
        found.setdefault(row.name.removesuffix(" (base)"), row.ms / row.batch)
    return found


class _Recipe(Struct, frozen=True):
    method: Name | None = None
    base: Name | None = None


class _Base(Struct, frozen=True):
    id: Name


class _Zoo(Struct, frozen=True):
    name: ModelName
    task: Name = "image-classification"
    base: _Base | None = None
    recipe: _Recipe = _Recipe()


class _Pixels(Struct, frozen=True):
    license: Name | None = None


class _Config(Struct, frozen=True):
    zoo: _Zoo
    pretrained_cfg: _Pixels = _Pixels()


class _Timed(Struct, frozen=True):
    name: Name
    ms: Positive
    batch: int = 1


class _Bench(Struct, frozen=True):
    rows: list[_Timed]


def _shape(name: str, task: str, method: str | None, base: str) -> dict[str, Any]:
    return {"id": name, "task": task, "method": method or "dense", "base": words.model_name(base) if base else ""}


def _card(folder: Path) -> str:
    """A repository's card as HTML; empty where it has none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open("rb") as file:
        html = markdown.rendered(markdown.body(file.read(MAX_CARD).decode("utf-8", "replace")))
    # The page's own title is the first heading, and the model's name the second.
    return re.sub(r"<(/?)h([1-6])>", lambda tag: f"<{tag[1]}h{min(int(tag[2]) + 2, 6)}>", html)


def _layers(folder: Path, base: str) -> tuple[tuple[str, str, float], ...]:
    """What is left of each layer where the base is a model of the wheel; no repository names another's file."""
    if base not in _embedded():
        return ()
    layers = left(folder, catalog.EMBEDDED / base)
    if not any(layer.changed for layer in layers):
        return ()
    return tuple((each.path, became(each), round(each.params[1] / max(each.params[0], 1), 4)) for each in layers)


@functools.cache
def _embedded() -> set[str]:
    return {path.name for path in catalog.EMBEDDED.iterdir()}


def _facts(entry: Entry) -> tuple[tuple[str, str], ...]:
    recipe = entry.recipe
    method = METHODS.get(recipe.method or "")
    facts = {
        "Made by": method.words if method else "training from scratch",
        "Asked to keep": words.budget(structs.asdict(recipe.budget)) if recipe.budget else "",
        "Options": words.settings_text(recipe.options),
        "Teachers": ", ".join(recipe.teachers),
        "Training": words.settings_text(recipe.schedule),
        "Input": " x ".join(map(str, entry.input)),
        "Project": entry.project,
        **{f"Paper of the {what}": paper for what, paper in papers(entry).items()},
        "Note": entry.note or "",
    }
    return tuple((key, value) for key, value in facts.items() if value)


def _repositories(entry: Entry) -> Iterator[tuple[str, str]]:
    if entry.repo:
        yield f"{entry.repo} on the Hub", f"{HUB}/{entry.repo}"
    if entry.origin:
        yield f"{entry.origin.repo} on the Hub, its origin", f"{HUB}/{entry.origin.repo}"


def _sources(entry: Entry) -> Sequence[tuple[str, str]]:
    return [("Source of the figures", entry.source)] if entry.source else []


def _told(row: Reported) -> str:
    return _conditions({key: value for key, value in structs.asdict(row).items() if key not in ("figures", "of")})


def _conditions(data: Mapping[str, Any]) -> str:
    said = ("dataset", "split", "images", "input", "batch", "device", "runtime", "counting")
    return words.settings_text({key: data[key] for key in said if data.get(key) is not None})
