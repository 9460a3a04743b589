"""Card: the README.md of a repository, from the catalog's entry, the structure and what was measured.

Nothing is claimed that wasn't measured by us, but for the source's figures, which stand apart, marked `reported`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]
from msgspec import structs, to_builtins

from zoo import catalog
from zoo.catalog.entry import Base, Entry, Recipe, Reported
from zoo.catalog.methods import METHODS
from zoo.catalog.report import Report
from zoo.errors import require
from zoo.hub.remote import LIBRARY
from zoo.structure.description import Description
from zoo.structure.plan import Drop, Edit, Factor, Heads, Mask, Narrow, Plan, Rank, Width
from zoo.tasks import TASKS
from zoo.tasks.datasets import HUB_ID
from zoo.tasks.task import Leading

LONG = 12  # layers; a longer table is collapsed

EDITED = {"narrow": "narrowed", "factor": "factored", "mask": "masked", "drop": "dropped", "swap": "swapped"}
LABELS = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "kmapp": "kmapp = 2·macs/(1000·H·W)",
    "kl": "KL divergence from the dense base",
}
SOURCES = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP 50-95",
    "map50": "mAP 50",
    "params_m": "millions of parameters",
    "latency_ms": "latency in ms",
    "latency_std_ms": "its deviation",
    "speedup": "latency saved",
    "params_size": "params size in M",
}


def render(
    entry: Entry,
    description: Description,
    report: Report,
    pretrained_cfg: Mapping[str, Any],
    base: Report | None = None,
) -> str:
    """Write a model's card.

    Args:
        entry: the catalog's: claims, recipe, licence, source.
        description: the structure, and how this very model was made, which wins over the entry's recipe.
        report: what was measured of it.
        pretrained_cfg: timm's keys; the preprocessing, where the report doesn't say.
        base: what was measured of the dense base, to stand beside; its accuracy only if on the same images.

    Returns:
        Markdown with YAML front matter.

    Raises:
        MissingExtra: jinja2 isn't installed.
    """
    default = to_builtins(Recipe())
    catalogued = {key: value for key, value in to_builtins(entry.recipe).items() if value != default[key]}
    recipe = dict(description.recipe) or catalogued
    # A user's model can bear a name of the catalog: what is claimed there holds only for one that was made like it.
    came = recipe.get("converted_from", {})
    converted = entry.origin is not None and came.get("repo") == entry.origin.repo
    if not converted and json.dumps(recipe, sort_keys=True) != json.dumps(catalogued, sort_keys=True):
        entry = Entry(
            name=description.name,
            project="own",
            family=entry.family,
            architecture=entry.architecture,
            task=entry.task,
            status="recipe",
            base=entry.base,
            license=entry.license,
        )
    edits = description.plan.edits
    body = _template().render(
        LONG=LONG,
        name=description.name,
        sentence=_sentence(entry, description.plan, recipe, report),
        place=description.name if entry.status != "recipe" else f"path/to/{description.name}",
        beside=base is not None,
        figures=_figures(report, base),
        preprocessing=_preprocessing(report, pretrained_cfg),
        conditions=_conditions(report),
        reported=[_reported(row, entry) for row in (*entry.reported, *entry.baselines)],
        base=description.base.id if description.base else None,
        args=_settings(description.base.args) if description.base else "",
        graph=description.graph,
        stand_in=description.structure == "stand-in",
        edits=[_summary(edit) for edit in edits],
        layers=[(path, edit.edit, result) for edit in edits for path, result in _results(edit).items()],
        recipe=_made(catalogued if converted else recipe),
        came=_came(came, entry),
        buildable=entry.base is not None and entry.recipe.data is not None,
        origin=_origin(entry),
    )
    return f"---\n{_metadata(entry, description, recipe, report).to_yaml()}\n---\n\n{body}"


def eval_results(report: Report) -> dict[str, str]:
    """What was measured on a data set of the Hub, as its model pages and leaderboards read it.

    Returns:
        Path in the repository → YAML; empty where the data set isn't on the Hub.

    Source: https://huggingface.co/docs/hub/eval-results
    """
    data, leading = report.data.get("dataset", ""), _leading(report)
    if leading is None or not HUB_ID.fullmatch(data):
        return {}
    images, split = (report.data.get(key, unknown) for key, unknown in (("images", "?"), ("split", "test")))
    entry = EvalResultEntry(
        dataset_id=data,
        task_id="default",
        value=report.measured[leading.figure],
        notes=f"{leading.label} {leading.metric} of {images} images ({split})",
    )
    text = yaml_dump(eval_result_entries_to_yaml([entry]))
    return {f".eval_results/{data.rpartition('/')[2]}.yaml": text}


def _leading(report: Report) -> Leading | None:
    """The figure that a card leads with, where it was measured."""
    return next((task.leading for task in TASKS.values() if task.leading.figure in report.measured), None)


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


def _inline(value: Any) -> str:
    """A value on one line that neither ends a table's cell nor opens a tag."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").replace("<", "&lt;")


