"""Prune: channels and heads are cut, and the layers that read them are fitted to what stays.

1. statistic — moments of what each reader sees, over calibration images;
2. criterion — units are removed in the order that one of `criteria.CRITERIA` gives; `damage` says what that does at
   every width, in nats of divergence of the model's own outputs;
3. allocation — the budget is allocated over the groups in several ways: by damage, by its square root, which trusts
   large figures less, or alike without any; residual streams cut last or like all others; the floor as declared or a
   quarter of it;
4. edit — of all these the model, cut and refitted, that is nearest to the dense one on calibration images is taken, and
   means and variances of its signals are repaired where that brings it nearer.

Source: the criteria's own; elimination and refit as in `obs` and `refit`, repair as in `repair`. Allocation is ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

import torch
from msgspec import Meta
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune.allocation import allocate, prior
from zoo.compression.prune.criteria import CRITERIA
from zoo.compression.prune.damage import Curve, curves
from zoo.compression.prune.dense import Dense, dense_of
from zoo.compression.repair import narrowed, places, repair, running
from zoo.declarations import Count, validate
from zoo.errors import BudgetError, UnknownName, require
from zoo.measurement.divergence import Divergence, divergence

COMPARED = 256  # images that whole cuts are compared on

T = TypeVar("T")


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
    """

    units: Sequence[Tensor]
    tensors: Mapping[str, Tensor]


def prune(
    model: nn.Module,
    analysis: Analysis,
    batches: Sequence[Tensor],
    budget: Budget,
    how: Prune | None = None,
    divergence: Divergence = divergence,
) -> Pruned:
    """Prune a model to a budget.

    Args:
        model: dense, in eval mode; left as it was.
        analysis: what can be cut of it.
        batches: calibration images [B, C, H, W]; some hundred images are enough.
        budget: shares of its macs and params that stay.
        how: the declaration; None takes its defaults.
        divergence: of outputs from the dense model's.

    Returns:
        What stays, and the weights.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
    """
    how = how or Prune()
    dense = dense_of(model, analysis, batches, how.ridge, divergence)
    units = choose(dense, budget, how)
    tensors, kept = dense.fitted(units), dense.analysis.kept(units)
    if not all(map(torch.equal, units, dense.every)):
        whole = narrowed(dense.watched(dense.batches), kept)
        tensors = repair(running(kept), places(kept.traced), tensors, dense.batches, whole, dense.far)
    return Pruned(units, tensors)


def choose(dense: Dense, budget: Budget, how: Prune) -> list[Tensor]:
    """Choose the units that stay: measure what each group's cut does, allocate the budget, and compare the cuts.

    Args:
        dense: what is pruned.
        budget: shares of its macs and params that stay.
        how: the declaration.

    Returns:
        Of each group, indices of the units that stay, rising.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
    """
    measured = _shown(curves(dense, how.criterion), "groups", len(dense.analysis.groups))
    rankings, damage = zip(*measured, strict=True)
    cuts = [
        [ranking.order[:k].sort().values for ranking, k in zip(rankings, widths, strict=True)]
        for widths in sorted(allocations(dense.analysis, damage, budget, how))
    ]
    return cuts[0] if len(cuts) == 1 else nearest(dense, cuts)


def allocations(analysis: Analysis, damage: Sequence[Curve], budget: Budget, how: Prune) -> set[tuple[int, ...]]:
    """The widths that different ways of allocating come to.

    Args:
        analysis: groups and costs.
        damage: of each group.
        budget: shares of macs and params that stay.
        how: the declaration.

    Raises:
        BudgetError: it can't be met.
    """
    free = replace(analysis, groups=tuple(replace(group, residual=False) for group in analysis.groups))
    tempered = [{k: nats**0.5 for k, nats in curve.items()} for curve in damage]
    return {
        tuple(allocate(of, by, budget, how.round_to, floor))
        for of in (analysis, free)
        for by in (damage, tempered, prior(analysis))
        for floor in (how.floor, how.floor / 4)
    }


def nearest(dense: Dense, cuts: Sequence[list[Tensor]]) -> list[Tensor]:
    """The cut whose outputs, repaired or not, are nearest to the dense model's.

    Args:
        dense: what is pruned.
        cuts: of each, the units that stay of each group.
    """
    compared = dense.first(COMPARED)
    whole = dense.watched(compared)

    def nats(units: list[Tensor]) -> float:
        tensors = dense.fitted(units)
        ways = (dense.output(units, tensors, compared, by) for by in (None, whole))
        return min(dense.far(output, whole.output) for output in ways)

    return min(_shown(cuts, "cuts", len(cuts)), key=nats)


def _shown(steps: Iterable[T], what: str, count: int) -> Iterable[T]:
    bar = require("tqdm", "eval").tqdm
    shown: Iterable[T] = bar(steps, desc=f"prune: {what}", total=count, disable=None, leave=False)
    return shown
