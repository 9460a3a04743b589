"""How a model was made and where it came from, in the words of a card."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo import catalog
from zoo.catalog.entry import Entry
from zoo.catalog.methods import METHODS, is_final
from zoo.catalog.papers import papers
from zoo.catalog.report import Report
from zoo.pages import front_matter, words
from zoo.structure.description import Description

# Settings of a base that leave it the architecture that its name says.
USUAL = {"num_classes", "in_chans", "img_size", "global_pool", "pad_type"}


def sentence(entry: Entry, description: Description, recipe: Mapping[str, Any], report: Report) -> str:
    """The first sentence of a card."""
    came, altered = "", ", altered since" if recipe.get("altered") else ""
    if origin := recipe.get("converted_from"):
        place = f" {origin['repo']}" if origin.get("repo") else ""
        came = f"converted from the {origin['format']} checkpoint{place}"
        if not recipe.get("method"):
            known = METHODS.get(entry.recipe.method or "")
            how = f"{known.words}, " if known and entry.origin and not altered else ""
            return f"{entry.architecture}, {how}{came}{altered}."
    dense = recipe.get("base") or front_matter.dense_id(entry.base) or "its base"
    budget, teachers = recipe.get("budget"), list(recipe.get("teachers", ()))
    how = _how(description, recipe)
    if budget:
        how += f" to a budget of {words.budget(budget)} of {words.model_name(dense)}"
    if teachers:
        how += f" and distilled from {'it' if budget and teachers == [dense] else _listed(teachers)}"
    family = "" if entry.family == entry.architecture else f" ({entry.family})"
    first = f"{came}, then " if came else ""
    varied = description.base is not None and not USUAL.issuperset(description.base.args)
    network = f"{'A variant of ' if varied else ''}{entry.architecture}{family}"
    return f"{network}, {first}{how}{altered}{_where(recipe, report)}."


def _how(description: Description, recipe: Mapping[str, Any]) -> str:
    method = recipe.get("method")
    if method in METHODS:
        return METHODS[method].words
    if method or description.plan.edits:
        return "compressed"
    return "a network of its author's own" if description.base is None else "dense"


def _where(recipe: Mapping[str, Any], report: Report) -> str:
    """On which data it was trained, or else calibrated, and measured."""
    used = words.dataset_name(recipe["data"]) if recipe.get("data") else None
    measured = words.dataset_name(report.data["dataset"]) if report.data.get("dataset") else None
    verb = "trained" if is_trained(recipe) else "calibrated" if recipe.get("method") else None
    if verb and used == measured and used:
        return f"; {verb} and measured on {used}"
    clauses = [f"{did} on {data}" for did, data in ((verb, used), ("measured", measured)) if did and data]
    return f"; {', '.join(clauses)}" if clauses else ""


def is_trained(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe trains, by its schedule or by its method's own."""
    method = METHODS.get(recipe.get("method") or "")
    epochs = (recipe.get("schedule") or {}).get("epochs", 0 if is_final(recipe.get("method")) else 1)
    return epochs != 0 or (method is not None and method.trains)


def _listed(models: Sequence[str]) -> str:
    return ", ".join(map(words.model_name, models))


def made(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a recipe says beside its defaults."""
    if not recipe:
        return []
    rows = {
        "method": str(recipe.get("method") or ""),
        "budget": f"{words.budget(recipe['budget'])} of the base" if recipe.get("budget") else "",
        "options": words.settings_text(recipe.get("options", {})),
        "base": words.model_name(recipe["base"]) if words.is_local(recipe.get("base") or "") else "",
        "teachers": _listed(recipe.get("teachers", ())),
        "distillation": words.settings_text(recipe.get("distil", {})),
        "data": words.dataset_name(recipe["data"]) if recipe.get("data") else "",
        "schedule": words.settings_text(recipe.get("schedule", {})) if is_trained(recipe) else "",
        "augmentation": words.settings_text(recipe.get("augment", {})) if is_trained(recipe) else "",
        "seed": str(recipe.get("seed", 0)) if recipe.get("data") else "",
    }
    return [(what, how) for what, how in rows.items() if how]


def unsaid(entry: Entry) -> list[tuple[str, str]]:
    """What the source of a model that is converted doesn't say of how it was made."""
    return [("note", entry.recipe.note)] if entry.recipe.note else []


def conversion(came: Mapping[str, Any], entry: Entry) -> list[tuple[str, str]]:
    """Where a converted checkpoint came from, and what conversion changed."""
    if not came:
        return []
    more = [("changed", text) for text in came.get("changed", ())]
    if entry.dataset == "ILSVRC/imagenet-1k":
        more.append(("labels", "ImageNet's 1,000 classes in the order of their synsets, as timm has them"))
    if entry.origin is not None and not catalog.results(entry):
        more.append(("not yet", "loaded from the Hub and evaluated by us: the source's figures stand unchecked"))
    commit = f" at {came['commit']}" if came.get("commit") else ""
    hashes = [(f"sha256 of {file}", digest) for file, digest in came.get("sha256", {}).items()]
    place = came.get("repo") or "a local folder"
    return [("checkpoint", f"{place}{commit} ({came['format']})"), *hashes, *more]


def provenance(entry: Entry, recipe: Mapping[str, Any], note: str | None) -> list[tuple[str, str]]:
    """Licence, sources and papers of an entry's model, made by a recipe; `note` is of the weights it comes from."""
    base = recipe.get("base") or ""
    dense = front_matter.dense_id(entry.base) if not words.is_local(base) else words.model_name(base)
    rows = {"licence": entry.license, "base": dense, "source": entry.source}
    if entry.origin is not None:
        commit = f" at {entry.origin.commit}" if entry.origin.commit else ""
        rows["converted from"] = f"{entry.origin.repo}{commit} ({entry.origin.format})"
    rows["note"] = entry.note
    rows["note of the weights that it comes from"] = note if note != entry.note else None
    found = papers(entry, recipe.get("method"))
    if recipe.get("converted_from") and not recipe.get("method"):
        found.pop("method", None)  # ours needn't be the source's
    rows |= {f"paper of the {what}": paper for what, paper in found.items()}
    return [(what, text) for what, text in rows.items() if text]
