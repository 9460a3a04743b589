"""Damage: what the cut of each group does to the model's outputs, given the cuts of all others.

What a group's refitted readers miss on images held back, noise to signal r(k), tells how its damage grows as units go:
on the images that they are fitted to they miss less, in wide late layers by far. How much a reader's noise matters, its
cut alone can't tell: errors of many groups, each small, add up on the way. Fitted to what stays, a reader is off by a
sum over groups,

    y_cut − y = Σ_g e_g,   e_g = ΔW_g (x − μ),   ΔW = W' − W,

ΔW_g its columns of group g. With gates, y_cut + Σ_g (α_g − 1) e_g, one backward pass through the model with every group
cut gives s_g = ∂D/∂α_g at α = 1 for all groups at once, D the divergence from the dense model on the images held back:
what undoing the cut of g alone would begin to mend. Where D is quadratic in the errors, D = ½ Σ_g s_g. So a damage
curve D_g(k) = ½ s_g r_g(k) / r_g(k_g) has the slope of D at the present widths; whoever allocates by it and measures
again comes to widths at which no exchange of one group's units for another's is of use.

A group that a reader can't be fitted to has no gate: it is cut alone, and the divergence measured.

Source: ours; gates as in Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), section 3.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zoo.compression.activations import Draw, observe
from zoo.compression.channels.groups import Group
from zoo.compression.prune.criteria import CRITERIA, Evidence, gradients, l2
from zoo.compression.prune.dense import Dense
from zoo.compression.prune.obs import eliminate, inputs
from zoo.compression.prune.readers import Fits, fits
from zoo.measurement.divergence import as_one
from zoo.measurement.passes import pass_sizes

ALONE = (0.75, 0.5, 0.25, 0.125)  # shares of its units to which a group without a gate is cut
LOOKED = 4  # passes over images in which all groups are cut together,
PARTS = 4  # each in so many parts: what a backward pass needs is held until it comes

Curve = Mapping[int, float]
"""Width → damage, in nats."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The units of a group.

    Args:
        order: the most important first [units].
        damage: of every width, in nats where the group was cut alone, else to be scaled: r(k).
        gated: whether a gate tells what it is to be scaled by.
    """

    order: Tensor
    damage: Curve
    gated: bool


def ranked(dense: Dense, criterion: str) -> Iterator[Ranking]:
    """Rank the units of each group in turn.

    Args:
        dense: what is pruned.
        criterion: a name in `CRITERIA`.
    """
    groups, score = dense.analysis.groups, CRITERIA[criterion]
    slopes = gradients(dense.model, groups, dense.fit) if criterion == "taylor" else {}
    for portion, parts in dense.seen.portions([group.readers for group in groups]):
        fit, held = ({path: getattr(each, part) for path, each in parts.items()} for part in ("fit", "held"))
        for g, group in enumerate(groups[portion], portion.start):
            evidence = Evidence(dense.tensors, fit, slopes)
            if group.readers:
                known = score and score(group, evidence)
                order, noise, points = eliminate(dense.tensors, group, fit, dense.ridge, known, held)
            else:  # nobody can be fitted: as many units as are cut, the smallest weights first
                order = l2(group, evidence).argsort(descending=True, stable=True)
                noise = [1 - k / group.units for k in range(group.units + 1)]
            if not has_gate(group):
                points = _alone(dense, g, order, noise)
            yield Ranking(order, scaled(noise, points), has_gate(group))


def _alone(dense: Dense, g: int, order: Tensor, noise: Sequence[float]) -> list[tuple[float, float]]:
    """Noise, and the nats that the cut of one group alone does, at some of its widths."""
    group, every, points = dense.analysis.groups[g], dense.analysis.every, []
    seen = {path: parts.fit for path, parts in dense.seen.of(group.readers).items()}
    for k in sorted({max(1, round(share * group.units)) for share in ALONE}):
        units = [*every[:g], order[:k].sort().values, *every[g + 1 :]]
        tensors = dense.cut(units, fits(dense.tensors, [group], [units[g]], seen, dense.ridge))
        points.append((noise[k], float(dense.off(units, tensors).mean())))
    return points


def scaled(noise: Sequence[float], points: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Width → damage: in proportion to the noise, the factor straight in logarithms between the points measured.

    Args:
        noise: noise to signal when k units stay, falling, k = 0..units.
        points: noise and damage at some of these widths.
    """
    r, damage = np.maximum(np.array(sorted(points)).T, 1e-9)  # more noise does no less damage
    factors = np.log(np.maximum.accumulate(damage) / r)
    curve = noise * np.exp(np.interp(np.log(np.maximum(noise, 1e-12)), np.log(r), factors))
    return {k: float(curve[k]) for k in range(1, len(noise))}


