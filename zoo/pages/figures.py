"""The tables of a card: what was measured, beside the dense base, and what the source reports."""

import math
from collections.abc import Mapping
from typing import Any

from zoo.catalog.entry import Entry, Reported
from zoo.catalog.report import COSTS, OBJECTS, Report
from zoo.pages import front_matter, words
from zoo.tasks import TASKS

LABELS = {
    "params": "parameters",
    "nonzero": "of them not zero; all are stored and computed with",
    "macs": "multiply-accumulates",
    "kmapp": "kmapp = 2·macs/(1000·H·W)",
    "weights_bytes": "bytes of the weights",
    "map50": "mAP 50",
    "map75": "mAP 75",
    "map50_voc07": "mAP 50 as VOC 2007 measured it",
    "kl": "KL divergence from the {base}",
    "agreement": "agreement with the {base}",
}
SAME = ("dataset", "split", "images", "sha256")  # of the data of two accuracies that are compared
MOST = 100  # classes of a table
BESIDE = ("agreement", "kl")  # of a base, these are from its own base
SHARES = ("top5", "map50", "map75", "map50_voc07")  # beside the figure that leads
SOURCE_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP 50-95",
    "map50": "mAP 50",
    "params_m": "millions of parameters",
    "latency_ms": "latency in ms",
    "latency_std_ms": "its deviation",
    "speedup": "latency saved",
    "params_size": "MiB of the integer file",
}


def measured(report: Report, base: Report | None, task: str, word: str = "dense base") -> list[list[str]]:
    """Rows of what was measured: figure, value, and where there is a base its value and the difference.

    Args:
        report: of the model.
        base: of its base, if that was measured.
        task: of both.
        word: what the base is called.
    """
    rows, leading = [], front_matter.leading_of(report, task)
    labels = {**LABELS, leading.figure: _label(leading.label, report.data, unit(task))} if leading else LABELS
    for key, value in report.measured.items():
        leads = key == (leading and leading.figure) or key in SHARES
        row = [labels.get(key, key).replace("{base}", word), _value(key, value, leads)]
        if base is not None:
            other = key in BESIDE or (leads and not _same_data(report, base))
            dense = None if other else base.measured.get(key)
            row += ["", ""] if dense is None else [_value(key, dense, leads), _against(key, value, dense, leads)]
        rows.append(row)
    return rows


def by_class(report: Report, base: Report | None) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the figures of each class, of many those that are worst, or farthest below the base.

    Args:
        report: of the model.
        base: of its base; beside it if it was measured on the same images.
    """
    beside = base is not None and bool(base.classes) and _same_data(report, base)
    others = base.classes if base is not None and beside else {}
    keys = [key for key in dict.fromkeys(k for each in report.classes.values() for k in each) if key != OBJECTS]
    named = [f"{SOURCE_NAMES.get(key, key)}, %" for key in keys]
    head = [
        "class",
        OBJECTS,
        *(cell for name in named for cell in ((name, "base", "against it") if beside else (name,))),
    ]
    rows, worst = [], []
    for name, own in report.classes.items():
        row, dense = [name, f"{own.get(OBJECTS, 0):,}"], others.get(name, {})
        for key in keys:
            both = key in own and key in dense
            row.append(f"{100 * own[key]:.2f}" if key in own else "-")
            row += [f"{100 * dense[key]:.2f}" if key in dense else "-"] if beside else []
            row += [f"{100 * (own[key] - dense[key]):+.2f}" if both else "-"] if beside else []
        worst.append(own.get(keys[0], math.inf) - dense.get(keys[0], 0.0) if keys else 0.0)
        rows.append(row)
    return head, [rows[i] for i in sorted(sorted(range(len(rows)), key=lambda i: worst[i])[:MOST])]


def _same_data(report: Report, base: Report) -> bool:
    return all(report.data.get(key) == base.data.get(key) for key in SAME)


def unit(task: str) -> str:
    """What models of a task are given, in the plural."""
    return TASKS[task].unit if task in TASKS else "images"


def outputs(task: str) -> str:
    """What models of a task return."""
    return TASKS[task].outputs if task in TASKS else "outputs"


def _label(label: str, data: Mapping[str, Any], unit: str) -> str:
    if not data.get("dataset"):
        return label
    where = ", ".join(part for part in (words.dataset_name(data["dataset"]), data.get("split")) if part)
    return f"{label} on {data['images']:,} {unit} ({where})" if "images" in data else f"{label} ({where})"


def _value(key: str, value: float, leads: bool) -> str:
    if key in ("params", "nonzero", "macs", "weights_bytes"):
        return f"{words.short_count(value)} ({value:,})" if value >= 1000 else f"{value:,}"
    if leads or key == "agreement":
        return f"{100 * value:.2f} %"
    return f"{value:.4g} nats" if key == "kl" else str(value)


def _against(key: str, value: float, dense: float, leads: bool) -> str:
    if leads:
        return f"{100 * (value - dense):+.2f} points"
    return words.percent(value / dense) if key in COSTS and dense else ""


def preparation(report: Report, pretrained_cfg: Mapping[str, Any]) -> str:
    """How images were prepared: as the report says, and where it doesn't, timm's keys."""
    settings = {"input": pretrained_cfg.get("input_size"), **pretrained_cfg, **report.data}
    parts = ["x".join(str(size) for size in settings["input"])] if settings["input"] else []
    if settings.get("interpolation"):
        parts.append(str(settings["interpolation"]))
    if settings.get("vocabulary"):
        parts.append(f"words in lower case as numbers in a vocabulary of {len(settings['vocabulary']):,}")
    names = {"crop_pct": "crop", "crop_mode": "crop mode", "mean": "mean", "std": "std"}
    parts += [f"{name} {words.text(settings[key])}" for key, name in names.items() if settings.get(key) is not None]
    return ", ".join(parts)


def conditions(report: Report) -> str:
    """What it was measured with and on."""
    used = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    return " on ".join(part for part in (used, report.hardware) if part)


def reported(row: Reported, entry: Entry) -> list[str]:
    """A row of what the source reports: of which model, figures, and conditions, with its source if it has its own."""
    figures = ", ".join(f"{SOURCE_NAMES.get(key, key)} {_claim(key, value)}" for key, value in row.figures.items())
    conditions = {"px": row.input, "images": row.images, "in a batch": row.batch}
    holds = [f"{count:,} {what}" for what, count in conditions.items() if count is not None]
    holds += [text for text in (row.device, row.runtime, row.counting and f"{row.counting}'s counting") if text]
    holds += [f"from {row.source}"] if row.source not in (None, entry.source) else []
    return [row.of or "this model", figures, ", ".join(holds)]


def _claim(key: str, value: float) -> str:
    return f"{100 * value:.4g} %" if key in ("top1", "top5", "map", "map50", "speedup") else f"{value:g}"
