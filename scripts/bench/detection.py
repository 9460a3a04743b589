"""mAP against macs of a small YOLOv8 on generated scenes: pruned in one shot, distilled, and from scratch.

    scripts/bench/run detection [--quick] [--seeds N] [--table]

| kind      | what it is                                                                           |
|-----------|--------------------------------------------------------------------------------------|
| dense     | 700,918 params, random weights, 16 epochs of 6,000 scenes                            |
| one-shot  | `zoo.compress` of it, 512 images                                                     |
| distilled | one-shot, then distilled from dense                                                  |
| scratch   | the structure of one-shot, random weights, as many steps as distilled, on boxes alone|
| all steps | the same with the steps of dense and distilled together                              |
| int8      | distilled, made of integers                                                          |

All are evaluated on 1,000 scenes of other digits. The CPU seconds of a row are of its own step, on one thread where
OMP_NUM_THREADS is 1. `assigned` is the share of the assigned points that each stride of dense has, on the first 512
training images. Torch-Pruning, where it is installed, is tried on dense and what it says is printed. Models and rows
lie under build/detection; an interrupted run goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
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
DATA = "digit_scenes"
BASE = Base("zoo/yolov8n", {"width": 0.125, "class_width": 32, "reg_max": 4, "num_classes": 10, "img_size": 128})
STILL = {"mosaic": 0.0, "flip": 0.0, "scale": 0.0, "translate": 0.0, "hue": 0.0}
DENSE = Schedule(epochs=16, batch_size=32, lr=2e-3, clip=10.0, ema=0.998)
TUNE = {0.5: replace(DENSE, epochs=4, lr=1e-3, ema=0.99), 0.25: replace(DENSE, epochs=10, lr=2e-3, ema=0.99)}
HOW = Distil(alpha=0.5)
KINDS = ("one-shot", "distilled", "scratch", "all steps", "int8")
"""Of each budget, beside dense."""


def stem(seed: int, budget: float, kind: str) -> Path:
    """What the files of a row begin with."""
    return CACHE / f"{kind.replace(' ', '-')}-{100 * budget:.0f}-{seed}"


def made(seed: int, budget: float, kind: str) -> nn.Module:
    """The model of a row, from the cache where it is."""
    folder = stem(seed, budget, kind)
    if folder.is_dir():
        return zoo.load(folder)
    start, state = time.process_time(), folder.with_suffix(".state")
    if kind == "dense":
        model = random_net(Description("dense", BASE, task=OBJECT_DETECTION), {}, seed)
        zoo.distil(model, [], DATA, schedule=DENSE, augment=STILL, seed=seed, state=state)
    elif kind == "one-shot":
        model = zoo.compress(made(seed, 1, "dense"), budget=budget, data=DATA, seed=seed, round_to=4)
    elif kind == "distilled":
        model, teachers = made(seed, budget, "one-shot"), [made(seed, 1, "dense")]
        zoo.distil(model, teachers, DATA, how=HOW, schedule=TUNE[budget], augment=STILL, seed=seed, state=state)
    elif kind == "int8":
        model = zoo.compress(made(seed, budget, "distilled"), method="integer", data=DATA, seed=seed)
    else:
        like = made(seed, budget, "one-shot").zoo_entry
        model = random_net(like, {}, 1000 + seed)
        more = DENSE.epochs if kind == "all steps" else 0
        schedule = replace(DENSE, epochs=TUNE[budget].epochs + more)
        zoo.distil(model, [], DATA, schedule=schedule, augment=STILL, seed=seed, state=state)
    seconds = time.process_time() - start
    zoo.save(model, folder, name=folder.name)
    write_json(folder.with_suffix(".cpu.json"), {"cpu_seconds": seconds})
    state.unlink(missing_ok=True)
    return model


def row(seed: int, budget: float, kind: str) -> dict[str, Any]:
    """Figures and costs; measured once, then read from the cache."""
    path = stem(seed, budget, kind).with_suffix(".json")
    if not path.exists():
        found = dict(report_of(made(seed, budget, kind), DATA).measured)
        found |= json.loads(path.with_suffix(".cpu.json").read_text())
        found |= {"assigned": shares(made(seed, budget, kind))} if kind == "dense" else {}
        write_json(path, found)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@torch.inference_mode()
def shares(model: nn.Module) -> list[float]:
    """Of the points that learn an object, the share that each stride has."""
    task, settings = task_of(model), settings_of(model.pretrained_cfg["detector"])
    images = dataset(DATA, "train", limit=512)
    learn = torch.zeros(len(settings.strides), dtype=torch.long)
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


def table(seeds: Sequence[int]) -> list[str]:
    """The rows that are there, as means over seeds with the half width of 95 % intervals."""
    lines = [f"{'macs':>6} {'kind':10} {'seeds':>5} {'params':>8} {'mAP50-95':>14} {'mAP50':>14} {'CPU s':>6}"]
    for budget, kind in [(1, "dense"), *((budget, kind) for budget in TUNE for kind in KINDS)]:
        paths = [stem(seed, budget, kind).with_suffix(".json") for seed in seeds]
        rows = [json.loads(path.read_text()) for path in paths if path.exists()]
        if rows:
            mean = {key: interval([each[key] for each in rows]) for key in ("params", "map", "map50", "cpu_seconds")}
            maps = " ".join(f"{mean[key][0]:.3f} ± {mean[key][1]:.3f}".rjust(14) for key in ("map", "map50"))
            lines.append(
                f"{budget:6.0%} {kind:10} {len(rows):5} {mean['params'][0]:8,.0f} {maps} {mean['cpu_seconds'][0]:6.0f}"
            )
            if kind == "dense":
                lines.append(f"assigned by stride: {[[f'{s:.1%}' for s in each['assigned']] for each in rows]}")
    return lines


def main() -> None:
    """Measure what isn't cached, then print the table."""
    global CACHE, DENSE, TUNE
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n")[2].strip())
    parser.add_argument("--seeds", type=int, default=3)
    for option in ("quick", "table"):
        parser.add_argument(f"--{option}", action="store_true")
    how = parser.parse_args()
    if how.quick:
        CACHE, how.seeds = Path("build/quick-detection"), 1
        DENSE, TUNE = replace(DENSE, steps=2), {0.5: replace(TUNE[0.5], steps=2)}
    todo = [(seed, b, kind) for seed in range(how.seeds) for b in TUNE for kind in KINDS]
    for each in tqdm([*((seed, 1, "dense") for seed in range(how.seeds)), *todo], disable=how.table, unit="row"):
        if not how.table:
            row(*each)
    print("\n".join(table(range(how.seeds))))
    print(f"Torch-Pruning: {torch_pruning(made(0, 1, 'dense'))}")


if __name__ == "__main__":
    main()
