"""Pruning after training, measured again: what masks do to seven networks, and narrowing and factoring in their place.

    python -m builders.magnitude_benchmark [--quick] [--side 64] [--batch 1] [--rounds 20] [--data DATA] [NAME ...]

Each network is timed in turn with its own dense self, beside a copy of that. Its weights are random, which take as long
as any; `--data` takes ImageNet's from the Hub, trains the heads of ten classes alone for an epoch, and measures top-1
as well, which is a GPU's work.

Cost: no GPU hours at 64 px without `--data`; some 17 CPU minutes, as measured. Rows lie under
build/magnitude_benchmark, and an interrupted run goes on where it stopped; page and plot go into `model_cards`.

Should reach: the source's params, to the last one.

Source: a benchmark of pruning after training, whose figures stand in `magnitude_benchmark.toml`
"""

import argparse
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import zoo
from zoo.catalog.entry import Base
from zoo.cli.tables import say
from zoo.compression import algorithm
from zoo.files import write_json
from zoo.measurement.latency import processor
from zoo.structure.base import skeleton
from zoo.structure.tensors import tensors_of
from zoo.training.schedule import Schedule
from zoo.verbs.measuring import report_of

OUT, CARDS = Path("build/magnitude_benchmark"), Path(__file__).parents[1] / "model_cards"
SOURCE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
CLASSES = 10
LEFT = 0.49  # of the macs, where 0.7 of a layer's outputs stay and of its inputs
NARROWED, FACTORED = "narrowed to 49 %", "factored to 49 %"
HEADS = Schedule(epochs=1, batch_size=64, lr=1e-3)

WRONG = """## What the source got wrong

- **Masked networks aren't faster.** `torch.nn.utils.prune` multiplies weights by zeros and ones and leaves every shape
  as it was: the same kernels multiply by the zeros. One ratio for all four ways, 5.7 for efficientnet_b4, can't come
  from masks: we infer that the dense network was timed otherwise, with another batch.
- **Its accuracies are those of guessing**, 6 to 16 % of ten classes, before and after: the heads weren't trained.
- **Its params are those of the dense network** in each table, as zeros are stored and counted; `not zero` is what a
  sparse format would store.
- What it calls global structured pruning is `global_unstructured`: single weights, ranked over all layers.

What has fewer numbers to multiply may be faster: where 30 % of each layer's outputs are cut, not masked, some 49 % of
the macs are left, and so they are where layers are factored."""


def _masked(criterion: str, sparsity: float, model: nn.Module, images: Tensor) -> nn.Module:
    return zoo.compress(model, method="magnitude", criterion=criterion, sparsity=sparsity)


def _rough(method: str, model: nn.Module, images: Tensor) -> nn.Module:
    """The structure alone, of which latency is a matter."""
    made: Any = algorithm(method)
    smaller: nn.Module = made.rough(model, images, made.declaration())(LEFT)
    return smaller


WAYS: Mapping[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "dense": lambda model, images: model,
    **{way: partial(_masked, way.split()[0], float(way.split()[1])) for way in SOURCE["ways"][1:]},
    NARROWED: partial(_rough, "prune"),
    FACTORED: partial(_rough, "low_rank"),
}


@lru_cache(1)
def dense(name: str, side: int, data: str | None) -> nn.Module:
    """A network of the source with ten classes: ImageNet's weights and a head trained on the data, or random ones."""
    if data is None:
        sized = next(each for each in SOURCE["network"] if each["name"] == name).get("sized")
        model: Any = zoo.create(Base(f"timm/{name}", {"num_classes": CLASSES, **({"img_size": side} if sized else {})}))
    else:
        model = zoo.load(f"timm/{name}", num_classes=CLASSES)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, side, side)}
    if data is not None:
        model.requires_grad_(False)
        model.get_classifier().requires_grad_(True)
        zoo.distil(model, [], data, schedule=HEADS)
    trained: nn.Module = model
    return trained


@cache
def params_of(name: str) -> int:
    """Of the dense network at its own size."""
    return zoo.measure(skeleton(Base(f"timm/{name}", {"num_classes": CLASSES}))).params