def _metadata(entry: Entry, description: Description, recipe: Mapping[str, Any], report: Report) -> ModelCardData:
    method = METHODS.get(recipe.get("method") or entry.recipe.method or "")
    edited = recipe.get("method") or entry.recipe.method or description.plan.edits or description.graph
    tags = method.tags if method else () if edited else ("dense",)
    more: dict[str, Any] = {}
    if (dense := _dense(entry.base)) and HUB_ID.fullmatch(dense):
        more = {"base_model": dense, "base_model_relation": method.relation if method else "finetune"}
    if (leading := _leading(report)) and report.data.get("dataset"):
        dataset = _dataset(report.data["dataset"])
        figure = EvalResult(
            task_type=entry.task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=report.data.get("split"),
            metric_type=leading.metric,
            metric_name=leading.title,
            metric_value=report.measured[leading.figure],
        )
        more |= {"model_name": description.name, "eval_results": [figure]}
    license = entry.license.lower() if entry.license else None
    if license and license.endswith("-license"):  # not one of the Hub's own ids
        more |= {"license_name": license}
        license = "other"
    return ModelCardData(
        license=license,
        library_name=LIBRARY,
        pipeline_tag=entry.task,
        datasets=[entry.dataset] if entry.dataset and HUB_ID.fullmatch(entry.dataset) else None,
        tags=[LIBRARY, *tags, *(["distillation"] if recipe.get("teachers") else [])],
        **more,
    )


def _dense(base: Base | None) -> str | None:
    """The id of the dense weights; a timm id without a tag names an architecture alone."""
    return None if base is None or (base.id.startswith("timm/") and "." not in base.id) else base.id


def _sentence(entry: Entry, plan: Plan, recipe: Mapping[str, Any], report: Report) -> str:
    if came := recipe.get("converted_from"):
        place = f" {came['repo']}" if came.get("repo") else ""
        return f"{entry.architecture}, converted from the {came['format']} checkpoint{place}."
    dense = _dense(entry.base) or "its base"
    method, budget, teachers = recipe.get("method"), recipe.get("budget"), list(recipe.get("teachers", ()))
    how = METHODS[method].words if method in METHODS else "compressed" if method or plan.edits else "dense"
    if budget:
        how += f" to a budget of {_budget(budget)} of {dense}"
    if teachers:
        how += f" and distilled from {'it' if budget and teachers == [dense] else ', '.join(teachers)}"
    trained = _dataset(recipe["data"]) if recipe.get("data") else None
    measured = _dataset(report.data["dataset"]) if report.data.get("dataset") else None
    if trained == measured:
        where = f"; trained and measured on {trained}" if trained else ""
    else:
        clauses = [f"{verb} on {data}" for verb, data in (("trained", trained), ("measured", measured)) if data]
        where = f"; {', '.join(clauses)}"
    family = "" if entry.family == entry.architecture else f" ({entry.family})"
    return f"{entry.architecture}{family}, {how}{where}."


def _figures(report: Report, base: Report | None) -> list[list[str]]:
    rows, leading = [], _leading(report)
    labels = {**LABELS, leading.figure: _label(leading.label, report.data)} if leading else LABELS
    for key, value in report.measured.items():
        leads = key == (leading and leading.figure)
        row = [labels.get(key, key), _value(key, value, leads)]
        if base is not None:
            apart = leads and any(report.data.get(k) != base.data.get(k) for k in ("dataset", "split", "images"))
            dense = None if apart else base.measured.get(key)
            row += ["", ""] if dense is None else [_value(key, dense, leads), _against(key, value, dense, leads)]
        rows.append(row)
    return rows


def _label(label: str, data: Mapping[str, Any]) -> str:
    if not data.get("dataset"):
        return label
    where = ", ".join(part for part in (_dataset(data["dataset"]), data.get("split")) if part)
    return f"{label} on {data['images']:,} images ({where})" if "images" in data else f"{label} ({where})"


def _value(key: str, value: float, leads: bool) -> str:
    if key in ("params", "macs"):
        return f"{_readable(value)} ({value:,})" if value >= 1000 else f"{value:,}"
    return f"{100 * value:.2f} %" if leads else f"{value:.4g} nats" if key == "kl" else str(value)


def _against(key: str, value: float, dense: float, leads: bool) -> str:
    if leads:
        return f"{100 * (value - dense):+.2f} points"
    return _percent(value / dense) if key in ("params", "macs", "kmapp") and dense else ""


