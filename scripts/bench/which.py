"""Which compression: every method, and what they make together, at the latency that was measured of it.

scripts/bench/run which [--quick] [--base FOLDER --data DATA] [--smaller FOLDER ...] [--first N] [--steps N] [--seeds 3]

| route            | what it is                                                             |
|------------------|------------------------------------------------------------------------|
| dense            | the base, through the same training: the control                       |
| smaller          | dense networks that are smaller, through the same training             |
| magnitude        | that share of the weights stays, the others are zero                   |
| prune, low_rank  | `zoo.compress` to that share of the macs                               |
| prune + low_rank | the first to the square root of the share, the second to the rest      |
| ... + int8       | the same network once it is trained, made of integers                  |

With `--first` the base and the smaller ones are trained by labels so many steps, before anything is made of them. All
are then distilled from the base by the same images, as many steps, each seed with other calibration images and another
order; without `--steps` nothing is trained. They are evaluated on the whole test split. Then those of the first seed
take turns in onnxruntime, floats and integers alike, on one thread, whose own time is counted; what each route reaches
at a latency is read between the two of its models next to it. Models and figures lie under build/which, and an
interrupted run goes on where it stopped; one that asks for other data, steps or another base is refused.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality_plot import interval
from torch import nn
from tqdm import tqdm

import zoo
from zoo.files import write_json
from zoo.training.distillation import Distil
from zoo.training.schedule import Machine, Schedule
from zoo.verbs.measuring import report_of

CACHE = Path("build/which")
SHARES = (0.7, 0.45, 0.25)
AT = (0.75, 0.5, 0.33, 0.25)  # of the dense latency, at which routes are compared
AUGMENT = {"scale": [0.6, 1.0], "color_jitter": 0.0}
INT8 = " + int8"
MARKS = dict(zip(("dense", "smaller", "magnitude", "prune", "low_rank", "prune + low_rank"), "sdPovX", strict=True))
Make = Callable[[nn.Module, float, dict[str, Any]], nn.Module]


def _prune(model: nn.Module, share: float, how: dict[str, Any]) -> nn.Module:
    return zoo.compress(model, budget=share, **how)


def _low_rank(model: nn.Module, share: float, how: dict[str, Any]) -> nn.Module:
    return zoo.compress(model, budget=share, method="low_rank", **how)


def _both(model: nn.Module, share: float, how: dict[str, Any]) -> nn.Module:
    narrow = _prune(model, math.sqrt(share), how)
    return _low_rank(narrow, share * zoo.measure(model).macs / zoo.measure(narrow).macs, how)


def _magnitude(model: nn.Module, share: float, how: dict[str, Any]) -> nn.Module:
    return zoo.compress(model, method="magnitude", sparsity=1 - share, **how)


ROUTES: Mapping[str, Make] = {
    "magnitude": _magnitude,
    "prune": _prune,
    "low_rank": _low_rank,
    "prune + low_rank": _both,
}


@dataclass(frozen=True)
class Asked:
    """What is compared: a base, networks that are smaller, data, and how all of them are trained."""

    base: str
    data: str
    smaller: tuple[str, ...]
    seeds: int
    first: Schedule | None
    training: Schedule | None
    batch: int


@dataclass(frozen=True)
class Cell:
    """One model: its route, share, seed, and whether it is of integers."""

    route: str
    share: float
    seed: int
    int8: bool = False
    source: str = ""

    def path(self, asked: Asked) -> Path:
        """Where it lies."""
        of = Path(self.source or asked.base).name
        kind = f"{self.route}-{100 * self.share:.0f}-{self.seed}".replace(" + ", "_")
        return CACHE / f"{of}-{kind}{'-int8' if self.int8 else ''}"

    @property
    def name(self) -> str:
        """The route that it is of."""
        return self.route + INT8 * self.int8


def same(asked: Asked) -> None:
    """Check that what lies under build/which was made as is asked now, and keep that.

    Raises:
        SystemExit: it was made of another base, with other data or steps, or two smaller networks have one name.
    """
    names = [Path(each).name for each in asked.smaller]
    if len({*names}) < len(names):
        raise SystemExit(f"--smaller: {', '.join(names)}: names must differ")
    first, steps = (each.steps if each else 0 for each in (asked.first, asked.training))
    now = {"base": asked.base, "data": asked.data, "first": first, "steps": steps}
    path = CACHE / "asked.json"
    if path.exists() and (before := json.loads(path.read_text())) != now:
        raise SystemExit(f"{CACHE} holds models of {before}, asked is {now}: move it away")
    write_json(path, now)


def cells(asked: Asked) -> list[Cell]:
    """All models, floats before the integers that are made of them."""
    whole = [("dense", 1.0, asked.base), *(("smaller", 1.0, each) for each in asked.smaller)]
    cut = [(route, share, asked.base) for route in ROUTES for share in SHARES]
    every = [(*each, seed) for seed in range(asked.seeds) for each in (*whole, *cut)]
    return [Cell(r, share, seed, int8, source) for r, share, source, seed in every for int8 in (False, True)]


def taught(model: nn.Module, teacher: nn.Module, schedule: Schedule, asked: Asked, path: Path, **how: Any) -> None:
    """Train a model, in place; what is interrupted goes on from the state beside its folder."""
    state = path.with_suffix(".state")
    machine = Machine(channels_last=True)
    zoo.distil(model, [teacher], asked.data, schedule=schedule, augment=AUGMENT, machine=machine, state=state, **how)
    state.unlink(missing_ok=True)


def begun(source: str, asked: Asked) -> nn.Module:
    """What models are made of: the network that was named, trained by labels first where that was asked."""
    path = CACHE / f"{Path(source).name}-begun"
    if asked.first and not path.is_dir():
        model = zoo.load(source)
        taught(model, zoo.load(source), asked.first, asked, path, how=Distil(alpha=0))
        zoo.save(model, path, name=path.name)
    return zoo.load(path if asked.first else source)


def made(cell: Cell, asked: Asked) -> nn.Module:
    """The model, from the cache where it is there."""
    path = cell.path(asked)
    if path.is_dir():
        return zoo.load(path)
    how = {"data": asked.data, "seed": cell.seed}
    if cell.int8:
        floats = Cell(cell.route, cell.share, cell.seed, source=cell.source)
        model = zoo.compress(made(floats, asked), method="integer", **how)
    else:
        model = begun(cell.source, asked)
        model = ROUTES[cell.route](model, cell.share, how) if cell.route in ROUTES else model
        if asked.training:
            taught(model, begun(asked.base, asked), asked.training, asked, path, seed=cell.seed)
    zoo.save(model, path, name=path.name)
    return model


def figures(cell: Cell, asked: Asked) -> dict[str, Any]:
    """What was measured of a model on the test split; once, then read from the cache."""
    path = cell.path(asked).with_suffix(".json")
    if not path.exists():
        model = made(cell, asked)
        fast = zoo.load(cell.path(asked), backend="onnxruntime") if cell.int8 else model
        write_json(path, dict(report_of(fast, asked.data).measured))
    known: dict[str, Any] = json.loads(path.read_text())
    return known


def latencies(asked: Asked) -> dict[Cell, float]:
    """Milliseconds of each model of the first seed, taken in turn with all others."""
    first = [cell for cell in cells(asked) if cell.seed == 0]
    base = first[0]
    rows = zoo.bench(
        [str(cell.path(asked)) for cell in first],
        base=str(base.path(asked)),
        backend="onnxruntime",
        batch=asked.batch,
        rounds=30,
        threads=1,
        clock="cpu",
    ).rows
    by_name = {row.name: row.timing.ms for row in rows}
    return {cell: by_name[str(cell.path(asked))] for cell in first}


def curve(name: str, asked: Asked, ms: Mapping[Cell, float]) -> list[tuple[float, float, float, Cell]]:
    """Of a route's models: milliseconds, top-1 in % as mean and half width over seeds, the fastest first."""
    points = []
    for cell, took in ms.items():
        if cell.name == name:
            seeds = [Cell(cell.route, cell.share, seed, cell.int8, cell.source) for seed in range(asked.seeds)]
            points.append((took, *interval([100 * figures(each, asked)["top1"] for each in seeds]), cell))
    return sorted(points, key=lambda point: point[0])


