"""Our low-rank method beside ptdeco's falor: time on deit3_small, divergence and accuracy on digits, at equal macs.

    scripts/bench/run low_rank [--quick] [speed digits_vit digits_convnext pairs_resnet ...] [--table]

Every cell is cached under build/low_rank, so an interrupted run goes on where it stopped; what a change of ours makes
stale must be deleted. Falor runs first, with the thresholds that its models were published with and with tighter ones;
ours gets the macs at which falor ended. Both see the same images in the same batches of 8, falor two batches
for a layer's covariance and two for each rank that it tries, all of them in turn. Convolutions with a stride are left
alone by both: falor would lose the stride. Falor builds a rank one below the one it accepted; macs are counted on what
it built. Ours looks at all 256 images at once, of which it holds 64 back. Given as many, at sixteen times the cost,
falor's divergence about halves.

Time is the CPU time of the process. Intervals are 95 % of Student's t over
seeds of the calibration images.
"""

import copy
import itertools
import json
import shutil
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import quality_nets as nets
import timm
import torch
from ptdeco import falor
from quality_plot import interval
from torch import Tensor, nn
from tqdm import tqdm

import zoo
from zoo.catalog.entry import Base, Budget
from zoo.compression.low_rank.low_rank import LowRank, low_rank
from zoo.files import write_json
from zoo.measurement.macs import measure
from zoo.tasks.classification.transforms import evaluation_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluate
from zoo.tasks.loader import loader
from zoo.training.schedule import Schedule

CACHE = Path("build/low_rank")
BATCH, STEPS, IMAGES = 8, 2, 256
THRESHOLDS = {"tight": (0.01, 0.01), "published": (0.045, 0.01)}  # of nsr and kl at the model's output, for each layer
CONVNEXT = {"depths": [1, 1, 3, 1], "dims": [24, 48, 96, 192], "patch_size": 2, "in_chans": 1, "num_classes": 10}
RESNET = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 96], "stem_type": "deep", "stem_width": 16}
VISFORMER = {"img_size": 64, "embed_dim": 96, "depth": [2, 2, 2], "num_heads": 3}
SEEDS = {"digits_vit": 5, "digits_convnext": 5, "pairs_resnet": 3, "pairs_visformer": 3}
DATA = {name: name.partition("_")[0].replace("pairs", "digit_pairs") for name in SEEDS}
TRAINED = {"augment": nets.STILL, "data": "digit_pairs", "side": 64}
nets.NETS["digits_convnext"] = nets.Net(
    5, augment=nets.CROP, data="digits", base=Base("timm/convnext_atto", CONVNEXT), side=32, own=True,
    dense=Schedule(epochs=30, batch_size=64, lr=2e-3),
)  # fmt: skip
nets.NETS["pairs_resnet"] = nets.Net(  # bottlenecks: falor decomposes the 1 x 1 convolutions, ours the 3 x 3 too
    3, base=Base("timm/resnet50", {**RESNET, "in_chans": 1, "num_classes": 100}), **TRAINED,
    dense=Schedule(epochs=100, steps=800, batch_size=128, lr=3e-3),
)  # fmt: skip
nets.NETS["pairs_visformer"] = nets.Net(
    3, base=Base("timm/visformer_tiny", {**VISFORMER, "in_chans": 1, "num_classes": 100}), **TRAINED,
    dense=Schedule(epochs=100, steps=1400, batch_size=128, lr=3e-3),
)  # fmt: skip


@cache
def dense(name: str) -> nn.Module:
    """The trained network, from the cache where it is."""
    return zoo.load(name) if name == "digits_vit" else nets.dense_base(name, 0)


def cells(name: str) -> list[tuple[str, int, str]]:
    """(method, seed, thresholds) of every row of a network; falor's come first, as they set the budgets."""
    thresholds = THRESHOLDS if DATA[name] == "digits" else ("published",)
    return [(m, s, t) for m in ("falor", "low_rank") for s in range(SEEDS[name]) for t in thresholds]


def strided(model: nn.Module) -> list[str]:
    """Paths of the convolutions with a stride."""
    return [path for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]


def by_falor(model: nn.Module, batches: list[Tensor], thresholds: str) -> nn.Module:
    """A copy of the model, decomposed by ptdeco."""
    found = copy.deepcopy(model)
    nsr, kl = THRESHOLDS[thresholds]
    falor.decompose_in_place(
        module=found, device=torch.device("cpu"), data_iterator=itertools.cycle(batches), use_float64=False,
        use_mean=False, use_damping=True, blacklisted_module_names=strided(model), proportion_threshold=10.0,
        nsr_final_threshold=nsr, kl_final_threshold=kl, num_data_steps=STEPS, num_metric_steps=STEPS,
    )  # fmt: skip
    return found


def by_low_rank(model: nn.Module, batches: list[Tensor], share: float, round_to: int) -> nn.Module:
    """A copy of the model, factored by ours."""
    how = LowRank(round_to=round_to, exclude=tuple(strided(model)))
    edit, tensors = low_rank(model, batches, Budget(share), how)
    found = copy.deepcopy(model)
    edit.apply_(found)
    held = {**dict(found.named_parameters()), **dict(found.named_buffers())}
    with torch.no_grad():
        for path, tensor in tensors.items():
            held[path].copy_(tensor)
    return found


def timed(path: Path, model: nn.Module, make: Any) -> tuple[nn.Module, dict[str, float]]:
    """What `make` returns, and its cost."""
    started, wall = time.process_time(), time.monotonic()
    found = make()
    seconds, wall = time.process_time() - started, time.monotonic() - wall
    counts, threads = measure(found), torch.get_num_threads()
    share = counts.macs / measure(model).macs
    return found, {
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "threads": threads,
        "macs": counts.macs,
        "share": share,
    }