def _readable(count: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:  # what three digits would round up to 1000 takes the next unit
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _preprocessing(report: Report, pretrained_cfg: Mapping[str, Any]) -> str:
    found = {"input": pretrained_cfg.get("input_size"), **pretrained_cfg, **report.data}
    parts = ["x".join(str(size) for size in found["input"])] if found["input"] else []
    if found.get("interpolation"):
        parts.append(str(found["interpolation"]))
    names = {"crop_pct": "crop", "crop_mode": "crop mode", "mean": "mean", "std": "std"}
    parts += [f"{name} {_text(found[key])}" for key, name in names.items() if found.get(key) is not None]
    return ", ".join(parts)


def _conditions(report: Report) -> str:
    used = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    return " on ".join(part for part in (used, report.hardware) if part)


def _reported(row: Reported, entry: Entry) -> list[str]:
    figures = ", ".join(f"{SOURCES.get(key, key)} {_claim(key, value)}" for key, value in row.figures.items())
    conditions = {"px": row.input, "images": row.images, "in a batch": row.batch}
    holds = [f"{count:,} {what}" for what, count in conditions.items() if count is not None]
    holds += [text for text in (row.device, row.runtime, row.counting and f"{row.counting}'s counting") if text]
    return [row.of or "this model", figures, ", ".join(holds), row.source or entry.source or ""]


def _claim(key: str, value: float) -> str:
    return f"{100 * value:.4g} %" if key in ("top1", "top5", "map", "map50", "speedup") else f"{value:g}"


def _results(edit: Edit) -> dict[str, str]:
    """What each module that an edit addresses becomes."""
    match edit:
        case Narrow():
            narrowed: dict[str, Width | Heads] = {**edit.widths, **edit.heads}
            return {path: _result(item) for path, item in narrowed.items()}
        case Factor():
            return {path: _result(rank) for path, rank in edit.layers.items()}
        case Mask():
            return dict.fromkeys(edit.paths, "zeros stay zero")
        case Drop():
            return dict(edit.paths)
        case _:
            return dict(edit.classes)


def _result(item: Width | Heads | Rank) -> str:
    match item:
        case Width():
            return ", ".join(f"{count} {what}" for what, count in structs.asdict(item).items() if count is not None)
        case Heads():
            return f"{item.num_heads} heads of {item.head_dim}"
        case _:
            return f"rank {item.rank}" + (", kernel in the last factor" if item.spatial == "last" else "")


def _summary(edit: Edit) -> str:
    if isinstance(edit, Narrow):
        counts = {"layer": len(edit.widths), "attention module": len(edit.heads)}
    else:
        counts = {"layer" if isinstance(edit, Factor | Mask) else "module": len(_results(edit))}
    parts = [f"{count} {noun}{'s' if count != 1 else ''}" for noun, count in counts.items() if count]
    return f"{EDITED[edit.edit]}: {', '.join(parts) or 'nothing'}"


def _made(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not recipe:
        return []
    rows = {
        "method": str(recipe.get("method") or ""),
        "budget": f"{_budget(recipe['budget'])} of the base" if recipe.get("budget") else "",
        "options": _settings(recipe.get("options", {})),
        "teachers": ", ".join(recipe.get("teachers", ())),
        "distillation": _settings(recipe.get("distil", {})),
        "data": _dataset(recipe["data"]) if recipe.get("data") else "",
        "schedule": _settings(recipe.get("schedule", {})),
        "augmentation": _settings(recipe.get("augment", {})),
        "seed": str(recipe.get("seed", 0)) if recipe.get("data") else "",
    }
    return [(what, how) for what, how in rows.items() if how]


def _came(came: Mapping[str, Any], entry: Entry) -> list[tuple[str, str]]:
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


def _budget(budget: Mapping[str, float | None]) -> str:
    shares = (("multiply-accumulates", budget.get("macs")), ("parameters", budget.get("params")))
    return " and ".join(f"{_percent(share)} of the {what}" for what, share in shares if share is not None)


def _origin(entry: Entry) -> list[tuple[str, str]]:
    rows = {"licence": entry.license, "base": _dense(entry.base), "source": entry.source}
    if entry.origin is not None:
        commit = f" at {entry.origin.commit}" if entry.origin.commit else ""
        rows["converted from"] = f"{entry.origin.repo}{commit} ({entry.origin.format})"
    rows["note"] = entry.note
    return [(what, text) for what, text in rows.items() if text]


def _dataset(spec: str) -> str:
    # A folder's parents are its owner's business.
    return spec if HUB_ID.fullmatch(spec) else PurePath(spec).name


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list | tuple) else str(value)