def reached(points: Sequence[tuple[float, float, float, Cell]], ms: float) -> float | None:
    """Top-1 at a latency, read between the two points beside it; of one that is faster still, its own."""
    below = [point for point in points if point[0] <= ms]
    above = [point for point in points if point[0] > ms]
    if not below:
        return None
    if not above:
        return max(point[1] for point in below)
    (x0, y0), (x1, y1) = below[-1][:2], above[0][:2]
    return max(y0 + (y1 - y0) * (ms - x0) / (x1 - x0), *(point[1] for point in below))


def table(asked: Asked, ms: Mapping[Cell, float]) -> list[str]:
    """Every model, then what each route reaches at equal latency."""
    names = list(dict.fromkeys(cell.name for cell in ms))
    curves = {name: curve(name, asked, ms) for name in names}
    dense = next(took for cell, took in ms.items() if cell.name == "dense")
    lines = [f"{'route':26} {'share':>6} {'ms':>8} {'of dense':>9} {'macs':>12} {'top-1 %':>14}"]
    for name, points in curves.items():
        for took, mean, half, cell in reversed(points):
            macs = figures(cell, asked)["macs"]
            around = "" if math.isnan(half) else f" ± {half:.2f}"
            share = f"{cell.share:6.0%}" if cell.route in ROUTES else f"{'':6}"
            lines.append(f"{name:26} {share} {took:8.3f} {took / dense:9.0%} {macs:12,} {f'{mean:.2f}{around}':>14}")
    lines.append("\ntop-1 % at a share of the dense latency, read between models")
    lines.append(f"{'route':26} " + " ".join(f"{share:>7.0%}" for share in AT))
    for name, points in curves.items():
        found = [reached(points, share * dense) for share in AT]
        lines.append(f"{name:26} " + " ".join(f"{'-' if each is None else f'{each:.2f}':>7}" for each in found))
    return lines


