"""Cards out of what a repository's files say: no model is built and no figure is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import structs
from safetensors import safe_open

from zoo import catalog
from zoo.catalog.entry import Entry, own
from zoo.catalog.report import Report
from zoo.errors import UnknownName
from zoo.files import read_json
from zoo.hub import repository
from zoo.pages.card import claimed, render
from zoo.pages.pictures import pictures
from zoo.pages.style import Picture
from zoo.structure.description import Description
from zoo.verbs import licences


@dataclass(frozen=True)
class Facts:
    """What a card is made of.

    Args:
        entry: the catalog's, or what stands for it.
        description: the structure.
        report: what was measured.
        config: timm's keys.
        dense: what was measured of the base; None where nothing was.
        pictures: file's name → picture.
    """

    entry: Entry
    description: Description
    report: Report
    config: Mapping[str, Any]
    dense: Report | None
    pictures: Mapping[str, Picture]

    def card(self, place: str | None = "") -> str:
        """The card.

        Args:
            place: of the pictures, as the card's links say it; None leaves them out.
        """
        shown = {} if place is None else {name: (place + name, each.alt) for name, each in self.pictures.items()}
        return render(self.entry, self.description, self.report, self.config, self.dense, shown)

    def files(self) -> dict[str, str | bytes]:
        """The card of a repository's folder and its pictures, which are left out where matplotlib isn't installed."""
        if find_spec("matplotlib") is None:
            return {repository.CARD: self.card(None)}
        return {repository.CARD: self.card(), **{name: each.png() for name, each in self.pictures.items()}}


def facts_of(folder: Path) -> Facts:
    """What a repository's card is made of, as its config.json, its results.json and the catalog say it.

    Raises:
        RepositoryError: a file is missing or isn't what it should be.
        StructureError: the plan or the graph holds something unknown.
    """
    config = repository.read_config(folder)
    description, pretrained = repository.describe_folder(folder, config), config.get("pretrained_cfg", {})
    report = Report.from_json(read_json(folder / repository.RESULTS), str(folder / repository.RESULTS))
    held = not description.recipe.get("altered", False)
    fingerprint = config["zoo"].get("fingerprint", {})
    with safe_open(folder / repository.WEIGHTS, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return facts(description, report, pretrained, held, fingerprint, shapes, dense_of(description))


def facts(
    description: Description,
    report: Report,
    config: Mapping[str, Any],
    held: bool,
    fingerprint: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    dense: Report | None,
) -> Facts:
    """What a card is made of.

    Args:
        description: of the model.
        report: what was measured of it.
        config: its `pretrained_cfg`.
        held: its weights are those that its recipe tells of.
        fingerprint: of its base, where that is known.
        shapes: of its tensors, by name.
        dense: what was measured of the base.
    """
    entry = claimed(entry_of(description, config, held), description)
    return Facts(entry, description, report, config, dense, pictures(entry, description, report, fingerprint, shapes))


def dense_of(description: Description) -> Report | None:
    """What was measured of the model of the catalog that another one of it was made of."""
    try:
        entry = claimed(catalog.info(description.name), description)
        base = catalog.info(entry.base.id if entry.base else "")
    except UnknownName:
        return None
    found = catalog.results(base) if entry.recipe.method else {}
    return Report.from_json(found, base.name) if found else None


def entry_of(description: Description, config: Mapping[str, Any], held: bool) -> Entry:
    """The catalog's entry under the model's licence, or what can be said of a model that isn't there."""
    license = config.get("license")
    try:
        entry = catalog.info(description.name)
        same = description.recipe and held
        return structs.replace(entry, license=license or (entry.license if same else None))
    except UnknownName:
        channels, height, width = config["input_size"]
        architecture = description.base.architecture if description.base else description.name
        more: dict[str, Any] = {"base": description.base, "license": license}
        if license is None and description.base and (others := licences.license_of(description.base)):
            more["note"] = f"the weights of {description.base.id} are under {others}; of these no licence is named"
        return own(description.name, architecture, description.task, input=(channels, height, width), **more)
