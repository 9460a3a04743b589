"""Recipes: whether one can be followed, and whether a repository was made by it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from zoo import atomic
from zoo.catalog.data_names import model_told, told
from zoo.catalog.entry import Base, Budget, Entry, Recipe, own
from zoo.catalog.methods import Apart, check_last, is_final, runnable, suffix
from zoo.catalog.reader import read_recipes
from zoo.declarations import validated
from zoo.errors import BudgetError, CatalogError, DataError, RepositoryError, UnknownName, ZooError
from zoo.files import free, sha256_stamped
from zoo.hub import repository
from zoo.structure.description import Description
from zoo.tasks.task import Labels
from zoo.training.distillation import Distil
from zoo.training.schedule import Schedule
from zoo.verbs.compressing import checked_budget, declarations, declared
from zoo.verbs.loading import description_named
from zoo.verbs.verification import results_of, weights_of

MENDED = dict.fromkeys(("note", "base", "base_method", "converted_from"))  # no other model; weights have their hash


def recipe_for(
    base: str,
    method: str,
    budget: Budget | None,
    data: str,
    epochs: int,
    options: Mapping[str, Any],
    *,
    teachers: Sequence[str] = (),
    schedule: Mapping[str, Any] | None = None,
    distil: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Entry:
    """The entry of a model that isn't in the catalog: `base` compressed, then distilled.

    Args:
        base: the dense model's id.
        method: of compression.
        budget: what it may keep.
        data: as `--data` takes it.
        epochs: of distillation; 0 leaves it out.
        options: of the method.
        teachers: from smaller to larger; none takes `base` itself.
        schedule: further fields of the distillation's `Schedule`.
        distil: fields of its `Distil`.
        augment: keyword arguments of timm's training transform.
        seed: of calibration images, order and augmentation.
    """
    description, said = description_named(base)[0], _said_by(base)
    recipe = Recipe(
        method=method,
        budget=budget,
        options=options,
        data=data,
        teachers=tuple(teachers or (base,)) if epochs else (),
        schedule={"epochs": epochs, **(schedule or {})},
        distil=distil or {},
        augment=augment or {},
        seed=seed,
    )
    name = f"{description.name}_{suffix(method, budget, options.get('latency_ms'))}"
    return own(name, base=Base(base), dataset=data, recipe=recipe, **{**said, "input": tuple(said["input"])})


def recipes_in(file: Path) -> list[Entry]:
    """The models of a file of recipes, each checked.

    Args:
        file: TOML with the keys of the catalog; a base may be a folder, and says what isn't said.

    Raises:
        ZooError: what can't be read or followed, with file, entry and key.
    """
    found = read_recipes(file, _said_by)
    for entry in found:
        try:
            check_recipe(entry.name, entry.recipe)
            distillation_of(entry.recipe)
        except ZooError as error:
            raise CatalogError(f"{file.name}: {error}") from None
    return found


def _said_by(base: str) -> dict[str, Any]:
    """What a base says of the models that are made of it."""
    description, config = description_named(base)
    architecture = description.base.architecture if description.base else description.name
    said = {"architecture": architecture, "task": description.task, "license": config.get("license")}
    return {**said, "input": list(config["input_size"])}


def check_recipe(name: str, recipe: Recipe) -> None:
    """Check that a recipe's method is there, has a budget just where it needs one, and options that it may have.

    Args:
        name: of the model, for the message.
        recipe: how it shall be made.

    Raises:
        UnknownName, BudgetError, DataError: what is wrong with it.
    """
    validated(Apart, {"seed": recipe.seed, "augment": recipe.augment}, f"{name}:", DataError)
    if recipe.method is None:
        return
    runnable(recipe.method)
    try:
        checked_budget(recipe.method, recipe.budget, recipe.options.get("latency_ms"))
    except BudgetError as error:
        raise BudgetError(f"{name}: {error}") from None
    for key in recipe.options:
        if key not in Apart.__struct_fields__ and key in Recipe.__struct_fields__:
            raise UnknownName(f"{name}: {key} is no option of {recipe.method}: it stands in the recipe itself")
    declarations_of(recipe)
    check_last(recipe.method, distillation_of(recipe)[0].epochs, recipe.options.get("calibrate_steps", 0))


def declarations_of(recipe: Recipe) -> tuple[Any, Schedule | None]:
    """The declaration of a recipe's method, and the schedule of the training that is part of it; None where none is.

    Raises:
        UnknownName: this version has no such method, or that has no such option.
        DataError: an option isn't of its type.
    """
    return (None, None) if recipe.method is None else declarations(recipe.method, recipe.options)


def distillation_of(recipe: Recipe) -> tuple[Schedule, Distil]:
    """How a recipe trains what its method leaves; no epochs of a recipe that doesn't."""
    said = {"epochs": 0, **recipe.schedule} if is_final(recipe.method) else recipe.schedule
    return declared(Schedule, said, "schedule"), declared(Distil, recipe.distil, "distil")


