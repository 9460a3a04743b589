"""Accuracy against macs: pruned one-shot, distilled, beside a dense control and a same-size network from scratch.

    python scripts/bench/quality.py [digits_cnn digits_vit pairs_cnn pairs_vit] [--table]

Every cell of the table is cached under build/quality, so an interrupted run goes on where it stopped. `digits`: five
seeds, each with its own dense base. `digit_pairs`: one dense base per net, three seeds of everything else. The control
is the dense base through the same distillation; "from scratch" has the pruned network's structure, random weights, and
the same distillation, so that the start is the only difference. Intervals are 95 % of Student's t over seeds.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t
from tqdm import tqdm

import zoo
from zoo import catalog
from zoo.catalog.entry import Base
from zoo.files import write_json
from zoo.hub.repository import Description
from zoo.structure.base import initialised
from zoo.structure.plan import apply_
from zoo.tasks.classification import evaluation_transform, loader
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluate
from zoo.training.trainer import Schedule

BUDGETS = (0.5, 0.25, 0.12)
CACHE = Path("build/quality")
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


def random_net(name: str, description: Description, seed: int) -> torch.nn.Module:
    """A network of this structure with random weights."""
    net = NETS[name]
    model = apply_(initialised(description.base, seed), description.plan)
    own = {"input_size": (1, net.side, net.side), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
    model.pretrained_cfg = {**model.pretrained_cfg, **own, "interpolation": "bicubic"}
    model.zoo_entry = description
    return model.eval()


def dense_base(name: str, seed: int) -> torch.nn.Module:
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
    whole = [(seed, 1.0, kind) for seed in seeds for kind in ("dense", "control")]
    return whole + [(s, b, kind) for s in seeds for b in BUDGETS for kind in ("one-shot", "distilled", "scratch")]


def cell(name: str, seed: int, budget: float, kind: str) -> dict[str, float]:
    """Top-1, KL to dense and cost of one row; measured once, then read from the cache."""
    path = CACHE / f"{name}-{seed}-{budget:g}-{kind}.json"
    if path.exists():
        return json.loads(path.read_text())
    started = time.monotonic()
    net, dense = NETS[name], dense_base(name, seed)
    model = dense_base(name, seed)
    if budget < 1:
        options = {"round_to": 4 if name == "digits_cnn" else 8}
        generator = torch.Generator().manual_seed(seed)
        images = dataset(net.data, "train", limit=4096 if net.data != "digits" else None)
        chosen = images.select(torch.randperm(len(images), generator=generator)[:512].tolist())
        batches = [x for x, _ in loader(chosen, evaluation_transform(model.pretrained_cfg), 64)]
        model = zoo.compress(model, budget=budget, data=batches, **options)
        if kind == "scratch":
            model = random_net(name, model.zoo_entry, 1000 + seed)
    if kind in ("control", "distilled", "scratch"):
        zoo.distil(model, [dense], net.data, schedule=net.tune, augment=net.augment, seed=seed)
    test = loader(dataset(net.data, "test", limit=net.test), evaluation_transform(model.pretrained_cfg), 250)
    found = evaluate(model, test, against=dense)
    counts = zoo.measure(model)
    found.update(macs=counts.macs, params=counts.params, seconds=time.monotonic() - started)
    write_json(path, found)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(student_t.ppf(0.975, len(x) - 1) * x.std() / len(x) ** 0.5)


def table(name: str) -> list[str]:
    """One network's rows as text, with the two comparisons that matter."""
    net = NETS[name]
    rows = [f"\n{name} ({net.data}, {net.seeds} seeds)"]
    found = {c: cell(name, *c) for c in cells(name)}

    def of(budget: float, kind: str, figure: str = "top1") -> list[float]:
        return [found[seed, budget, kind][figure] for seed in range(net.seeds)]

    rows.append(f"{'macs':>6} {'kind':10} {'top-1 %':>15} {'KL to dense':>18} {'against':>10} {'difference':>15}")
    for budget in (1.0, *BUDGETS):
        for kind in ("dense", "control") if budget == 1 else ("one-shot", "distilled", "scratch"):
            top1, kl = interval([100 * v for v in of(budget, kind)]), interval(of(budget, kind, "kl"))
            share = interval(of(budget, kind, "macs"))[0] / found[0, 1.0, "dense"]["macs"]
            line = f"{share:6.1%} {kind:10} {top1[0]:8.2f} ± {top1[1]:4.2f} {kl[0]:10.4f} ± {kl[1]:.4f}"
            if kind == "distilled":
                for other, values in (("control", of(1.0, "control")), ("scratch", of(budget, "scratch"))):
                    pairs = zip(of(budget, kind), values, strict=True)
                    mean, half = interval([100 * (a - b) for a, b in pairs])
                    line += f" {other:>10} {mean:+7.2f} ± {half:4.2f}"
            rows.append(line)
    return rows


def plot(names: list[str]) -> Path:
    """Top-1 against the share of macs kept."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        net = NETS[name]
        for kind, style in (("one-shot", "o:"), ("distilled", "s-"), ("scratch", "^--")):
            means = [interval([100 * cell(name, s, b, kind)["top1"] for s in range(net.seeds)]) for b in BUDGETS]
            axis.errorbar([100 * b for b in BUDGETS], *zip(*means, strict=True), fmt=style, capsize=3, label=kind)
        control = interval([100 * cell(name, s, 1.0, "control")["top1"] for s in range(net.seeds)])[0]
        axis.axhline(control, color="gray", linewidth=1, label="dense control")
        axis.set(title=name, xlabel="macs kept, %", xscale="log")
        axis.set_xticks([100 * b for b in BUDGETS], [f"{100 * b:g}" for b in BUDGETS])
        axis.minorticks_off()
    axes[0][0].set_ylabel("top-1, %")
    axes[0][0].legend(fontsize=8)
    path = CACHE / "quality.png"
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    """Measure what isn't cached, then print the tables."""
    names = [argument for argument in sys.argv[1:] if argument in NETS] or list(NETS)
    todo = [(name, *c) for name in names for c in cells(name)]
    if "--table" not in sys.argv:
        for name, *c in tqdm(todo, unit="cell"):
            cell(name, *c)
    lines = [line for name in names for line in table(name)]
    seconds = sum(cell(*c)["seconds"] for c in todo)
    print("\n".join(lines), f"\n{seconds / 60:.0f} minutes of work on {torch.get_num_threads()} threads; {plot(names)}")


if __name__ == "__main__":
    main()
