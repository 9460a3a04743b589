"""Accuracy against macs: pruned one-shot, beside two other ways to prune; distilled, beside a control and from scratch.

    scripts/bench/run quality [--quick] [digits_cnn digits_vit pairs_cnn pairs_vit] [--one-shot] [--table]

| kind          | what it is                                                                                       |
|---------------|--------------------------------------------------------------------------------------------------|
| one-shot      | `zoo.compress`                                                                                   |
| uniform       | the same groups, order of units, refit and rounding, but one share for all of them               |
| torch-pruning | Torch-Pruning at one ratio for all layers that lands at the macs of one-shot, by the criterion   |
|               | that is best on training images held out (mean over seeds), of all in `torch_pruning_rows`       |
| distilled     | one-shot, then distilled from its dense base                                                     |
| scratch       | the structure of one-shot, random weights, the same distillation: the start alone differs        |
| control       | the dense base through the same distillation                                                     |

The first three see the same 512 calibration images, and with them each gets its batch norms recalibrated. Torch-Pruning
isn't held to multiples in its widths. `digits`: five seeds, each with its own dense base. `digit_pairs`: one dense base
per net, three seeds of everything else. Intervals are 95 % of Student's t over seeds; differences are paired by seed.

Every cell is cached under build/quality, so an interrupted run goes on where it stopped. What depends on the pruning
carries a hash of its sources in its name, so that a cell of another version is never read; comments don't count.
`--one-shot` measures the rows that train nothing beyond the dense base, `--table` prints what is there.
"""

import ast
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch_pruning_rows
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import zoo
from zoo import catalog
from zoo.catalog.entry import Base, Budget
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune import prune
from zoo.compression.prune.allocation import widths
from zoo.files import write_json
from zoo.structure.base import initialised
from zoo.structure.description import Description
from zoo.structure.plan import apply_
from zoo.tasks.classification.transforms import evaluation_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluate
from zoo.tasks.loader import loader
from zoo.training.schedule import Schedule

BUDGETS = (0.5, 0.25, 0.12)
CACHE = Path("build/quality")
WHOLE = ("dense", "control")
ONE_SHOT = ("one-shot", "uniform", "torch-pruning")
TRAINED = ("distilled", "scratch")
AGAINST = {"one-shot": ("uniform", "torch-pruning"), "distilled": ("control", "scratch")}
CROP = {"scale": [0.6, 1.0], "ratio": [0.75, 1.33], "hflip": 0.0, "color_jitter": 0.0}
PAIRS_CNN = {"layers": [1, 1, 1, 1], "channels": [32, 64, 96, 128], "stem_type": "deep", "stem_width": 16}
PAIRS_VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 6}
MEAN = {"class_token": False, "global_pool": "avg"}


@dataclass(frozen=True)
class Net:
    """One network on one data set: how its dense base is trained, and how everything after."""

    base: Base
    data: str
    side: int
    seeds: int
    dense: Schedule
    tune: Schedule
    augment: dict[str, Any]
    test: int | None = None


def _pairs(architecture: str, args: dict[str, Any], side: int, dense: Schedule, tune: Schedule) -> Net:
    base = Base(f"timm/{architecture}", {**args, "in_chans": 1, "num_classes": 100})
    still = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, "color_jitter": 0.0}
    return Net(base, "digit_pairs", side, 3, dense, tune, still, 5000)


def _steps(steps: int, lr: float) -> Schedule:
    return Schedule(epochs=100, steps=steps, batch_size=128, lr=lr)


def _digits(name: str, side: int) -> Net:
    entry = catalog.info(name)
    assert entry.base is not None
    tune = Schedule(epochs=20, batch_size=64, lr=2e-3)
    return Net(entry.base, "digits", side, 5, Schedule(**entry.recipe.schedule), tune, CROP)


NETS = {
    "digits_cnn": _digits("digits_cnn", 32),
    "digits_vit": _digits("digits_vit", 16),
    "pairs_cnn": _pairs("resnet18", PAIRS_CNN, 64, _steps(800, 3e-3), _steps(200, 1e-2)),
    "pairs_vit": _pairs("vit_tiny_patch16_224", {**PAIRS_VIT, **MEAN}, 32, _steps(2000, 1.5e-3), _steps(100, 1e-3)),
}


