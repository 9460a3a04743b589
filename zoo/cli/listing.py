"""`zoo list` and `zoo show`: what is known of every model."""

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from msgspec import structs, to_builtins

from zoo import catalog
from zoo.catalog.entry import STATUSES, Entry, Recipe, Reported
from zoo.catalog.methods import METHODS
from zoo.catalog.papers import papers
from zoo.cli.tables import UNITS, as_json, say, say_json, table, three_digits
from zoo.declarations import validated
from zoo.errors import RepositoryError
from zoo.files import read_json

if TYPE_CHECKING:
    from zoo.hub.listed import Listed


class Count(click.ParamType):  # type: ignore[type-arg]
    """A number that may end in k, M or G."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`1.5G` → 1.5e9."""
        unit = value[-1:] if value[-1:] in UNITS else ""
        with contextlib.suppress(ValueError):
            count = float(value.removesuffix(unit)) * UNITS[unit]
            if 0 < count < math.inf:
                return count
        return self.fail(f"{value!r} isn't a number such as 300M or 1.5G", param, ctx)


@click.command("list", epilog="\b\nzoo list resnet50d --max-macs 1.5G --sort top1\nzoo list --hub me")
@click.argument("pattern", default="*")
@click.option("--method", type=click.Choice(list(METHODS)), help="Only models compressed by this method.")
@click.option("--task", help="Only models for this task, e.g. image-classification.")
@click.option("--base", metavar="PATTERN", help="Only models made from such a base, e.g. resnet50d.")
@click.option("--project", help="Only models of this project, e.g. torch-dag.")
@click.option("--status", type=click.Choice(STATUSES), help="Only models of this status.")
@click.option("--max-macs", type=Count(), help="Only models with at most so many macs, e.g. 1.5G.")
@click.option("--max-params", type=Count(), help="Only models with at most so many parameters, e.g. 10M.")
@click.option("--sort", type=click.Choice(catalog.ORDERS), default="name", show_default=True, help="The order.")
@click.option("--all", "everything", is_flag=True, help="Also models that aren't built yet.")
@click.option("--hub", is_flag=False, flag_value="", metavar="[ORG]", help="What ORG has there, or also what all have.")
@as_json
def list_models(pattern: str, everything: bool, hub: str | None, as_json: bool, **wanted: Any) -> None:
    """List the models of the catalog.

    PATTERN is a part of the name, or a pattern with * and ?. Figures that a source reports and we haven't measured
    are marked so.
    """
    names = [] if hub else catalog.names(pattern, all=everything, **wanted)
    entries = [catalog.info(name) for name in names]
    on_hub = [] if hub is None else _published(hub or None, pattern, wanted)
    if as_json:
        models = [*(_listed(entry) for entry in entries), *(asdict(each) for each in on_hub)]
        say_json({"counts": _counts(entries), "models": models})
        return
    head = ["name", "method", "macs kept", "params", "macs", "accuracy", "figures", "status"]
    table(head, [*map(_row, entries), *map(_published_row, on_hub)])
    left = 0 if everything or hub else len(catalog.names(pattern, all=True, **wanted)) - len(entries)
    counts = Counter(entry.status for entry in entries)
    parts = [f"{count} {status}" for status, count in counts.items()] + [f"{left} more with --all"] * bool(left)
    parts += [f"{len(on_hub)} on the Hub"] * (hub is not None)
    found = len(entries) + len(on_hub)
    say(f"{found} model{'s' * (found != 1)}: {', '.join(parts)}" if parts else "no model fits")