def plot(asked: Asked, ms: Mapping[Cell, float], path: Path) -> Path:
    """Top-1 against latency, a line for each route, integers dashed."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    colors = dict(zip(MARKS, plt.get_cmap("tab10").colors, strict=False))
    for name in dict.fromkeys(cell.name for cell in ms):
        route, int8 = name.removesuffix(INT8), name.endswith(INT8)
        took, mean, half, _ = zip(*curve(name, asked, ms), strict=True)
        look = {"marker": MARKS[route], "color": colors[route], "linestyle": "--" if int8 else "-", "capsize": 2}
        errors = [0 if math.isnan(each) else each for each in half]
        axis.errorbar(took, mean, errors, label=name, markerfacecolor="none" if int8 else colors[route], **look)
    axis.set(xscale="log", xlabel=f"milliseconds of one thread, batch {asked.batch}, onnxruntime", ylabel="top-1, %")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(which="minor", labelsize=7)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    return path


def main() -> None:
    """Make and measure what isn't cached, then print the table and draw the plot."""
    global CACHE, SHARES
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n")[2].strip())
    parser.add_argument("--base", default="digits_cnn", help="what zoo.load takes")
    parser.add_argument("--data", default="digits", help="what zoo verify takes")
    parser.add_argument("--smaller", nargs="*", default=[], help="dense networks, as --base")
    parser.add_argument("--first", type=int, default=0, help="steps of 128 images by labels, before all else")
    parser.add_argument("--steps", type=int, default=0, help="of 128 images, that each is distilled for")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="images of one call in the latency run")
    parser.add_argument("--quick", action="store_true")
    how = parser.parse_args()
    if how.quick:
        CACHE, SHARES, how.seeds, how.first, how.steps = Path("build/quick-which"), (0.5,), 1, 1, 2
    first, training = (
        Schedule(epochs=1000, steps=steps, batch_size=128, lr=1e-3) if steps else None
        for steps in (how.first, how.steps)
    )
    asked = Asked(how.base, how.data, tuple(how.smaller), how.seeds, first, training, how.batch)
    same(asked)
    for cell in tqdm(cells(asked), unit="model"):
        figures(cell, asked)
    ms = latencies(asked)
    print("\n".join(table(asked, ms)))
    print(plot(asked, ms, CACHE / "which.png"))


if __name__ == "__main__":
    main()
