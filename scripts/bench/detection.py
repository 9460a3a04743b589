"""mAP against macs of small YOLOv8s: pruned in one shot, distilled, made of integers, and from scratch.

    scripts/bench/run detection [--quick] [NAME ...] [--data FOLDER] [--seeds N] [--table]

| kind      | what it is                                                                           |
|-----------|--------------------------------------------------------------------------------------|
| dense     | random weights, trained on boxes                                                     |
| one-shot  | `zoo.compress` of it, 512 images                                                     |
| distilled | one-shot, then distilled from dense                                                  |
| scratch   | the structure of one-shot, random weights, the same distillation                     |
| all steps | scratch, with the steps of dense and of the distillation together                    |
| int8      | distilled, made of integers                                                          |

`scenes` are 6,000 generated ones, and 1,000 of other digits to evaluate on; `cells`, pictures of blood cells (BCCD),
come as `--data`. The CPU seconds of a row are of its own step, on one thread where OMP_NUM_THREADS is 1. Below dense
stands the share of the assigned points that each stride has, on the first 512 training images, and last what
Torch-Pruning says of dense. Models and rows lie under build/detection; an interrupted run goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch_pruning_rows
from quality_nets import random_net
from quality_plot import interval
from torch import nn
from tqdm import tqdm

import zoo
from zoo.catalog.entry import Base
from zoo.files import write_json
from zoo.models.detector import OBJECT_DETECTION
from zoo.models.heads import boxes_at, cells, distributions
from zoo.models.settings import settings_of
from zoo.models.targets import input_boxes
from zoo.structure.description import Description
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset
from zoo.training.assignment import assigned
from zoo.training.distillation import Distil
from zoo.training.schedule import Schedule
from zoo.verbs.measuring import report_of

CACHE = Path("build/detection")
KINDS = ("one-shot", "distilled", "scratch", "all steps", "int8")
"""Of each budget, beside dense."""


@dataclass(frozen=True)
class Net:
    """One network on one data set.

    Args:
        args: of `zoo/yolov8n`.
        dense: how it is trained.
        tune: budget → how what it leaves is distilled.
        augment: of all training.
        data: the data set; None where `--data` says it.
        kinds: that are measured.
    """

    args: Mapping[str, Any]
    dense: Schedule
    tune: Mapping[float, Schedule]
    augment: Mapping[str, float]
    data: str | None = None
    kinds: Sequence[str] = KINDS


SCENES = Schedule(epochs=16, batch_size=32, lr=2e-3, clip=10.0, ema=0.998)
CELLS = Schedule(epochs=90, batch_size=16, lr=2e-3, clip=10.0, ema=0.99)
NETS = {
    "scenes": Net(
        {"width": 0.125, "class_width": 32, "reg_max": 4, "num_classes": 10, "img_size": 128},
        SCENES,
        {0.5: replace(SCENES, epochs=4, lr=1e-3, ema=0.99), 0.25: replace(SCENES, epochs=10, ema=0.99)},
        {"mosaic": 0.0, "flip": 0.0, "scale": 0.0, "translate": 0.0, "hue": 0.0},
        "digit_scenes",
    ),
    "cells": Net(
        {"width": 0.125, "reg_max": 8, "num_classes": 3, "img_size": (256, 320)},
        CELLS,
        {0.5: replace(CELLS, epochs=30)},
        {"hue": 0.0, "saturation": 0.3, "value": 0.3, "scale": 0.3},
        kinds=("one-shot", "distilled", "int8"),
    ),
}
HOW = Distil(alpha=0.5)


def stem(name: str, seed: int, budget: float, kind: str) -> Path:
    """What the files of a row begin with."""
    return CACHE / f"{name}-{kind.replace(' ', '-')}-{100 * budget:.0f}-{seed}"


def made(name: str, seed: int, budget: float, kind: str) -> nn.Module:
    """The model of a row, from the cache where it is."""
    folder, net = stem(name, seed, budget, kind), NETS[name]
    if folder.is_dir():
        return zoo.load(folder)
    train = {"augment": net.augment, "seed": seed, "state": folder.with_suffix(".state"), "how": HOW}
    start = time.process_time()
    if kind == "dense":
        description = Description(name, Base("zoo/yolov8n", net.args), task=OBJECT_DETECTION)
        model = zoo.distil(random_net(description, {}, seed), [], net.data, schedule=net.dense, **train)
    elif kind == "one-shot":
        model = zoo.compress(made(name, seed, 1, "dense"), budget=budget, data=net.data, seed=seed, round_to=4)
    elif kind == "int8":
        model = zoo.compress(made(name, seed, budget, "distilled"), method="integer", data=net.data, seed=seed)
    else:
        model, schedule = made(name, seed, budget, "one-shot"), net.tune[budget]
        model = model if kind == "distilled" else random_net(model.zoo_entry, {}, 1000 + seed)
        if kind == "all steps":
            schedule = replace(schedule, epochs=schedule.epochs + net.dense.epochs)
        zoo.distil(model, [made(name, seed, 1, "dense")], net.data, schedule=schedule, **train)
    write_json(folder.with_suffix(".cpu.json"), {"cpu_seconds": time.process_time() - start})
    zoo.save(model, folder, name=folder.name)
    train["state"].unlink(missing_ok=True)
    return model


def row(name: str, seed: int, budget: float, kind: str) -> dict[str, Any]:
    """Figures and costs; measured once, then read from the cache."""
    path, data = stem(name, seed, budget, kind).with_suffix(".json"), NETS[name].data
    if not path.exists():
        model = made(name, seed, budget, kind)
        found = dict(report_of(model, data).measured) | json.loads(path.with_suffix(".cpu.json").read_text())
        write_json(path, found | ({"assigned": shares(model, data)} if kind == "dense" else {}))
    known: dict[str, Any] = json.loads(path.read_text())
    return known


@torch.inference_mode()
def shares(model: nn.Module, data: str) -> list[float]:
    """Of the points that learn an object, the share that each stride has."""
    task, settings = task_of(model), settings_of(model.pretrained_cfg["detector"])
    learn = torch.zeros(len(settings.strides), dtype=torch.long)
    images = dataset(data, "train", limit=512)
    for x, targets in task.loader(images, task.evaluation_transform(model.pretrained_cfg), 32):
        heads = model(x)
        distances, classes = distributions(heads, settings)
        centres, strides = cells(heads, settings)
        objects, labels = input_boxes(targets)
        found = assigned(classes.sigmoid(), boxes_at(distances, centres, strides), centres * strides, labels, objects)
        of = (found.object >= 0).sum(0)
        learn += torch.stack([of[strides.flatten() == stride].sum() for stride in settings.strides])
    return (learn / learn.sum()).tolist()


def torch_pruning(model: nn.Module) -> str:
    """What comes of Torch-Pruning on a detector."""
    try:
        smaller = torch_pruning_rows.narrowed(model, model.pretrained_cfg["input_size"], 0.3)
        smaller(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    except Exception as error:  # whatever another library raises is what is asked for
        return f"{type(error).__name__}: {error}"
    return f"{zoo.measure(smaller).macs / zoo.measure(model).macs:.1%} of the macs"


def rows_of(name: str, seeds: int) -> list[tuple[str, int, float, str]]:
    """The rows of a network, those first that others need, those last that take longest; from scratch the smallest."""
    net = NETS[name]
    dense = [(name, seed, 1.0, "dense") for seed in range(seeds)]
    smallest, alone = min(net.tune), ("scratch", "all steps")
    rest = [
        (name, seed, budget, kind)
        for seed in range(seeds)
        for budget in net.tune
        for kind in net.kinds
        if budget == smallest or kind not in alone
    ]
    return dense + sorted(rest, key=lambda row: row[-1] == "all steps")


def table(name: str, seeds: int) -> list[str]:
    """The rows that are there, as means over seeds with the half width of 95 % intervals."""
    lines = [f"{name:>6} {'kind':10} {'seeds':>5} {'params':>8} {'mAP50-95':>14} {'mAP50':>14} {'CPU s':>6}"]
    known = [(each[2:], path) for each in rows_of(name, seeds) if (path := stem(*each).with_suffix(".json")).exists()]
    for budget, kind in dict.fromkeys(what for what, _ in known):
        found = [json.loads(path.read_text()) for what, path in known if what == (budget, kind)]
        mean = {key: interval([each[key] for each in found]) for key in ("params", "map", "map50", "cpu_seconds")}
        maps = " ".join(f"{mean[key][0]:.3f} ± {mean[key][1]:.3f}".rjust(14) for key in ("map", "map50"))
        costs = f"{mean['params'][0]:8,.0f} {maps} {mean['cpu_seconds'][0]:6.0f}"
        lines.append(f"{budget:6.0%} {kind:10} {len(found):5} {costs}")
        if kind == "dense":
            lines += [f"{'':17} assigned by stride: " + ", ".join(f"{s:.1%}" for s in r["assigned"]) for r in found]
    return lines


def quick() -> None:
    """One network, two steps of training, in a folder of its own."""
    global CACHE
    CACHE, net = Path("build/quick-detection"), NETS["scenes"]
    NETS.clear()
    NETS["scenes"] = replace(net, dense=replace(net.dense, steps=2), tune={0.5: replace(net.tune[0.5], steps=2)})


def main() -> None:
    """Measure what isn't cached, then print the table."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n")[2].strip())
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETS))
    parser.add_argument("--data", help="of `cells`: a folder, or a data set of the Hub, of blood cells (BCCD)")
    parser.add_argument("--seeds", type=int, default=3)
    for option in ("quick", "table"):
        parser.add_argument(f"--{option}", action="store_true")
    how = parser.parse_args()
    if how.data:
        NETS["cells"] = replace(NETS["cells"], data=how.data)
    if how.quick:
        quick()
    names = [name for name in how.names or NETS if NETS[name].data or how.table]
    todo = [each for name in names for each in rows_of(name, 1 if how.quick else how.seeds)]
    for each in tqdm(todo, disable=how.table, unit="row"):
        if not how.table:
            row(*each)
    print("\n".join(line for name in names for line in table(name, how.seeds)))
    if "scenes" in names and stem("scenes", 0, 1, "dense").is_dir():
        print(f"Torch-Pruning: {torch_pruning(made('scenes', 0, 1, 'dense'))}")


if __name__ == "__main__":
    main()