def row(name: str, way: str, how: argparse.Namespace) -> dict[str, Any]:
    """Figures of one network one way; measured once, then read from the disk."""
    told = f"{name}-{way}-{how.side}-{how.batch}-{how.rounds}-{Path(how.data or 'random').name}"
    path = OUT / f"{''.join(c if c.isalnum() else '_' for c in told)}.json"
    if not path.exists():
        whole = dense(name, how.side, how.data)
        images = torch.rand(2, 3, how.side, how.side)
        model = WAYS[way](whole, images)
        counts = zoo.measure(model, images.shape[1:])
        alone = {"threads": 1, "clock": "cpu", "rounds": how.rounds}
        timed = zoo.bench([model], base=whole, batch=how.batch, input=images.shape[1:], **alone).rows[-1]
        zeros = sum(int((held == 0).sum()) for held in tensors_of(model).values() if held.ndim > 1)
        params = counts.params + params_of(name) - zoo.measure(whole, images.shape[1:]).params
        found = {"params": params, "nonzero": params - zeros, "macs": counts.macs, "verdict": timed.verdict}
        ratios = {key: getattr(timed.timing, key) for key in ("ms", "ratio", "ratio_low", "ratio_high")}
        top1 = {"top1": report_of(model, how.data).measured["top1"]} if how.data and way in SOURCE["ways"] else {}
        write_json(path, {**found, **ratios, **top1})
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def page(rows: Mapping[tuple[str, str], Mapping[str, Any]], how: argparse.Namespace) -> str:
    """The page of `model_cards`: what was measured, beside what the source reports, and what differs."""
    lines = [
        "# Pruning after training, measured again\n",
        "![times as fast as the dense network](magnitude_benchmark.png)\n",
        f"Networks of timm with ten classes, images of {how.side} px, batch {how.batch}, {how.rounds} rounds on one "
        f"thread of {processor().rpartition(', ')[0]}, whose own time is counted. A ratio says how many times as fast "
        "as its own dense network one is, with the interval that holds its median; where that covers what a copy of "
        "the dense network shows beside it, there is no difference. Params are of the network at its own size.\n",
        "| network | | params | not zero | macs | ms | ratio | | source: ms, ratio | top-1 % | source |",
        "|:--|:--|--:|--:|--:|--:|--:|:--|--:|--:|--:|",
    ]
    for (name, way), found in rows.items():
        ratio = "" if found["ratio"] is None else _ratio(found)
        theirs, top1 = _reported(name, way), f"{100 * found['top1']:.1f}" if "top1" in found else "-"
        costs = f"{found['params']:,} | {found['nonzero']:,} | {found['macs'] / 1e9:.3f} G | {found['ms']:.3g}"
        lines.append(
            f"| {name} | {way} | {costs} | {ratio} | {found['verdict'] or ''} | {theirs[0]} | {top1} | {theirs[1]} |"
        )
    return "\n".join([*lines, "", WRONG])


def _ratio(found: Mapping[str, Any]) -> str:
    return f"{found['ratio']:.2f}x ({found['ratio_low']:.2f} to {found['ratio_high']:.2f})"


def _reported(name: str, way: str) -> tuple[str, str]:
    """Milliseconds with their ratio to dense, and top-1 in %, as the source has them."""
    if way not in SOURCE["ways"]:
        return "-", "-"
    said, place = next(each for each in SOURCE["network"] if each["name"] == name), SOURCE["ways"].index(way)
    return f"{said['ms'][place]:g}, {said['ms'][0] / said['ms'][place]:.2f}x", f"{said['top1'][place]:g}"


def plot(rows: Mapping[tuple[str, str], Mapping[str, Any]], path: Path) -> None:
    """How many times as fast as its dense network each is, the source's figures hollow."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for name, _ in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(2.1 * len(names) + 1.5, 3.4), sharey=True, layout="constrained")
    ways = [way for way in WAYS if way != "dense"]
    for axis, name in zip([axes] if len(names) == 1 else axes, names, strict=True):
        said = next(each for each in SOURCE["network"] if each["name"] == name)
        for place, way in enumerate(reversed(ways)):
            found = rows[name, way]
            around = [[found["ratio"] - found["ratio_low"]], [found["ratio_high"] - found["ratio"]]]
            axis.errorbar(
                found["ratio"], place, xerr=around, fmt="o", color="tab:blue", capsize=2, label="measured here"
            )
            if way in SOURCE["ways"]:
                told = said["ms"][0] / said["ms"][SOURCE["ways"].index(way)]
                axis.plot(told, place, "D", color="tab:orange", markerfacecolor="none", label="the source's")
        axis.axvline(1, color="gray", linewidth=1)
        axis.set(title=name.removesuffix("_patch4_window7_224").removesuffix("_patch16_224"), xlabel="times as fast")
        axis.set_yticks(range(len(ways)), list(reversed(ways)))
        axis.title.set_fontsize(9)
    handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what isn't there yet, and write page and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the networks; default: all seven")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=1, help="images of one call")
    parser.add_argument("--rounds", type=int, default=20, help="how many turns each has; 15 or more")
    parser.add_argument("--data", help="a data set of ten classes, as `zoo compress` takes it")
    parser.add_argument("--out", type=Path, default=CARDS, help="folder of the page")
    parser.add_argument("--quick", action="store_true", help="one network, two ways, small images, no page")
    how = parser.parse_args(arguments)
    ways = list(WAYS)
    if how.quick:
        how.names, how.side, how.rounds, ways = ["mobilenetv4_conv_large"], 32, 15, ["dense", "ln_structured 0.3"]
    names = [each["name"] for each in SOURCE["network"] if not how.names or each["name"] in how.names]
    todo = [(name, way) for name in names for way in ways]
    rows = {(name, way): row(name, way, how) for name, way in tqdm(todo, unit="row")}
    for (name, way), found in rows.items():
        say(f"{name:30} {way:24} {found['ms']:9.3g} ms  {'' if found['ratio'] is None else _ratio(found)}")
    if not how.quick:
        how.out.mkdir(parents=True, exist_ok=True)
        (how.out / "magnitude_benchmark.md").write_text(page(rows, how) + "\n")
        plot(rows, how.out / "magnitude_benchmark.png")


if __name__ == "__main__":
    main()