def read_as(entry: Entry, data: str | None = None, skip_damaged: bool = False, labels: Labels | None = None) -> Entry:
    """An entry of other data, or read otherwise, where that is said; arguments are those of `zoo.compress`."""
    recipe = entry.recipe
    return replace(
        entry,
        recipe=replace(
            recipe,
            data=data or recipe.data,
            skip_damaged=skip_damaged or recipe.skip_damaged,
            labels=recipe.labels if labels is None else labels,
        ),
    )


def at_most(entry: Entry, steps: int | None) -> Entry:
    """An entry whose trainings, its method's and the distillation, last so many steps at most; None leaves it alone.

    Raises:
        DataError: its recipe trains nothing.
    """
    recipe, (_, learns) = entry.recipe, declarations_of(entry.recipe)
    distils = distillation_of(recipe)[0].epochs > 0
    if steps is None:
        return entry
    if not learns and not distils:
        raise DataError(f"{entry.name}: its recipe trains nothing: leave --steps out")
    if distils:
        said = {**recipe.schedule, "steps": min(steps, recipe.schedule.get("steps") or steps)}
        recipe = replace(recipe, schedule=said)
    if learns:
        said = {**recipe.options.get("schedule", {}), "steps": min(steps, learns.steps or steps)}
        recipe = replace(recipe, options={**recipe.options, "schedule": said})
    return replace(entry, recipe=recipe)


def is_built(entry: Entry, folder: Path) -> bool:
    """Whether a folder holds the model of an entry, made by this very recipe.

    Raises:
        RepositoryError: its config.json is none.
    """
    if not all((folder / file).is_file() for file in (repository.CONFIG, repository.WEIGHTS, repository.RESULTS)):
        return False
    made = repository.read_config(folder)["zoo"]
    then, now = (_as_told({**each, **MENDED}) for each in (made.get("recipe", {}), shown(entry)))
    if made.get("name") != entry.name or then != now:
        return False
    if sha256_stamped(folder / repository.WEIGHTS) != made.get("weights_sha256"):
        return False
    weights = results_of(folder).data.get("against_sha256")  # of the base then, where it was no timm id
    return weights in (None, weights_of(entry.base.id if entry.base else ""))


def finished(entry: Entry, folder: Path) -> bool:
    """Whether nothing is left to be done.

    Raises:
        RepositoryError: the folder holds another model, one of another recipe or other weights, or not all of one.
    """
    atomic.restore(folder)
    if not (folder / repository.CONFIG).is_file():
        return False
    free(folder)
    if not is_built(entry, folder):
        name = repository.read_config(folder)["zoo"]["name"]
        raise RepositoryError(
            f"{folder} holds {name}, made by another recipe or of other weights, or not all of it: choose another "
            "folder or remove it"
        )
    return True


def shown(entry: Entry, base: Description | None = None) -> dict[str, Any]:
    """How an entry is made as its repository tells it: what differs from the defaults, and the base; no way to folders.

    Args:
        entry: the recipe.
        base: what is known of the base, where it was made by a method itself.
    """
    said = {"base": model_told(entry.base.id)} if entry.base and entry.recipe.method else {}
    said |= {"base_method": base.recipe["method"]} if base and base.recipe.get("method") else {}
    said |= {"converted_from": base.recipe["converted_from"]} if base and base.recipe.get("converted_from") else {}
    return _as_told({**plain(entry.recipe), **said})


def _as_told(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as JSON, with the names of data and models as others are told of them."""
    said = dict(recipe)
    if said.get("data"):
        said["data"] = told(said["data"])
    if said.get("teachers"):
        said["teachers"] = [model_told(teacher) for teacher in said["teachers"]]
    return dict(json.loads(json.dumps(said)))


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: what differs from the defaults."""
    default = to_builtins(Recipe())
    return {key: value for key, value in to_builtins(recipe).items() if value != default[key]}