@click.command(epilog="\b\nzoo show digits_cnn_pruned_25")
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show what is known of the model NAME.

    What it is made from and how, what is claimed and what was measured of it, and how to load it. NAME is of the list,
    ORG/NAME on the Hub, or a repository's folder such as ./build/mine.
    """
    if "/" in name or name in (".", ".."):
        _show_repository(name, as_json)
        return
    entry = catalog.info(name)
    measured = catalog.results(entry)
    obstacle = catalog.obstacle(entry)
    load = {"load": None if obstacle else f'zoo.load("{name}")', "obstacle": obstacle}
    if as_json:
        more = {**load, "structure": _structure(entry), "papers": papers(entry), "results": measured or None}
        say_json({**to_builtins(entry), **more})
        return
    facts = {
        "name": entry.name,
        "base": entry.base.id if entry.base else None,
        "task": entry.task,
        "input": " x ".join(map(str, entry.input)),
        "status": entry.status,
        "load": load["load"] or f"not yet: {obstacle}",
        "structure": _structure(entry),
        **_making(to_builtins(entry.recipe)),
        "data": entry.recipe.data or entry.dataset,
        "licence": entry.license or "of the weights that it will be made from",
        "origin": ", ".join(str(fact) for fact in structs.asdict(entry.origin).values() if fact)
        if entry.origin
        else None,
        "source": entry.source,
        **{f"paper of the {what}": paper for what, paper in papers(entry).items()},
        "note": entry.note,
    }
    _facts(facts)
    rows = [["measured here", _pairs(measured["measured"]), _pairs(measured["data"])]] if measured else []
    rows += [
        [row.of or "reported", _pairs(row.figures), _conditions(row)] for row in (*entry.reported, *entry.baselines)
    ]
    _figures(rows)


def _show_repository(name: str, as_json: bool) -> None:
    """Show what a repository says of itself; its weights aren't fetched."""
    from zoo.hub import repository
    from zoo.verbs.loading import folder_of
    from zoo.verbs.verification import results_of

    folder = folder_of(name, files=(repository.CONFIG, repository.RESULTS))
    config, results = repository.read_config(folder), results_of(folder)
    ours, plan = config["zoo"], repository.describe_folder(folder, config).plan
    if as_json:
        say_json({**ours, "results": results.to_json()})
        return
    pixels = config.get("pretrained_cfg", {}).get("input_size", [])
    recipe = ours.get("recipe", {})
    validated(list[Any], pixels, f"{folder / repository.CONFIG}: pretrained_cfg.input_size", RepositoryError)
    facts = {
        "name": ours["name"],
        "base": (ours.get("base") or {}).get("id"),
        "input": " x ".join(map(str, pixels)),
        "load": f'zoo.load("{name}")',
        "structure": "a graph" if "graph" in ours else _edits(plan.to_json()),
        **(_making(recipe) if "method" in recipe or "schedule" in recipe else {}),
        "data": recipe.get("data"),
        "versions": ", ".join(_pairs(ours.get("versions", {}))),
    }
    _facts(facts)
    if results.measured:
        _figures([["its results", _pairs(results.measured), _pairs(results.data)]])


def _facts(facts: Mapping[str, Any]) -> None:
    table(["", ""], [[key, value] for key, value in facts.items() if value])