def together(dense: Dense, units: Sequence[Tensor], fitted: Fits, number: int = 0) -> Tensor:
    """What each group's cut does while all are cut, on the images held back.

    Args:
        dense: what is pruned.
        units: of each group, those that stay [k].
        fitted: the readers, fitted to them.
        number: of the round; each looks at others of the images held back, where there are more than enough.

    Returns:
        ½ s of each group [groups], in nats and double precision; not a number where it has no gate or isn't cut.
    """
    groups = dense.analysis.groups
    pairs = zip(groups, units, strict=True)
    known = torch.tensor([has_gate(group) and len(kept) < group.units for group, kept in pairs])
    if not known.any():
        return torch.full((len(groups),), torch.nan, dtype=torch.float64)
    gates = torch.ones(len(groups), dtype=torch.float64, requires_grad=True)
    errors = {path: [*_errors(dense, path, *fit)] for path, fit in fitted.items()}
    held = torch.cat([*dense.held])
    size = pass_sizes(len(held), held.shape[-2:].numel())[0]
    start, count = -number * LOOKED * size, LOOKED * size
    both = (held, dense.target)
    batches, targets = (each.roll(start, 0)[:count].split(-(-size // PARTS)) for each in both)
    wanted = iter(targets)
    slopes: list[Tensor] = []

    def run(batch: Tensor) -> None:
        with torch.enable_grad():
            outputs = as_one(dense.model(batch))  # a detector's come in several scales
            nats = dense.divergence(outputs, next(wanted).to(outputs)).mean()
            slopes.append(torch.autograd.grad(nats, gates)[0])

    def off(path: str, layer: nn.Module, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        for g, error in errors[path]:
            y = y + gates[g].to(y) * error(x)
        return y

    with _frozen(dense.model):
        observe(run, {path: dense.model.get_submodule(path) for path in fitted}, batches, after=off)
    each = 0.5 * torch.stack(slopes)
    error = each.std(0, correction=0) / max(1, len(each) - 1) ** 0.5  # below it a slope is only known to be small
    return each.mean(0).maximum(error).clamp(min=1e-12).where(known, torch.nan)


def has_gate(group: Group) -> bool:
    """Whether all that read a group can be fitted, so that the change of their weights is all that its cut does."""
    return bool(group.readers) and not group.unfitted


def weighed(rankings: Sequence[Ranking], widths: Sequence[int], parts: Tensor, before: Tensor) -> Tensor:
    """Logarithms of what damage curves are to be multiplied by, halfway between the last round's and this one's.

    Args:
        rankings: of the units of each group.
        widths: at which the parts were measured.
        parts: of each group [groups], not a number where it isn't known.
        before: what the last round came to [groups], likewise.
    """
    own = [max(ranking.damage[k], 1e-12) for ranking, k in zip(rankings, widths, strict=True)]
    found = (parts / torch.tensor(own, dtype=torch.float64)).log()
    before = before + (found - before).nanmean().nan_to_num()  # what all groups have in common is this round's
    both = torch.where(before.isnan(), found, (before + found) / 2)
    return both.where(~found.isnan(), before)


def curves(rankings: Sequence[Ranking], logs: Tensor) -> list[Curve]:
    """The damage curves of all groups, in nats.

    Args:
        rankings: of the units of each group.
        logs: what `weighed` gives [groups]; a group that was never cut is taken for the most harmful one.
    """
    known = logs[~logs.isnan()]
    weights = logs.nan_to_num(float(known.max()) if len(known) else 0.0).exp().tolist()
    return [
        {k: (weight if ranking.gated else 1.0) * nats for k, nats in ranking.damage.items()}
        for ranking, weight in zip(rankings, weights, strict=True)
    ]


def _errors(dense: Dense, path: str, weight: Tensor, mean: Tensor) -> Iterator[tuple[int, nn.Module]]:
    """e_g of a fitted reader, as a layer, for each group that it reads."""
    own, layer = dense.tensors[f"{path}.weight"], dense.model.get_submodule(path)
    like = layer.get_parameter("weight")
    for g, group in enumerate(dense.analysis.groups):
        if path in group.readers:
            taken = torch.zeros(own.shape[1], dtype=torch.bool).index_fill(0, inputs(group, path).flatten(), True)
            change = torch.where(taken.view(1, -1, *(1 for _ in own.shape[2:])), weight - own, 0.0)
            error = copy.copy(layer)
            error._forward_hooks = OrderedDict()
            held = {"weight": change, "bias": -(change.flatten(1).double() @ mean)}
            error._parameters = {
                name: nn.Parameter(tensor.to(like), requires_grad=False) for name, tensor in held.items()
            }
            yield g, error


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient while the context is open."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
