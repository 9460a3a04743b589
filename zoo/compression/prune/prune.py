"""Prune: channels and heads are cut, and the layers that read them are fitted to what stays.

1. statistic — moments of what each reader sees, over calibration images;
2. criterion — units are removed in the order that one of `criteria.CRITERIA` gives; what the refitted readers miss
   then, noise to signal, is the damage of every width, up to a factor: the Kullback-Leibler divergence of the model's
   own outputs (nats) over that noise, measured with the group alone cut to ¾, ½, ¼ and ⅛ and interpolated between;
3. edit — the budget is allocated over the groups in several ways: by damage, by its square root, which trusts large
   figures less, or alike without any; residual streams cut last or like all others; the floor as declared or a quarter
   of it. Of all these the model, cut and refitted, that is nearest to the dense one on calibration images is taken.

Source: the criteria's own; elimination and refit as in `compression.elimination` and `compression.refit`. The factor is
ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.catalog.entry import Budget
from zoo.compression.activations import Draw, hooked, patches, rows
from zoo.compression.calibration import dealt
from zoo.compression.channels.groups import Analysis, Group
from zoo.compression.prune.allocation import allocate, prior
from zoo.compression.prune.criteria import CRITERIA, Evidence, gradients, l2
from zoo.compression.prune.obs import eliminate, inputs
from zoo.compression.prune.refit import Moments, Seen, columns, fit
from zoo.compression.repair import Run, Watched, narrowed, places, repair, running, watch
from zoo.declarations import Count, validate
from zoo.errors import BudgetError, UnknownName, require
from zoo.structure.tensors import tensors_of

POINTS = (0.75, 0.5, 0.25, 0.125)  # shares of a group's units at which the outputs are looked at
IMAGES = 64  # looked at for each of them,
COMPARED = 256  # that whole cuts are compared on
AGREES = 0.01  # of a layer's largest output, how far it may be off what its weight gives: half precision's rounding
FORWARDS = 12_800  # and about so many for all groups together, 8 for each at least


@dataclass(frozen=True)
class Prune:
    """How channels are pruned.

    Args:
        criterion: how the units of a group are ranked, a name in `criteria.CRITERIA`.
        round_to: widths are multiples of it, which kernels like; groups of few units take an eighth of them.
        floor: the smallest share of a group's units at first; a quarter of it is tried too, and less where it must be.
        ridge: of the refit, as a share of the mean variance.
        exclude: layers whose outputs and inputs stay whole, as in `exclusion`; of an analysis that knows them.
    """

    criterion: str = "obs"
    round_to: Count = 8
    floor: Annotated[float, Meta(ge=0, le=1)] = 0.125
    ridge: Annotated[float, Meta(ge=1e-13, le=1e12)] = 1e-4
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        validate(self, "prune", BudgetError)
        if self.criterion not in CRITERIA:
            raise UnknownName(f"no criterion {self.criterion!r}, known are {', '.join(CRITERIA)}")


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning leaves.

    Args:
        units: of each group, those that stay [k].
        tensors: path → tensor of the narrowed model, on the CPU.
        forwards: images that went through the model.
    """

    units: Sequence[Tensor]
    tensors: Mapping[str, Tensor]
    forwards: int


def prune(
    model: nn.Module, analysis: Analysis, batches: Sequence[Tensor], budget: Budget, how: Prune | None = None
) -> Pruned:
    """Prune a model to a budget.

    Args:
        model: dense, in eval mode; left as it was.
        analysis: what can be cut of it.
        batches: calibration images [B, C, H, W]; some hundred images are enough.
        budget: shares of its macs and params that stay.
        how: the declaration; None takes its defaults.

    Returns:
        What stays, and the weights.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
    """
    how = how or Prune()
    analysis = fittable(model, analysis, batches[0][:1])
    groups, batches = analysis.groups, dealt(batches)
    if not groups:
        raise BudgetError(f"{type(model).__name__}: no channels that can be cut were found")
    seen = Seen(model, _readers(groups), batches, analysis.normalised)
    units = choose(model, analysis, batches, budget, how, seen)
    kept = analysis.kept(units)
    tensors = kept.select(fitted(model, analysis, units, how, seen))
    if any(len(stay) < group.units for group, stay in zip(groups, units, strict=True)):
        dense = narrowed(watch(_running(analysis, _every(groups)), _tensors(model), batches), kept)
        tensors = repair(running(kept), places(kept.traced), tensors, batches, dense, divergence)
        seen.forwards += 4 * sum(map(len, batches))
    return Pruned(units, tensors, seen.forwards)


