"""Accuracy against macs: compressed one-shot, beside other ways to prune; distilled, beside a control and from scratch.

    scripts/bench/run quality [--quick] [NAME ...] [--base FOLDER --data DATA] [--one-shot] [--all-steps] [--table]

| kind          | what it is                                                                                       |
|---------------|--------------------------------------------------------------------------------------------------|
| one-shot      | `zoo.compress`                                                                                   |
| calibrated    | the same with `calibrate_steps=200`                                                              |
| uniform       | the same groups, order of units, refit and rounding, but one share for all, as in `uniform_share`|
| torch-pruning | Torch-Pruning at the ratio that lands nearest to the budget, by what is best on training images  |
|               | held out, of all in `torch_pruning_rows`                                       |
| low_rank      | `zoo.compress(method="low_rank")`                                                                |
| distilled     | one-shot, then distilled from its dense base                                                     |
| tp distilled  | torch-pruning, then the same distillation                                                        |
| scratch       | the structure of one-shot, random weights, the same distillation: the start alone differs        |
| control       | the dense base through the same distillation                                                     |
| all steps     | scratch, but distilled as long as such networks are trained (`--all-steps`: takes days)          |

The rows that train nothing see the same calibration images, of which each seed draws others; Torch-Pruning gets its
batch norms recalibrated with them, and isn't held to multiples in its widths. Intervals are 95 % of Student's t over
seeds; differences are paired by seed. Of MobileNetV2's 250 photographs each seed draws 200, so that any two share most
of theirs: its intervals are too narrow for other photographs.

Real networks are `mobilenetv2`, `cifar_resnet20`, `cifar_resnet56` and `fashion_resnet10t` (timm's resnet10t, 28 px):
each is measured with a base, a folder or whatever else `zoo.load` takes, and data, a folder or an id of the Hub, of
which train calibrates and validation is evaluated on. Of MobileNetV2 nothing is trained. The others are trained here
first: `digits_cnn` and `digits_vit`, five seeds, each with a dense base of its own, and on pairs of digits `pairs_cnn`
and `pairs_vit`, one dense base, three seeds of everything else.

Every cell is cached under build/quality, so an interrupted run goes on where it stopped. Its name carries a hash of its
network's row here and of the sources of its method, so that a cell of another version is never read; comments don't
count.
`--one-shot` measures the rows that train nothing beyond the dense base, `--table` prints what is there.
"""

import argparse
import ast
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import quality_nets as nets
import torch
import torch_pruning_rows
import uniform_share
from quality_nets import NETS, calibration, dense_base, images, random_net
from quality_plot import plot, table
from torch import Tensor, nn
from tqdm import tqdm

import zoo
from zoo.compression.prune import prune
from zoo.files import write_json
from zoo.measurement.divergence import divergence

NEAR = 0.05  # of its budget, within which Torch-Pruning must land
WHOLE = ("dense", "control")
ONE_SHOT = ("one-shot", "uniform", "torch-pruning", "low_rank", "calibrated")
TRAINED = {
    "control": "dense",
    "distilled": "one-shot",
    "scratch": "random",
    "tp distilled": "torch-pruning",
    "all steps": "random",
}
"""What is distilled → what it starts from."""
Cell = tuple[int, float, str]


def cells(name: str, kinds: Sequence[str]) -> list[Cell]:
    """(seed, budget, kind) of every row of a network: those first that train nothing."""
    net = NETS[name]
    whole = [(seed, 1.0, "dense") for seed in range(net.seeds if net.own else 1)]
    short = [(seed, b, kind) for seed in range(net.seeds) for b in net.budgets for kind in ONE_SHOT]
    trained = [
        (seed, b, kind)
        for seed in range(net.seeds if net.tune else 0)
        for kind in TRAINED
        for b in ((1.0,) if kind in WHOLE else net.budgets)
    ]
    return [each for each in whole + short + trained if each[2] in kinds]


@cache
def version(name: str, kind: str) -> str:
    """A hash of what a cell depends on: the network's row, and the sources of what is done to it."""
    net = NETS[name]
    row = net if net.dense else replace(net, base=None, data=None)  # which `check_given` looks at
    package, here = Path(zoo.__file__).parent, Path(__file__).parent
    other = "prune" if kind == "low_rank" else "low_rank"
    ours = [path for path in sorted((package / "compression").rglob("*.py")) if other not in path.parts]
    files = [*ours, package / "verbs" / "compressing.py"] if kind not in WHOLE else []
    if kind == "uniform":
        files.append(here / "uniform_share.py")
    if kind in ("torch-pruning", "tp distilled"):
        files = [here / "torch_pruning_rows.py"]
    if kind in TRAINED or kind == "calibrated":
        files += sorted((package / "training").glob("*.py"))
    files += sorted((package / "measurement").glob("*.py"))
    source = repr(row) + "".join(ast.dump(ast.parse(path.read_text())) for path in files)
    return "-" + hashlib.sha256(source.encode()).hexdigest()[:8]


