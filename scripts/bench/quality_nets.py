"""The networks that `quality` measures: real ones, which come as folders, and small ones that are trained here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import zoo
from zoo import catalog
from zoo.catalog.entry import Base
from zoo.structure.base import initialised
from zoo.structure.description import Description
from zoo.structure.plan import apply_
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset
from zoo.training.schedule import Schedule

CACHE = Path("build/quality")
DRAWN = 4  # times the calibration images, from which a seed takes them and others
CROP = {"scale": [0.6, 1.0], "ratio": [0.75, 1.33], "hflip": 0.0, "color_jitter": 0.0}
STILL = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "hflip": 0.0, "color_jitter": 0.0}
SMALL = {"scale": [0.6, 1.0], "ratio": [0.85, 1.18], "hflip": 0.5, "color_jitter": 0.0}
PAIRS_CNN = {"layers": [1, 1, 1, 1], "channels": [32, 64, 96, 128], "stem_type": "deep", "stem_width": 16}
PAIRS_VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 6}
MEAN = {"class_token": False, "global_pool": "avg"}


@dataclass(frozen=True)
class Net:
    """One network on one data set.

    Args:
        seeds: draws of the calibration images.
        budgets: shares of the macs.
        tune: how everything smaller is distilled; None where nothing is.
        augment: of all training.
        data: the data set; None where `--data` says it.
        base: what is trained here; None where `--base` says what to load.
        side: of its images, in pixels.
        dense: how it is trained.
        own: whether each seed has its own.
        images: to calibrate with.
        round_to: of widths.
        test: images to evaluate on, where not all.
        whole: how the structure alone would be trained, with all steps that networks like it get.
    """

    seeds: int
    budgets: tuple[float, ...] = (0.5, 0.25, 0.12)
    tune: Schedule | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    base: Base | str | None = None
    side: int = 0
    dense: Schedule | None = None
    own: bool = False
    images: int = 512
    round_to: int = 8
    test: int | None = None
    whole: Schedule | None = None


def _digits(name: str, side: int, round_to: int) -> Net:
    entry = catalog.info(name)
    assert entry.base is not None
    how = {"data": "digits", "base": entry.base, "dense": Schedule(**entry.recipe.schedule), "augment": CROP}
    return Net(5, tune=Schedule(epochs=20, lr=2e-3), side=side, own=True, round_to=round_to, **how)


def _pairs(architecture: str, args: dict[str, Any], side: int, dense: Schedule, tune: Schedule | None = None) -> Net:
    base = Base(f"timm/{architecture}", {**args, "in_chans": 1, "num_classes": 100})
    how = {"data": "digit_pairs", "base": base, "dense": dense, "augment": STILL}
    return Net(3, tune=tune, side=side, test=5000, **how)


def _steps(steps: int, lr: float) -> Schedule:
    return Schedule(epochs=100, steps=steps, batch_size=128, lr=lr)


def _small(budgets: tuple[float, ...], hflip: float = 0.5) -> Net:
    tune = Schedule(epochs=3, batch_size=128, lr=2e-3)
    return Net(3, budgets, tune, {**SMALL, "hflip": hflip}, whole=Schedule(epochs=160, batch_size=128, lr=2e-3))


NETS = {
    "mobilenetv2": Net(3, (0.87, 0.8, 0.74, 0.62), images=200),
    "cifar_resnet20": _small((0.75, 0.48, 0.39)),
    "cifar_resnet56": _small((0.75, 0.48, 0.39)),
    "fashion_resnet10t": _small((0.5, 0.25, 0.12)),
    "digits_cnn": _digits("digits_cnn", 32, 4),
    "digits_vit": _digits("digits_vit", 16, 8),
    "pairs_cnn": _pairs("resnet18", PAIRS_CNN, 64, _steps(800, 3e-3), _steps(200, 1e-2)),
    "pairs_vit": _pairs("vit_tiny_patch16_224", {**PAIRS_VIT, **MEAN}, 32, _steps(2000, 1.5e-3), _steps(100, 1e-3)),
}


def random_net(description: Description, config: Mapping[str, Any], seed: int) -> nn.Module:
    """A network of some structure with random weights, and timm's description of its input."""
    model = apply_(initialised(description.base, seed), description.plan)
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    model.zoo_entry = description
    return model.eval()


def dense_base(name: str, seed: int) -> nn.Module:
    """The dense network, from the cache where it is; else loaded, or trained."""
    net = NETS[name]
    folder = CACHE / f"{name}-dense-{seed if net.own else 0}"
    if not folder.is_dir():
        zoo.save(_loaded(name) if net.dense is None else _trained(name, seed, folder), folder)
    return zoo.load(folder)


def check_given(name: str) -> None:
    """Refuse a base, or data, that isn't the one whose cells are in the cache."""
    note, data = CACHE / f"{name}-data.txt", str(NETS[name].data)
    if note.exists() and note.read_text() != data:
        raise SystemExit(f"{name}: other data than {note.read_text()}; move {CACHE}/{name}-* away to measure {data}")
    kept, said = (model.state_dict() for model in (dense_base(name, 0), _loaded(name)))
    if kept.keys() != said.keys() or not all(torch.equal(kept[path], said[path]) for path in kept):
        raise SystemExit(f"{name}: another base than the one in the cache; move {CACHE}/{name}-* away to measure it")
    note.write_text(data)


def _loaded(name: str) -> nn.Module:
    base = NETS[name].base
    if base is None:
        raise SystemExit(f"{name}: no base yet; --base FOLDER says what zoo.load is to load")
    return zoo.load(base)


def _trained(name: str, seed: int, folder: Path) -> nn.Module:
    net = NETS[name]
    own = {"input_size": (1, net.side, net.side), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
    model = random_net(Description(name, net.base), {**own, "interpolation": "bicubic"}, seed if net.own else 0)
    state = folder.with_suffix(".state")
    zoo.distil(model, [], net.data, schedule=net.dense, augment=net.augment, seed=seed if net.own else 0, state=state)
    state.unlink(missing_ok=True)
    return model


def images(name: str, split: str, seed: int = 0) -> DataLoader[Any]:
    """Batches of images as the dense network sees them, and their classes: a draw of `train`, or all of `test`."""
    net, dense = NETS[name], dense_base(name, 0)
    if net.data is None:
        raise SystemExit(f"{name}: no data; --data says a folder or a data set of the Hub")
    task, limit = task_of(dense), net.test if split == "test" else DRAWN * net.images
    rows = task.matched(dataset(net.data, split, limit=limit, seed=seed), dense, net.data, None)
    return task.loader(rows, task.evaluation_transform(dense.pretrained_cfg), 32)


@lru_cache(1)
def calibration(name: str, seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Training images with their classes in batches, drawn by a seed, and as many others where there are."""
    drawn = [pair for x, y in images(name, "train", seed) for pair in zip(x, y, strict=True)]
    order, count = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed)).tolist(), NETS[name].images
    seen, held_out = ([drawn[i] for i in order[at : at + count]] for at in (0, count))
    return list(DataLoader(seen, 32)), list(DataLoader(held_out, 32))