def fittable(model: nn.Module, analysis: Analysis, image: Tensor) -> Analysis:
    """The analysis with those readers apart that can't be fitted.

    These are layers that aren't called (timm's beit reads `qkv.weight`), recurrent ones, convolutions that aren't
    two-dimensional, and all whose outputs aren't the product of their weight and what `patches` says that they read.

    Args:
        model: in eval mode.
        analysis: of the model.
        image: one batch that it takes, [B, C, H, W].
    """
    agrees: dict[str, bool] = {}

    def observe(path: str, layer: Any, args: tuple[Tensor, ...], y: Tensor) -> None:
        x, weight = (each.float() for each in (args[0], layer.weight))
        found = patches(layer, x, Draw(range(len(image)), x.numel())) @ weight.flatten(1).T
        own = rows(layer, y) if layer.bias is None else rows(layer, y) - layer.bias
        agrees[path] = agrees.get(path, True) and bool((found - own).abs().max() <= AGREES * own.abs().max())

    layers = {path: model.get_submodule(path) for path in _readers(analysis.groups)}
    hooks = [
        layer.register_forward_hook(partial(observe, path))
        for path, layer in layers.items()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with hooked(hooks):
        _outputs(model, [image])
    groups = []
    for group in analysis.groups:
        fitted, unfitted = (tuple(p for p in group.readers if agrees.get(p, False) is can) for can in (True, False))
        groups.append(replace(group, readers=fitted, unfitted=unfitted))
    return replace(analysis, groups=tuple(groups))


def choose(
    model: nn.Module,
    analysis: Analysis,
    batches: Sequence[Tensor],
    budget: Budget,
    how: Prune,
    seen: Seen | None = None,
) -> list[Tensor]:
    """Choose the units that stay.

    Args:
        model: dense, in eval mode; left as it was.
        analysis: of the model.
        batches: calibration images [B, C, H, W].
        budget: shares of its macs and params that stay.
        how: the declaration.
        seen: moments of the readers where they are needed again; it counts the images that went through the model.

    Returns:
        Of each group, indices of the units that stay, rising.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
    """
    groups, rank = analysis.groups, CRITERIA[how.criterion]
    seen = seen or Seen(model, _readers(groups), batches, analysis.normalised)
    tensors = _tensors(model)
    slopes = gradients(model, groups, batches) if how.criterion == "taylor" else {}
    seen.forwards += sum(map(len, batches)) if slopes else 0
    images = torch.cat([*batches])[: max(8, min(IMAGES, FORWARDS // len(POINTS) // len(groups)))]
    looks = dealt([images])
    target = _outputs(model, looks)
    orders, damage = [], []
    bar = require("tqdm", "eval").tqdm
    looked = bar(total=len(groups), desc="prune: groups", unit="group", disable=None, leave=False)
    for portion, moments in seen.portions([group.readers for group in groups]):
        for group in groups[portion.start : portion.stop]:
            score = rank and rank(group, Evidence(tensors, moments, slopes))
            if group.readers:
                order, nsr = eliminate(tensors, group, moments, how.ridge, score)
            else:  # nobody can be fitted: as many units as are cut, the smallest weights first
                order = l2(group, Evidence(tensors, moments, slopes)).argsort(descending=True, stable=True)
                nsr = [1 - k / group.units for k in range(group.units + 1)]
            points = []
            for k in sorted({max(1, round(share * group.units)) for share in POINTS}):
                fits = _fits(tensors, [group], [order[:k]], moments, how.ridge)
                if group.readers and not group.unfitted:
                    with _replaced(model, fits):
                        logits = _outputs(model, looks)
                else:
                    kept = [order[:k].sort().values if g is group else torch.arange(g.units) for g in groups]
                    cut = analysis.kept(kept).select(_written(analysis, tensors, fits))
                    logits = watch(_running(analysis, kept), cut, looks).output
                points.append((nsr[k], divergence(logits, target)))
            orders.append(order)
            damage.append(scaled(nsr, points))
            looked.update()
    looked.close()
    seen.forwards += len(images) * (1 + len(POINTS) * len(groups))
    free = replace(analysis, groups=tuple(replace(group, residual=False) for group in groups))
    tempered = [{k: nats**0.5 for k, nats in curve.items()} for curve in damage]
    ways = [(of, curves) for of in (analysis, free) for curves in (damage, tempered, prior(analysis))]
    floors = (how.floor, how.floor / 4)
    shares = {tuple(allocate(of, by, budget, how.round_to, floor)) for of, by in ways for floor in floors}
    found = [[order[:k].sort().values for order, k in zip(orders, kept, strict=True)] for kept in sorted(shares)]
    if len(found) == 1:
        return found[0]
    compared = dealt([torch.cat([*batches])[:COMPARED]])
    seen.forwards += sum(map(len, compared)) * (1 + 2 * len(found))
    dense = watch(_running(analysis, _every(groups)), _tensors(model), compared)

    def nats(units: Sequence[Tensor]) -> float:
        cut = analysis.kept(units).select(fitted(model, analysis, units, how, seen))
        run, repairs = _running(analysis, units), (None, _of(dense, analysis, units))
        return min(divergence(watch(run, cut, compared, by).output, dense.output) for by in repairs)

    return min(bar(found, desc="prune: cuts", unit="cut", disable=None, leave=False), key=nats)


def fitted(model: nn.Module, analysis: Analysis, units: Sequence[Tensor], how: Prune, seen: Seen) -> dict[str, Tensor]:
    """Fit the readers to the units that stay.

    Args:
        model: dense, in eval mode.
        analysis: of the model.
        units: of each group, those that stay [k].
        how: the declaration.
        seen: moments of the readers.

    Returns:
        Path → tensor of the dense model, on the CPU; columns that read what is cut are zero.
    """
    tensors = _tensors(model)
    found = dict(tensors)
    cut = {p for g, kept in zip(analysis.groups, units, strict=True) if len(kept) < g.units for p in g.readers}
    paths = [path for path in seen.bytes if path in cut]
    for portion, moments in seen.portions([[path] for path in paths]):
        asked = {path: moments[path] for path in paths[portion.start : portion.stop]}
        found = _written(analysis, found, _fits(tensors, analysis.groups, units, asked, how.ridge))
    return found


def _written(
    analysis: Analysis, tensors: Mapping[str, Tensor], fits: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The tensors with what was fitted in place of the dense weights, and of the biases or the means of norms."""
    found = dict(tensors)
    for path, (weight, shift) in fits.items():
        bias, mean = f"{path}.bias", analysis.normalised.get(path)
        found[f"{path}.weight"] = weight
        if bias in tensors:
            found[bias] = (tensors[bias].double() + shift).to(tensors[bias].dtype)
        elif mean is not None:
            found[mean] = (tensors[mean].double() - shift).to(tensors[mean].dtype)
    return found


def scaled(nsr: Sequence[float], points: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Width → nats: in proportion to the noise, the factor straight in logarithms between the points measured.

    Args:
        nsr: noise to signal when k units stay, falling, k = 0..units.
        points: noise and nats of some of these widths.
    """
    noise, nats = np.maximum(np.array(sorted(points)).T, 1e-9)  # more noise does no less damage
    factors = np.log(np.maximum.accumulate(nats) / noise)
    found = nsr * np.exp(np.interp(np.log(np.maximum(nsr, 1e-12)), np.log(noise), factors))
    return {k: float(found[k]) for k in range(1, len(nsr))}


def divergence(logits: Tensor, target: Tensor) -> float:
    """Kullback-Leibler divergence from the classes of `target`, or of outputs that are none their noise to signal."""
    if target.ndim == 2:
        return float(F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True))
    return float((logits - target).square().sum() / (target - target.mean(0)).square().sum().clamp(min=1e-12))


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        outputs = [model(batch) for batch in batches]
    while not isinstance(outputs[0], Tensor):  # a detector's outputs come in several scales
        outputs = [next(iter(y.values())) if isinstance(y, Mapping) else y[0] for y in outputs]
    return torch.cat(outputs).double().cpu()


def _running(analysis: Analysis, units: Sequence[Tensor]) -> Run:
    return running(analysis.kept(units))


def _every(groups: Sequence[Group]) -> list[Tensor]:
    return [torch.arange(group.units) for group in groups]


def _of(dense: Watched, analysis: Analysis, units: Sequence[Tensor]) -> Watched:
    """What the dense model gave, of the units kept."""
    return narrowed(dense, analysis.kept(units))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """On the CPU, like the linear algebra, wherever the model is."""
    return {path: tensor.detach().cpu() for path, tensor in tensors_of(model).items()}


def _readers(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(path for group in groups for path in group.readers))


def _fits(
    tensors: Mapping[str, Tensor],
    groups: Sequence[Group],
    units: Sequence[Tensor],
    seen: Mapping[str, Moments],
    ridge: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Reader → its weight, zero where it reads what is cut, and the shift of its bias."""
    left: dict[str, Tensor] = {}
    for group, kept in zip(groups, units, strict=True):
        gone = torch.ones(group.units, dtype=torch.bool).index_fill(0, kept, False)
        for path in group.readers:
            if path in seen and gone.any():
                stays = left.setdefault(path, torch.ones(tensors[f"{path}.weight"].shape[1], dtype=torch.bool))
                stays[inputs(group, path)[gone].flatten()] = False
    found = {}
    for path, stays in left.items():
        weight = tensors[f"{path}.weight"]
        kept = columns(weight, stays.nonzero()[:, 0])
        narrowed, shift = fit(weight, seen[path], kept, ridge)
        whole = torch.zeros_like(weight).flatten(1).index_copy(1, kept, narrowed.to(weight.dtype))
        found[path] = whole.view_as(weight), shift
    return found


@contextmanager
def _replaced(model: nn.Module, fits: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """The model with other weights in some layers and a shift behind them, for as long as the context is open."""
    before, hooks = {}, []
    try:
        for path, (weight, shift) in fits.items():
            layer = model.get_submodule(path)
            own = model.get_parameter(f"{path}.weight")
            before[path] = own.detach().clone()
            own.data.copy_(weight)
            hooks.append(layer.register_forward_hook(_shifting(shift.to(own.device, own.dtype))))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for path, weight in before.items():
            model.get_parameter(f"{path}.weight").data.copy_(weight)


def _shifting(shift: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def add(layer: nn.Module, args: object, y: Tensor) -> Tensor:
        return y + (shift if isinstance(layer, nn.Linear) else shift[:, None, None])

    return add
