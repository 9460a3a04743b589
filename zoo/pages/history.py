"""How a model was made and where it came from, in the words of a card."""

from collections.abc import Mapping
from typing import Any

from zoo import catalog
from zoo.catalog.entry import Entry
from zoo.catalog.methods import METHODS
from zoo.catalog.papers import papers
from zoo.catalog.report import Report
from zoo.pages import front_matter, words
from zoo.structure.plan import Plan


def sentence(entry: Entry, plan: Plan, recipe: Mapping[str, Any], report: Report) -> str:
    """The first sentence of a card."""
    if came := recipe.get("converted_from"):
        place = f" {came['repo']}" if came.get("repo") else ""
        return f"{entry.architecture}, converted from the {came['format']} checkpoint{place}."
    dense = front_matter.dense_id(entry.base) or "its base"
    method, budget, teachers = recipe.get("method"), recipe.get("budget"), list(recipe.get("teachers", ()))
    how = METHODS[method].words if method in METHODS else "compressed" if method or plan.edits else "dense"
    if budget:
        how += f" to a budget of {words.budget(budget)} of {dense}"
    if teachers:
        how += f" and distilled from {'it' if budget and teachers == [dense] else ', '.join(teachers)}"
    trained = words.dataset_name(recipe["data"]) if recipe.get("data") else None
    measured = words.dataset_name(report.data["dataset"]) if report.data.get("dataset") else None
    if trained == measured:
        where = f"; trained and measured on {trained}" if trained else ""
    else:
        clauses = [f"{verb} on {data}" for verb, data in (("trained", trained), ("measured", measured)) if data]
        where = f"; {', '.join(clauses)}"
    family = "" if entry.family == entry.architecture else f" ({entry.family})"
    return f"{entry.architecture}{family}, {how}{where}."


def made(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a recipe says beside its defaults."""
    if not recipe:
        return []
    rows = {
        "method": str(recipe.get("method") or ""),
        "budget": f"{words.budget(recipe['budget'])} of the base" if recipe.get("budget") else "",
        "options": words.settings_text(recipe.get("options", {})),
        "teachers": ", ".join(recipe.get("teachers", ())),
        "distillation": words.settings_text(recipe.get("distil", {})),
        "data": words.dataset_name(recipe["data"]) if recipe.get("data") else "",
        "schedule": words.settings_text(recipe.get("schedule", {})),
        "augmentation": words.settings_text(recipe.get("augment", {})),
        "seed": str(recipe.get("seed", 0)) if recipe.get("data") else "",
    }
    return [(what, how) for what, how in rows.items() if how]


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


def provenance(entry: Entry, method: str | None) -> list[tuple[str, str]]:
    """Licence, sources and papers of an entry's model, made by a method."""
    rows = {"licence": entry.license, "base": front_matter.dense_id(entry.base), "source": entry.source}
    if entry.origin is not None:
        commit = f" at {entry.origin.commit}" if entry.origin.commit else ""
        rows["converted from"] = f"{entry.origin.repo}{commit} ({entry.origin.format})"
    rows["note"] = entry.note
    rows |= {f"paper of the {what}": paper for what, paper in papers(entry, method).items()}
    return [(what, text) for what, text in rows.items() if text]