def cell_path(name: str, seed: int, budget: float, kind: str) -> Path:
    """Where a cell is cached."""
    return nets.CACHE / f"{name}-{seed}-{budget:g}-{kind.replace(' ', '-')}{version(name, kind)}.json"


def compressed(name: str, seed: int, budget: float, **how: Any) -> nn.Module:
    """What `compress` makes of the dense base."""
    batches = [x for x, _ in calibration(name, seed)[0]]
    return zoo.compress(dense_base(name, seed), budget=budget, data=batches, round_to=NETS[name].round_to, **how)


def uniform(name: str, seed: int, budget: float) -> nn.Module:
    """The same with one share for all groups."""
    with mock.patch.object(prune, "choose", uniform_share.choose):
        return compressed(name, seed, budget)


def by_torch_pruning(name: str, seed: int, budget: float, criterion: str = "") -> nn.Module:
    """Torch-Pruning's network, its batch norms recalibrated; the criterion is the best one where none is named."""
    dense, slopes = for_torch_pruning(name, seed)
    criterion = criterion or best_criterion(name, budget)
    by = criterion if criterion.startswith(torch_pruning_rows.GLOBAL) else "L2"  # else widths follow from the ratio
    torch.manual_seed(seed)  # of the criterion `random`
    model = torch_pruning_rows.narrowed(
        dense, dense.pretrained_cfg["input_size"], ratio(name, seed, budget, by), False, criterion, slopes
    )
    torch_pruning_rows.recalibrate_(model, [x for x, _ in calibration(name, seed)[0]])
    return model


@cache
def ratio(name: str, seed: int, budget: float, criterion: str) -> float:
    """Torch-Pruning's ratio that lands nearest to a budget."""
    dense, slopes = for_torch_pruning(name, seed)
    size = dense.pretrained_cfg["input_size"]
    return torch_pruning_rows.ratio(dense, size, budget, criterion=criterion, slopes=slopes)


