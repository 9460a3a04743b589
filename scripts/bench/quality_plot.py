"""What `quality` found, as text and as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t

Rows = Mapping[tuple[int, float, str], Mapping[str, Any]]
"""(seed, budget, kind) → figures and costs."""

AGAINST = {
    "one-shot": ("uniform", "torch-pruning", "low_rank"),
    "distilled": ("control", "scratch", "tp distilled", "all steps"),
}
STYLES = {
    "one-shot": ("o-", "tab:blue"),
    "calibrated": ("D-", "tab:purple"),
    "uniform": ("v:", "tab:cyan"),
    "low_rank": ("P:", "tab:brown"),
    "torch-pruning": ("x:", "tab:red"),
    "distilled": ("s-", "tab:green"),
    "tp distilled": ("x-", "tab:pink"),
    "scratch": ("^--", "tab:orange"),
    "all steps": ("^-", "tab:olive"),
}
IN_A_ROW = 4  # panels, at most


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval; of a single value that isn't a number."""
    x = torch.tensor(values, dtype=torch.float64)
    deviation = x.std(correction=min(1, len(x) - 1))
    return float(x.mean()), float(student_t.ppf(0.975, len(x) - 1) * deviation / len(x) ** 0.5)


def of(rows: Rows, budget: float, kind: str) -> dict[int, Mapping[str, Any]]:
    """Seed → row."""
    return {seed: row for (seed, at, which), row in rows.items() if (at, which) == (budget, kind)}


def table(name: str, rows: Rows) -> list[str]:
    """One network's rows as text, with the comparisons that matter."""
    head = f"{'macs':>6} {'kind':13} {'seeds':>5} {'top-1 %':>15} {'agreement %':>15} {'KL to dense':>18} {'CPU s':>6}"
    lines = [f"\n{name}", f"{head}   differences in top-1"]
    dense = next((row["macs"] for row in of(rows, 1.0, "dense").values()), math.nan)
    for budget in sorted({budget for _, budget, _ in rows}, reverse=True):
        for kind in ("dense", "control", *STYLES):
            found = of(rows, budget, kind)
            if not found:
                continue
            figures = {key: [row[key] for row in found.values()] for key in next(iter(found.values()))}
            line = f"{interval(figures['macs'])[0] / dense:6.1%} {kind:13} {len(found):5} "
            line += f"{_text([100 * v for v in figures['top1']], 2):>15} "
            line += f"{_text([100 * v for v in figures['agreement']], 2):>15} {_text(figures['kl'], 4):>18} "
            line += f"{interval(figures['cpu_seconds'])[0]:6.0f}  "
            line += f" ({figures['criterion'][0]})" if "criterion" in figures else ""
            for other in AGAINST.get(kind, ()):
                theirs = of(rows, 1.0 if other == "control" else budget, other)
                pairs = [100 * (row["top1"] - theirs[seed]["top1"]) for seed, row in found.items() if seed in theirs]
                line += f" {other} {_text(pairs, 2, '+')}," if pairs else ""
            lines.append(line.rstrip(","))
    return lines


def _text(values: Sequence[float], digits: int, sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def plot(found: Mapping[str, Rows], path: Path) -> Path:
    """Top-1 against the share of macs kept, a panel for each network."""
    import matplotlib.pyplot as plt

    lines = math.ceil(len(found) / IN_A_ROW)
    columns = math.ceil(len(found) / lines)
    size = (3.2 * columns, 2.8 * lines + 1)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, (name, rows) in zip(axes.flat, found.items(), strict=False):
        _panel(axis, name, rows)
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(found) - columns) : len(found)]:
        axis.set_xlabel("macs kept, %")
    for axis in axes[:, 0]:
        axis.set_ylabel("top-1, %")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [label for label in ("dense", "control", *STYLES) if label in handles]
    shown = [handles[label] for label in order]
    figure.legend(shown, order, loc="outside lower center", ncols=max(2, 2 * columns - 1), frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _panel(axis: Any, name: str, rows: Rows) -> None:
    budgets = sorted({budget for _, budget, _ in rows if budget < 1})
    for place, (kind, (style, color)) in enumerate(STYLES.items()):
        at = [budget for budget in budgets if of(rows, budget, kind)]
        points = [interval([100 * row["top1"] for row in of(rows, budget, kind).values()]) for budget in at]
        if points:
            mean, half = zip(*points, strict=True)
            beside = [100 * budget * (1 + 0.002 * (place - 4)) for budget in at]  # error bars don't hide each other
            look = {"fmt": style, "color": color, "capsize": 2, "markersize": 4, "linewidth": 1.2}
            axis.errorbar(beside, mean, [0 if math.isnan(each) else each for each in half], label=kind, **look)
    for kind, style in (("dense", "-"), ("control", "--")):
        whole = [100 * row["top1"] for row in of(rows, 1.0, kind).values()]
        if whole:
            axis.axhline(interval(whole)[0], color="gray", linewidth=1, linestyle=style, label=kind)
    axis.set(title=name, xscale="log", ylim=(0, 102))
    axis.set_xticks([100 * budget for budget in budgets], [f"{100 * budget:g}" for budget in budgets])
    axis.minorticks_off()
    axis.grid(axis="y", alpha=0.3)