def random_net(name: str, description: Description, seed: int) -> nn.Module:
    """A network of this structure with random weights."""
    net = NETS[name]
    model = apply_(initialised(description.base, seed), description.plan)
    own = {"input_size": (1, net.side, net.side), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
    model.pretrained_cfg = {**model.pretrained_cfg, **own, "interpolation": "bicubic"}
    model.zoo_entry = description
    return model.eval()


def dense_base(name: str, seed: int) -> nn.Module:
    """The trained dense network, from the cache where it is."""
    net = NETS[name]
    seed = seed if net.data == "digits" else 0
    folder = CACHE / f"{name}-dense-{seed}"
    if not folder.is_dir():
        model = random_net(name, Description(name, net.base), seed)
        state = CACHE / f"{name}-dense-{seed}.state"
        zoo.distil(model, [], net.data, schedule=net.dense, augment=net.augment, seed=seed, state=state)
        zoo.save(model, folder)
        state.unlink(missing_ok=True)
    return zoo.load(folder)


def cells(name: str) -> list[tuple[int, float, str]]:
    """(seed, budget, kind) of every row that belongs to a network."""
    seeds = range(NETS[name].seeds)
    whole = [(seed, 1.0, kind) for seed in seeds for kind in WHOLE]
    return whole + [(s, b, kind) for s in seeds for b in BUDGETS for kind in (*ONE_SHOT, *TRAINED)]


@cache
def version(kind: str) -> str:
    """A hash of the sources that a kind depends on beside its dense base; empty where it depends on none."""
    if kind in WHOLE:
        return ""
    package = Path(zoo.__file__).parent
    files = [path for path in sorted((package / "compression").rglob("*.py")) if "low_rank" not in path.parts]
    files += [package / "verbs" / "compressing.py", package / "measurement" / "divergence.py"]
    files += [Path(torch_pruning_rows.__file__)] if kind == "torch-pruning" else []
    source = "".join(ast.dump(ast.parse(path.read_text())) for path in files)
    return "-" + hashlib.sha256(source.encode()).hexdigest()[:8]


def cell_path(name: str, seed: int, budget: float, kind: str) -> Path:
    """Where a cell is cached."""
    return CACHE / f"{name}-{seed}-{budget:g}-{kind}{version(kind)}.json"


def uniform(
    analysis: Analysis, damage: Sequence[Mapping[int, float]], budget: Budget, round_to: int, floor: float
) -> list[int]:
    """One share for all groups in place of `allocate`: the narrowest grows first, as long as the macs allow it."""
    groups, most = analysis.groups, budget.macs * sum(cost.count for cost in analysis.macs)
    for residual, lowest in ((False, floor), *((True, floor / 2**halved) for halved in range(8))):
        steps = [
            [group.units] if group.residual and not residual else widths(group.units, round_to, lowest)
            for group in groups
        ]
        kept = [ks[0] for ks in steps]
        if analysis.total(analysis.macs, kept) > most:
            continue
        for _, g, k in sorted((k / groups[g].units, g, k) for g, ks in enumerate(steps) for k in ks[1:]):
            wider = [*kept[:g], k, *kept[g + 1 :]]
            kept = wider if analysis.total(analysis.macs, wider) <= most else kept
        return kept
    raise ValueError(f"the macs can't be cut to {budget.macs:g}")


@cache
def test_images(name: str) -> DataLoader[Any]:
    """The test images, transformed once."""
    net = NETS[name]
    images = dataset(net.data, "test", limit=net.test)
    return DataLoader(list(transformed(images, name)), 250)


@cache
def calibration(name: str, seed: int) -> tuple[list[tuple[Tensor, Tensor]], DataLoader[Any]]:
    """512 training images with their classes in batches, and as many others."""
    net = NETS[name]
    images = dataset(net.data, "train", limit=4096 if net.data != "digits" else None)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    seen, held_out = (list(transformed(images.select(order[at : at + 512]), name)) for at in (0, 512))
    return list(DataLoader(seen, 64)), DataLoader(held_out, 256)


def transformed(images: Any, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as the dense network sees them, and their classes."""
    for x, y in loader(images, evaluation_transform(dense_base(name, 0).pretrained_cfg), 250):
        yield from zip(x, y, strict=True)


def compressed(name: str, seed: int, budget: float, kind: str) -> nn.Module:
    """The pruned network, `uniform` or as `compress` does it."""
    model = dense_base(name, seed)
    batches = [x for x, _ in calibration(name, seed)[0]]
    allocate = uniform if kind == "uniform" else prune.allocate
    with mock.patch.object(prune, "allocate", allocate):
        return zoo.compress(model, budget=budget, data=batches, round_to=4 if name == "digits_cnn" else 8)


@cache
def ratio(name: str, seed: int, budget: float) -> float:
    """Torch-Pruning's ratio that leaves as many macs as `compress` left."""
    dense = dense_base(name, seed)
    share = cell(name, seed, budget, "one-shot")["macs"] / zoo.measure(dense).macs
    return torch_pruning_rows.ratio(dense, dense.pretrained_cfg["input_size"], share)


def by_torch_pruning(name: str, seed: int, budget: float, criterion: str) -> nn.Module:
    """Torch-Pruning's network, its batch norms recalibrated."""
    dense, (labelled, _) = dense_base(name, seed), calibration(name, seed)
    size, share = dense.pretrained_cfg["input_size"], ratio(name, seed, budget)
    torch.manual_seed(seed)  # of the criterion `random`
    model = torch_pruning_rows.narrowed(dense, size, share, False, criterion, labelled)
    recalibrate_(model, [x for x, _ in labelled])
    return model


def recalibrate_(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Measure the running statistics of batch norms anew, as the mean over batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def best_criterion(name: str, budget: float) -> str:
    """Torch-Pruning's criterion of the highest top-1 on training images held out, as a mean over seeds; cached."""
    path = CACHE / f"{name}-{budget:g}-criterion{version('torch-pruning')}.json"
    if not path.exists():
        score: dict[str, float] = {}
        for seed in range(NETS[name].seeds):
            for criterion in torch_pruning_rows.criteria(dense_base(name, seed)):
                found = evaluate(by_torch_pruning(name, seed, budget, criterion), calibration(name, seed)[1])
                score[criterion] = score.get(criterion, 0) + found["top1"] / NETS[name].seeds
        write_json(path, score)
    score = json.loads(path.read_text())
    return max(score, key=score.__getitem__)


def cell(name: str, seed: int, budget: float, kind: str) -> dict[str, Any]:
    """Top-1, KL to dense and cost of one row; measured once, then read from the cache."""
    path = cell_path(name, seed, budget, kind)
    if path.exists():
        return json.loads(path.read_text())
    net, dense = NETS[name], dense_base(name, seed)
    criterion = best_criterion(name, budget) if kind == "torch-pruning" else None
    started = time.monotonic()
    if criterion:
        model = by_torch_pruning(name, seed, budget, criterion)
    else:
        model = dense_base(name, seed) if kind in WHOLE else compressed(name, seed, budget, kind)
    if kind == "scratch":
        model = random_net(name, model.zoo_entry, 1000 + seed)
    if kind in ("control", *TRAINED):
        zoo.distil(model, [dense], net.data, schedule=net.tune, augment=net.augment, seed=seed)
    counts = zoo.measure(model, dense.pretrained_cfg["input_size"])
    found = evaluate(model, test_images(name), against=dense) | {"macs": counts.macs, "params": counts.params}
    write_json(path, found | {"seconds": time.monotonic() - started} | ({"criterion": criterion} if criterion else {}))
    return found


def measured(name: str) -> dict[tuple[int, float, str], dict[str, Any]]:
    """The cells that are there."""
    return {c: cell(name, *c) for c in cells(name) if cell_path(name, *c).exists()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval; of a single value that isn't a number."""
    x = torch.tensor(values, dtype=torch.float64)
    deviation = x.std(correction=min(1, len(x) - 1))
    return float(x.mean()), float(student_t.ppf(0.975, len(x) - 1) * deviation / len(x) ** 0.5)


def table(name: str) -> list[str]:
    """One network's rows as text, with the comparisons that matter."""
    net, found = NETS[name], measured(name)
    lines = [f"\n{name} ({net.data})"]
    lines.append(f"{'macs':>6} {'kind':13} {'seeds':>5} {'top-1 %':>15} {'KL to dense':>18}   differences in top-1")

    def of(budget: float, kind: str) -> dict[int, dict[str, Any]]:
        return {seed: row for (seed, at, which), row in found.items() if (at, which) == (budget, kind)}

    for budget in (1.0, *BUDGETS):
        for kind in WHOLE if budget == 1 else (*ONE_SHOT, *TRAINED):
            rows = of(budget, kind)
            if not rows:
                continue
            top1, kl = ([row[figure] for row in rows.values()] for figure in ("top1", "kl"))
            (mean, half), (nats, half_nats) = interval([100 * v for v in top1]), interval(kl)
            share = interval([row["macs"] / found[seed, 1.0, "dense"]["macs"] for seed, row in rows.items()])[0]
            line = f"{share:6.1%} {kind:13} {len(rows):5} {mean:8.2f} ± {half:4.2f} {nats:10.4f} ± {half_nats:.4f}  "
            line += next((f" ({row['criterion']})" for row in rows.values() if "criterion" in row), "")
            for other in AGAINST.get(kind, ()):
                theirs = of(1.0 if other in WHOLE else budget, other)
                pairs = [100 * (rows[seed]["top1"] - theirs[seed]["top1"]) for seed in rows if seed in theirs]
                if pairs:
                    mean, half = interval(pairs)
                    line += f" {other} {mean:+.2f} ± {half:.2f}"
            lines.append(line)
    return lines


def plot(names: list[str]) -> Path:
    """Top-1 against the share of macs kept."""
    import matplotlib.pyplot as plt

    styles = {
        "one-shot": ("o-", "tab:blue"),
        "uniform": ("v:", "tab:cyan"),
        "torch-pruning": ("x:", "tab:red"),
        "distilled": ("s-", "tab:green"),
        "scratch": ("^--", "tab:orange"),
    }
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.8), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        found = measured(name)
        for place, (kind, (style, color)) in enumerate(styles.items()):
            at = [b for b in BUDGETS if any((b, kind) == c[1:] for c in found)]
            rows = [interval([100 * row["top1"] for c, row in found.items() if c[1:] == (b, kind)]) for b in at]
            if rows:
                beside = 1 + 0.02 * (place - 2)  # error bars that don't hide each other
                axis.errorbar(
                    [100 * b * beside for b in at],
                    *zip(*rows, strict=True),
                    fmt=style,
                    color=color,
                    capsize=2,
                    markersize=5,
                    label=kind,
                )
        dense = [100 * row["top1"] for c, row in found.items() if c[2] == "dense"]
        if dense:
            axis.axhline(interval(dense)[0], color="gray", linewidth=1, label="dense")
        axis.set(title=name, xlabel="macs kept, %", xscale="log", xlim=(10, 60), ylim=(0, 102))
        axis.set_xticks([100 * b for b in BUDGETS], [f"{100 * b:g}" for b in BUDGETS])
        axis.minorticks_off()
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("top-1, %")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, 2 * len(names)), frameon=False
    )
    path = CACHE / "quality.png"
    figure.savefig(path, dpi=120)
    return path


def quick() -> None:
    """One network, one seed, two steps of training, in a folder of its own."""
    global CACHE, BUDGETS
    CACHE, BUDGETS, net = Path("build/quick"), (0.5,), NETS["digits_cnn"]
    short = {"dense": replace(net.dense, steps=2), "tune": replace(net.tune, steps=2)}
    NETS.clear()
    NETS["digits_cnn"] = replace(net, seeds=1, **short)
    shutil.rmtree(CACHE, ignore_errors=True)


def main() -> None:
    """Measure what isn't cached, then print the tables."""
    if "--quick" in sys.argv:
        quick()
    names = [argument for argument in sys.argv[1:] if argument in NETS] or list(NETS)
    wanted = ("dense", *ONE_SHOT) if "--one-shot" in sys.argv else (*WHOLE, *ONE_SHOT, *TRAINED)
    todo = [(name, *c) for name in names for c in cells(name) if c[2] in wanted]
    if "--table" not in sys.argv:
        for name, *c in tqdm(todo, unit="cell"):
            cell(name, *c)
    lines = [line for name in names for line in table(name)]
    seconds = sum(row["seconds"] for name in names for row in measured(name).values())
    print("\n".join(lines), f"\n{seconds / 60:.0f} minutes of work on {torch.get_num_threads()} threads; {plot(names)}")


if __name__ == "__main__":
    main()