@cache
def for_torch_pruning(name: str, seed: int) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The dense base with batch norms that can be recalibrated, and its gradients."""
    labelled = calibration(name, seed)[0]
    dense = torch_pruning_rows.unfolded(dense_base(name, seed), [x for x, _ in labelled])
    return dense, torch_pruning_rows.gradients(dense, labelled)


def best_criterion(name: str, budget: float) -> str:
    """Torch-Pruning's criterion of the highest top-1 on training images held out, as a mean over dense bases; cached.

    Of several it is the one nearest to the dense model. What ranks globally may jump past a budget: it is left out.
    """
    path = nets.CACHE / f"{name}-{budget:g}-criterion{version(name, 'torch-pruning')}.json"
    if not path.exists():
        score: dict[str, list[float]] = {}
        for seed in range(NETS[name].seeds if NETS[name].own else 1):
            dense, held_out = dense_base(name, seed), calibration(name, seed)[1]
            wanted, macs = outputs(dense, held_out), budget * zoo.measure(dense).macs
            for criterion in torch_pruning_rows.criteria(dense):
                model = by_torch_pruning(name, seed, budget, criterion)
                found, before = figures(model, held_out, wanted), score.get(criterion, [0.0, 0.0])
                missed = abs(zoo.measure(model).macs / macs - 1) > NEAR
                score[criterion] = [before[0] + (-1 if missed else found["top1"]), before[1] - found["kl"]]
        write_json(path, score)
    score = json.loads(path.read_text())
    return max(score, key=score.__getitem__)


def scratch(name: str, seed: int, budget: float) -> nn.Module:
    """The structure of one-shot with random weights."""
    like = compressed(name, seed, budget)
    return random_net(like.zoo_entry, dense_base(name, seed).pretrained_cfg, 1000 + seed)


START: Mapping[str, Callable[[str, int, float], nn.Module]] = {
    "dense": lambda name, seed, budget: dense_base(name, seed),
    "one-shot": compressed,
    "calibrated": lambda *where: compressed(*where, calibrate_steps=200),
    "uniform": uniform,
    "torch-pruning": by_torch_pruning,
    "low_rank": lambda *where: compressed(*where, method="low_rank"),
    "random": scratch,
}


def cell(name: str, seed: int, budget: float, kind: str) -> dict[str, Any]:
    """Figures and costs of one row; measured once, then read from the cache."""
    path = cell_path(name, seed, budget, kind)
    if path.exists():
        return json.loads(path.read_text())
    net, dense, start = NETS[name], dense_base(name, seed), TRAINED.get(kind, kind)
    row = {"criterion": best_criterion(name, budget)} if start == "torch-pruning" else {}
    calibration(name, seed)
    started = time.process_time()
    model = START[start](name, seed, budget)
    if kind in TRAINED:
        schedule, state = net.whole if kind == "all steps" else net.tune, path.with_suffix(".state")
        zoo.distil(model, [dense], net.data, schedule=schedule, augment=net.augment, seed=seed, state=state)
        state.unlink(missing_ok=True)
    row["cpu_seconds"] = time.process_time() - started
    counts = zoo.measure(model, dense.pretrained_cfg["input_size"])
    found = figures(model, images(name, "test"), expected(name, seed if net.own else 0))
    row |= found | {"macs": counts.macs, "params": counts.params}
    write_json(path, row)
    return row


def outputs(model: nn.Module, batches: Any) -> Tensor:
    """What a model puts out for images."""
    with torch.inference_mode():
        return torch.cat([model(x) for x, _ in batches]).double()


@lru_cache(1)
def expected(name: str, seed: int) -> Tensor:
    """What the dense model puts out for the test images."""
    return outputs(dense_base(name, seed), images(name, "test"))


def figures(model: nn.Module, batches: Any, dense: Tensor) -> dict[str, float]:
    """Of images and their classes: top-1, and agreement with what the dense model puts out and divergence from it."""
    ours, classes = outputs(model, batches), torch.cat([y for _, y in batches])
    chosen, kl = ours.argmax(1), divergence(ours, dense)
    parts = {"top1": chosen == classes, "agreement": chosen == dense.argmax(1), "kl": kl}
    return {key: part.double().mean().item() for key, part in parts.items()}


def measured(name: str) -> dict[Cell, dict[str, Any]]:
    """The cells that are there."""
    known = cells(name, ("dense", *ONE_SHOT, *TRAINED))
    return {c: cell(name, *c) for c in known if cell_path(name, *c).exists()}


def quick() -> None:
    """One network, one seed, two steps of training, in a folder of its own."""
    net, nets.CACHE = NETS["digits_cnn"], Path("build/quick")
    short = {each: replace(getattr(net, each), steps=2) for each in ("dense", "tune")}
    NETS.clear()
    NETS["digits_cnn"] = replace(net, seeds=1, budgets=(0.5,), images=64, **short)
    shutil.rmtree(nets.CACHE, ignore_errors=True)


def asked() -> argparse.Namespace:
    """What the command line asks for; `--base` and `--data` become those of the network that it names."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n")[2].strip())
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETS))
    for option in ("base", "data"):
        parser.add_argument(f"--{option}")
    for option in ("quick", "one-shot", "all-steps", "table"):
        parser.add_argument(f"--{option}", action="store_true")
    found = parser.parse_args()
    if unknown := [name for name in found.names if name not in NETS]:
        parser.error(f"no network {unknown[0]!r}, known are {', '.join(NETS)}")
    given = {key: value for key in ("base", "data") if (value := getattr(found, key))}
    if given and len(found.names) != 1:
        parser.error("--base and --data are of one network: name it")
    for name in found.names if given else ():
        NETS[name] = replace(NETS[name], **given)
        nets.check_given(name)
    return found


def main() -> None:
    """Measure what isn't cached, then print the tables."""
    how = asked()
    if how.quick:
        quick()
    names = [name for name in how.names or NETS if name in NETS]
    kinds = [*("dense", *ONE_SHOT), *(() if how.one_shot else TRAINED)]
    kinds = [kind for kind in kinds if kind != "all steps" or how.all_steps]
    if not how.table:
        here = [name for name in names if how.names or NETS[name].data]
        for todo in tqdm([(name, *c) for name in here for c in cells(name, kinds)], unit="cell"):
            cell(*todo)
    found = {name: rows for name in names if (rows := measured(name))}
    if not found:
        raise SystemExit("nothing is measured yet")
    print("\n".join(line for name, rows in found.items() for line in table(name, rows)))
    seconds = sum(row["cpu_seconds"] for rows in found.values() for row in rows.values())
    print(f"\n{seconds / 60:.0f} CPU minutes; {plot(found, nets.CACHE / 'quality.png')}")


if __name__ == "__main__":
    main()
