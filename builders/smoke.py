"""Stand-ins: a recipe that runs in seconds with no network, through the very code of the real one.

The architecture keeps its depth and widths; base and teachers have random weights, images are few, small where the
architecture takes them so, and noise. What comes out is named and marked so that nobody takes it for the model.
"""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from zoo import catalog
from zoo.atomic import writing
from zoo.catalog.entry import Base, Entry, Recipe
from zoo.catalog.methods import METHODS, is_final
from zoo.errors import StructureError
from zoo.hub import repository
from zoo.measurement.macs import measure
from zoo.structure.base import check_tag, initialised, skeleton
from zoo.structure.description import Description, config_of, configure_
from zoo.structure.sources import is_base_id
from zoo.verbs.beginning import processes
from zoo.verbs.recipes import declarations_of

IMAGES = 8
SIDES = (64, 128)
DIGITS = 10
OF_SCENES = ("object-detection",)  # tasks
WARNING = f"A smoke test: made of random weights in a few steps on {IMAGES} images, its figures mean nothing."


def stand_in(entry: Entry, folder: Path, *, small: bool = True) -> Entry:
    """The recipe of an entry, shrunk.

    Args:
        entry: the recipe.
        folder: where the stand-ins of base and teachers are kept.
        small: let images be small; else params and macs are those of the real recipe.

    Returns:
        An entry that isn't in the catalog, named `<name>_smoke`.
    """
    recipe, base = entry.recipe, entry.base
    assert base is not None  # or nothing could be built
    base = _standing(base, entry)
    dense = [base, *(_standing(Base(teacher), entry) for teacher in recipe.teachers)] if recipe.method else []
    side = next((side for side in SIDES if small and all(_takes(each, entry, side) for each in dense)), entry.input[-1])
    size = (entry.input[0], side, side)
    ids = [_dense(each, folder, size) for each in dense]
    return replace(
        entry,
        name=f"{entry.name}_smoke",
        status="recipe",
        base=Base(ids[0]) if recipe.method else base,
        input=size,
        recipe=_recipe(recipe, tuple(ids[1:]), _data(entry, base)),
        origin=None,
        repo=None,
        revision=None,
        reported=entry.reported if not small else (),
        baselines=(),
        note=WARNING,
    )


def mark_(folder: Path) -> None:
    """Put the warning at the head of a card, once."""
    card = folder / repository.CARD
    front, title, body = card.read_text(encoding="utf-8").partition(f"# {folder.name}\n")
    if WARNING not in body:
        with writing(card) as file:
            file.write(f"{front}{title}\n**{WARNING}**\n{body}".encode())


def _standing(base: Base, entry: Entry) -> Base:
    """The base of an entry's, where that isn't built yet; of a detector, one that finds digits."""
    if (known := catalog.known(base.id)) and catalog.obstacle(known) and known.base:
        base = known.base
    return Base(base.id, {**base.args, "num_classes": DIGITS}) if entry.task in OF_SCENES else base


def _data(entry: Entry, base: Base) -> str:
    """Data of the package with as many classes as the model has: noise has ImageNet's number."""
    if entry.task in OF_SCENES:
        return "digit_scenes"
    few = is_base_id(base.id) and _config(base).get("num_classes") == DIGITS
    return "digits" if few or entry.recipe.data == "digits" else "noise"


def _recipe(recipe: Recipe, teachers: tuple[str, ...], own: str) -> Recipe:
    short: dict[str, Any] = {"epochs": 1, "steps": 2, "batch_size": IMAGES // 2, "checkpoint_seconds": 0}
    quick = dict(METHODS[recipe.method].quick) if recipe.method else {}
    if declarations_of(recipe)[1]:
        quick["schedule"] = {**recipe.options.get("schedule", {}), **short, "lr": 0.1}
    return replace(
        recipe,
        data=f"{own}[:{IMAGES}]",
        teachers=teachers,
        options={**recipe.options, "images": IMAGES, **quick} if recipe.method else recipe.options,
        schedule={} if is_final(recipe.method) else {**recipe.schedule, **short},
        note=WARNING,
    )


def _takes(base: Base, entry: Entry, side: int) -> bool:
    """Whether an architecture takes images of that side; teachers of a fixed size have theirs resized."""
    if not is_base_id(base.id):
        return side == entry.input[-1]
    if _config(base).get("fixed_input_size"):
        return base != entry.base
    try:
        measure(skeleton(base), (entry.input[0], side, side))
    except StructureError:
        return False
    return True


def _dense(base: Base, folder: Path, size: tuple[int, int, int]) -> str:
    """A dense model's stand-in, as a repository's folder; what lies in the wheel stands for itself."""
    if not is_base_id(base.id):
        return base.id
    place = folder / f"{base.id.partition('/')[2]}_{size[0]}x{size[-1]}"
    if processes().is_main_process and not (place / repository.CONFIG).is_file():
        model, config = initialised(base), _config(base)
        config["input_size"] = config["input_size"] if config.get("fixed_input_size") else size
        configure_(model, config)
        repository.write_repository(place, model, Description(base.architecture, base), {})
    processes().wait_for_everyone()
    return str(place.absolute())


def _config(base: Base) -> dict[str, Any]:
    check_tag(base)
    return config_of(skeleton(base))