def _figures(rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        table(["figures of", "", "for"], [[who, ", ".join(what), ", ".join(where)] for who, what, where in rows])


def _making(recipe: Mapping[str, Any]) -> dict[str, str]:
    """How a model is made, of a recipe as plain data that may leave out what is as ever."""
    said = {**to_builtins(Recipe()), **recipe}
    training = [pair for part in ("schedule", "distil", "augment") for pair in _pairs(said[part])]
    return {
        "made by": ", ".join([said["method"] or "training from scratch", *_pairs(said["options"])]),
        "budget": ", ".join(f"{v:.1%} of the {k}" for k, v in (said["budget"] or {}).items() if v),
        "teachers": ", ".join(map(str, said["teachers"])),
        "training": ", ".join(training),
    }


def _published(organisation: str | None, pattern: str, wanted: Mapping[str, Any]) -> "list[Listed]":
    """What the Hub has and the catalog doesn't know, of an organisation all that it has; with figures where they count.

    Nothing there is of a project or status of the catalog.
    """
    from zoo.hub.listed import models_on_hub, with_figures

    method, task, sort = (wanted[key] for key in ("method", "task", "sort"))
    most = {key: wanted[f"max_{key}"] for key in ("macs", "params") if wanted[f"max_{key}"] is not None}
    if wanted["project"] or wanted["status"]:
        return []
    base, tags = f"*{wanted['base'] or ''}*", {*METHODS[method].tags} if method else set()
    known = set() if organisation else {catalog.info(name).repo for name in catalog.names(all=True)}
    found = [
        each
        for each in models_on_hub(organisation)
        if each.repo not in known
        and catalog.matches(each.repo.partition("/")[2], pattern)
        and catalog.matches(each.base or "", base)
        and task in (None, each.task)
        and tags <= {*each.methods}
    ]
    if organisation or method or most or sort != "name":
        found = with_figures(found)
    fitting = [
        each
        for each in found
        if method in (None, each.method)
        and all(each.measured.get(key, math.inf) <= value for key, value in most.items())
    ]
    return sorted(fitting, key=lambda each: (_place(each, sort), each.repo))


def _place(listed: "Listed", sort: str) -> float:
    """Where a repository stands in an order of the catalog's; the unknown come last."""
    if sort == "name":
        return 0.0
    return -listed.measured.get(sort, 0.0) if sort == "top1" else listed.measured.get(sort, math.inf)


def _counts(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Project → status → models."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        counts[entry.project][entry.status] += 1
    return {project: dict(counts[project]) for project in sorted(counts)}


def _listed(entry: Entry) -> dict[str, Any]:
    keys = ("name", "project", "family", "task", "status", "license", "source")
    recipe, base = to_builtins(entry.recipe), entry.base.id if entry.base else None
    plain = {**{key: getattr(entry, key) for key in keys}, "base": base}
    return {**plain, "method": recipe["method"], "budget": recipe["budget"], **vars(catalog.size(entry))}


def _row(entry: Entry) -> list[str]:
    size = catalog.size(entry)
    share = f"{entry.recipe.budget.macs:.0%}" if entry.recipe.budget else ""
    mean = size.map or size.map50
    accuracy = f"{size.top1:.2%}" if size.top1 else f"{mean:.1%} mAP" if mean else "-"
    known = {key for key, value in vars(size).items() if value is not None} - {"reported"}
    figures = (
        "reported" if known == set(size.reported) else ", ".join(size.reported) + " reported" * bool(size.reported)
    )
    costs = [three_digits(size.params), three_digits(size.macs), accuracy, (figures or "measured") if known else ""]
    return [entry.name, entry.recipe.method or "dense", share, *costs, entry.status]


def _published_row(listed: "Listed") -> list[str]:
    """What a repository of the Hub claims of itself."""
    found = listed.measured
    leading = next((key for key in ("top1", "map", "map50", "agreement") if key in found), "")
    accuracy = f"{found[leading]:.2%}{'' if leading == 'top1' else f' {leading}'}" if leading else "-"
    costs = [three_digits(found.get("params")), three_digits(found.get("macs")), accuracy, "claimed" if found else ""]
    return [listed.repo, ", ".join(listed.methods), "", *costs, f"on the Hub at {listed.commit[:7]}"]


def _structure(entry: Entry) -> str:
    """What is known of the layers without building them."""
    if entry.status == "embedded":
        ours = read_json(catalog.EMBEDDED / entry.name / "config.json")["zoo"]
        return "a graph" if "graph" in ours else _edits(ours["plan"])
    if catalog.stand_in(entry):
        known = f"as the {entry.origin.format} checkpoint has it" if entry.origin else "known once it is built"
        return f"{known}; until then a stand-in of the published macs and params"
    if entry.origin is not None:
        return f"as the {entry.origin.format} checkpoint has it"
    return "known once it is built"


def _edits(plan: Sequence[Mapping[str, Any]]) -> str:
    edits = [(edit["edit"], sum(len(items) for key, items in edit.items() if key != "edit")) for edit in plan]
    return ", ".join(f"{edit} of {count} modules" for edit, count in edits) or "that of the base"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} {value:.8g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()]


def _conditions(row: Reported) -> list[str]:
    known = {
        key: value for key, value in structs.asdict(row).items() if key not in ("figures", "of") and value is not None
    }
    return _pairs(known)