def cell(name: str, method: str, seed: int, thresholds: str) -> dict[str, float]:
    """One row of a network; measured once, then read from the cache."""
    path = CACHE / f"{name}-{method}-{seed}-{thresholds}.json"
    if path.exists():
        return json.loads(path.read_text())
    model = dense(name)
    images = dataset(DATA[name], "train", limit=4096 if DATA[name] == "digit_pairs" else None)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES].tolist()
    transform = evaluation_transform(model.pretrained_cfg)
    batches = [x for x, _ in loader(images.select(order), transform, BATCH)]
    if method == "falor":
        made, row = timed(path, model, lambda: by_falor(model, batches, thresholds))
    else:
        share = cell(name, "falor", seed, thresholds)["share"]
        made, row = timed(path, model, lambda: by_low_rank(model, batches, share, round_to=1))
    test = loader(dataset(DATA[name], "test", limit=2000), transform, 250)
    row |= evaluate(made, test, against=model)
    write_json(path, row)
    return row


def table(name: str) -> list[str]:
    """One network's rows as text: ours beside falor at equal macs."""
    test = loader(dataset(DATA[name], "test", limit=2000), evaluation_transform(dense(name).pretrained_cfg), 250)
    lines = [f"\n{name} ({SEEDS[name]} calibration seeds, dense top-1 {evaluate(dense(name), test)['top1']:.1%})"]
    lines.append(
        f"{'falor at':10} {'method':9} {'macs':>6} {'top-1 %':>15} {'KL to dense':>19} {'CPU s':>7} {'KL ratio':>16}"
    )
    for thresholds in dict.fromkeys(t for _, _, t in cells(name)):
        rows = {m: [cell(name, m, s, thresholds) for s in range(SEEDS[name])] for m in ("falor", "low_rank")}
        for method, found in rows.items():
            of = {key: [row[key] for row in found] for key in ("top1", "kl", "share", "cpu_seconds")}
            top1, kl = interval([100 * v for v in of["top1"]]), interval(of["kl"])
            share, seconds = interval(of["share"])[0], interval(of["cpu_seconds"])[0]
            line = (
                f"{thresholds:10} {method:9} {share:6.1%} {top1[0]:8.2f} ± {top1[1]:4.2f} {kl[0]:10.4f} ± {kl[1]:.4f}"
            )
            line += f" {seconds:7.2f}"
            if method == "low_rank":
                pairs = zip(of["kl"], rows["falor"], strict=True)
                line += "{:9.3f} ± {:.3f}".format(*interval([kl / other["kl"] for kl, other in pairs]))
            lines.append(line)
    return lines


def speed(method: str) -> dict[str, float]:
    """Cost of decomposing deit3_small at 224 px with random weights, on four batches of noise."""
    path = CACHE / f"deit3_small-{method}.json"
    if path.exists():
        return json.loads(path.read_text())
    torch.manual_seed(0)
    model = timm.create_model("deit3_small_patch16_224", init_values=1.0).eval()  # 1e-6 would switch the blocks off
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(BATCH, 3, 224, 224, generator=generator) for _ in range(2 * STEPS)]
    with torch.no_grad():
        model(batches[0])
        started = time.process_time()
        for batch in batches:
            model(batch)
        forward = (time.process_time() - started) / len(batches)
    if method == "falor":
        _, row = timed(path, model, lambda: by_falor(model, batches, "published"))
    else:
        share = speed("falor")["macs"] / measure(model).macs
        _, row = timed(path, model, lambda: by_low_rank(model, batches, share, round_to=8))
    row["forward_seconds"] = forward
    write_json(path, row)
    return row


def speed_table() -> list[str]:
    """Both methods' CPU time, in seconds and in dense forward passes of one batch."""
    lines = ["\ndeit3_small_patch16_224, random weights, 4 batches of 8"]
    lines.append(f"{'method':9} {'CPU s':>8} {'forwards':>9} {'a batch':>8} {'macs':>12} {'threads':>8}")
    rows = {method: speed(method) for method in ("falor", "low_rank")}
    for method, row in rows.items():
        forwards = row["cpu_seconds"] / row["forward_seconds"]
        line = f"{method:9} {row['cpu_seconds']:8.1f} {forwards:9.1f} {forwards / (2 * STEPS):8.1f}"
        lines.append(f"{line} {row['macs']:12.0f} {row['threads']:8}")
    ratio = rows["falor"]["cpu_seconds"] / rows["low_rank"]["cpu_seconds"]
    return [*lines, f"ratio of CPU time {ratio:.1f}"]


def quick() -> None:
    """One network, one seed, few images, in a folder of its own."""
    global CACHE, IMAGES, SEEDS
    CACHE, IMAGES, SEEDS = Path("build/quick"), 32, {"digits_vit": 1}
    shutil.rmtree(CACHE, ignore_errors=True)


def main() -> None:
    """Measure what isn't cached, then print the tables."""
    if "--quick" in sys.argv:
        quick()
    asked = [argument for argument in sys.argv[1:] if not argument.startswith("-")] or list(SEEDS) + ["speed"] * (
        "--quick" not in sys.argv
    )
    names = [name for name in asked if name in SEEDS]
    if "--table" not in sys.argv:
        for todo in tqdm([(name, *c) for name in names for c in cells(name)], unit="cell"):
            cell(*todo)
    lines = speed_table() if "speed" in asked else []
    print("\n".join([*lines, *(line for name in names for line in table(name))]))


if __name__ == "__main__":
    main()
