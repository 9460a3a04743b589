"""Card: the README.md of a repository, from the catalog's entry, the structure and what was measured.

Nothing is claimed that wasn't measured by us, but for the source's figures, which stand apart, marked `reported`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import to_builtins

from zoo.catalog.entry import Entry, Recipe, own
from zoo.catalog.report import Report
from zoo.errors import require
from zoo.pages import classes, edits, figures, front_matter, history, words
from zoo.printable import MAX_LINE, printable
from zoo.structure.description import Description
from zoo.version import __version__

INTEGER_LAYERS = ("qconv2d", "qlinear", "mrt_conv2d", "mrt_linear")
LONG = 12  # layers or classes; a longer table is collapsed


def render(
    entry: Entry,
    description: Description,
    report: Report,
    pretrained_cfg: Mapping[str, Any],
    base: Report | None = None,
    pictures: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> str:
    """Write a model's card.

    Args:
        entry: the catalog's: claims, recipe, licence, source.
        description: the structure, and how this very model was made, which wins over the entry's recipe.
        report: what was measured of it.
        pretrained_cfg: timm's keys; the preprocessing, where the report doesn't say.
        base: what was measured of the dense base, to stand beside; its accuracy only if on the same images.
        pictures: file's name → where it lies, and what it shows, in words.

    Returns:
        Markdown with YAML front matter.

    Raises:
        MissingExtra: jinja2 isn't installed.
    """
    catalogued = _said(entry.recipe)
    recipe = dict(description.recipe) or catalogued
    came, converted = recipe.get("converted_from") or {}, is_converted(entry, description)
    entry = claimed(entry, description)
    plan, dense = description.plan, "base" if recipe.get("base_method") else "dense base"
    local = not report.data.get("dataset") or words.is_local(report.data["dataset"])
    body = _template().render(
        LONG=LONG,
        picture=lambda name: _picture(*pictures[name]) if name in pictures else Markup(""),
        name=description.name,
        sentence=history.sentence(entry, description, recipe, report),
        place=description.name if entry.status != "recipe" else f"./{description.name}",
        version=report.versions.get("zoo", __version__),
        beside=base is not None,
        unit=figures.unit(description.task),
        outputs=figures.outputs(description.task),
        dense=dense,
        figures=figures.measured(report, base, description.task, dense),
        classes=figures.by_class(report, base),
        all_classes=len(report.classes),
        forgotten=classes.rows(report.forgotten or ()),
        all_forgotten=len(report.forgotten or ()),
        sha256=report.data.get("sha256") if local else None,
        preprocessing=figures.preparation(report, pretrained_cfg),
        conditions=figures.conditions(report),
        reported=[figures.reported(row, entry) for row in (*entry.reported, *entry.baselines)],
        base=description.base.id if description.base else None,
        args=words.settings_text(description.base.args) if description.base else "",
        made_of=recipe.get("base"),
        graph=description.graph,
        whole=sum(node.op in INTEGER_LAYERS for node in description.graph.nodes) if description.graph else 0,
        fast=description.graph and not any(node.op.startswith("mrt_") for node in description.graph.nodes),
        stand_in=description.structure == "stand-in",
        edits=[edits.edit_in_words(edit) for edit in plan.edits],
        layers=[(path, edit.edit, result) for edit in plan.edits for path, result in edits.outcomes(edit).items()],
        converted=converted,
        recipe=history.made(catalogued if converted else recipe) + (history.unsaid(entry) if converted else []),
        came=history.conversion(came, entry),
        buildable=entry.base is not None and entry.recipe.data is not None,
        origin=history.provenance(entry, recipe, pretrained_cfg.get("note")),
    )
    head = front_matter.metadata(entry, description, recipe, report).to_yaml()
    return "\n".join(printable(line, None) for line in f"---\n{head}\n---\n\n{body}".split("\n"))


def claimed(entry: Entry, description: Description) -> Entry:
    """The entry of a model that was made like the catalog's of its name, of another one that claims nothing.

    Args:
        entry: the catalog's.
        description: of the model.
    """
    catalogued = _said(entry.recipe)
    recipe = dict(description.recipe) or catalogued
    alone = {key: value for key, value in recipe.items() if key not in ("base", "base_method", "converted_from")}
    if is_converted(entry, description) or json.dumps(alone, sort_keys=True) == json.dumps(catalogued, sort_keys=True):
        return entry
    kept = {key: getattr(entry, key) for key in ("family", "base", "license", "input")}
    return own(description.name, entry.architecture, description.task, **kept)


def is_converted(entry: Entry, description: Description) -> bool:
    """Whether a model is what an entry's foreign repository holds, and nothing was done to it since."""
    recipe = description.recipe
    came = recipe.get("converted_from") or {}
    return entry.origin is not None and came.get("repo") == entry.origin.repo and recipe.keys() == {"converted_from"}


def _said(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says beside its defaults."""
    default = to_builtins(Recipe())
    return {key: value for key, value in to_builtins(recipe).items() if value != default[key]}


def published(card: str, repo: str) -> str:
    """A card with the address that its model is published at, in place of its folder's or of another repository's.

    Args:
        card: from `render`.
        repo: `org/name`.
    """
    loads = re.sub(r'zoo\.load\("[^"\n]*/[^"\n]*"([^)\n]*\))(  # [^\n]*)?', rf'zoo.load("{repo}"\1', card)
    return re.sub(r"^(zoo verify) [^\s]*/[^\s]*", rf"\1 {repo}", loads, flags=re.MULTILINE)


def _template() -> Any:
    jinja2 = require("jinja2", "build")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_inline,
    )
    return environment.from_string((Path(__file__).parent / "card.md.j2").read_text(encoding="utf-8"))


class Markup(str):
    """Markdown of our own, which is left as it is."""


def _picture(place: str, alt: str) -> Markup:
    words = re.sub(r"([\[\]\\])", r"\\\1", _inline(alt))
    return Markup(f"![{words}]({place})")


def _inline(value: Any) -> str:
    """A value on one line that neither ends a table's cell or a piece of code nor opens a tag or a link."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s+", " ", printable(str(value), MAX_LINE))
    text = text.replace("&", "&amp;")  # or what is printable here might not be where entities are read
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("](", "] (")
