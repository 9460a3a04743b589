"""Prune: channels and heads are cut, and the layers that read them are fitted to what stays.

1. statistic — moments of what each reader sees, over calibration images; one image in four is held back;
2. criterion — units are removed in the order that one of `criteria.CRITERIA` gives; what the refitted readers miss
   then on the images held back is their damage (`damage`);
3. allocation — a budget is first shared out alike, streams last of all or like all others, whichever is nearer to the
   dense model. Then, in rounds, the part of each group in the divergence is measured in the model with all of them
   cut, and the budget allocated by it, each width changing by a half at most;
4. edit — of all these cuts the nearest to the dense model on the images held back get the means and variances of their
   signals repaired; the one nearest then, repaired or not, is taken, and its readers are fitted on all images.

Source: the criteria's own; elimination and refit as in `obs` and `refit`; repair as in `repair`. The rounds are ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression.channels.groups import Analysis, Group
from zoo.compression.prune import damage
from zoo.compression.prune.allocation import allocate, prior
from zoo.compression.prune.allocation import widths as ladder_of
from zoo.compression.prune.criteria import CRITERIA
from zoo.compression.prune.damage import Curve, Ranking
from zoo.compression.prune.dense import Dense, dense_of
from zoo.compression.prune.readers import Fits
from zoo.compression.repair import REPAIRED, narrowed, outputs, places, repaired, running, watch
from zoo.declarations import Count, validate
from zoo.errors import BudgetError, UnknownName
from zoo.measurement.divergence import Divergence, divergence
from zoo.printable import logger
from zoo.progress import shown

log = logger(__name__)

ROUNDS = 6  # at most; it ends
PATIENCE = 2  # after so many
NEARER = 0.97  # that didn't bring the divergence below this share of its least
CHANGE = 3 / 2  # of a width in one round
NEAREST = 3  # cuts that are repaired: what that mends differs more from cut to cut than these do
TOLD = 5  # groups

Widths = tuple[int, ...]
"""Of each group, how many units stay."""


@dataclass(frozen=True)
class Prune:
    """How channels are pruned.

    Args:
        criterion: how the units of a group are ranked: `obs`, `activation`, `taylor`, `l1` or `l2`, as in `criteria`.
        round_to: widths are multiples of it, which kernels like; groups of few units take an eighth of them.
        floor: the smallest share of a group's units in the cuts that the rounds begin with; a quarter of it is tried
            too, and less where it must be.
        ridge: of the refit, as a share of each input's variance.
        exclude: paths, patterns or words (`head`, `stem`) of layers whose outputs and inputs stay whole, as in
            `exclusion`; of an analysis that knows them.
        only: layers that alone may change, likewise, those between and those that read them included; none means all.
    """

    criterion: str = "obs"
    round_to: Count = 8
    floor: Annotated[float, Meta(ge=0, le=1)] = 0.125
    ridge: Annotated[float, Meta(ge=1e-13, le=1e12)] = 1e-4
    exclude: str | Sequence[str] = ()
    only: str | Sequence[str] = ()

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


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut of all groups.

    Args:
        widths: of each group, how many units stay.
        units: which.
        fitted: the readers, fitted to them.
        off: divergence from the dense model for each of the images held back.
        repaired: whether means and variances of its signals are.
    """

    widths: Widths
    units: list[Tensor]
    fitted: Fits
    off: Tensor
    repaired: bool = False

    @property
    def nats(self) -> float:
        """Mean divergence."""
        return float(self.off.mean())


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
    cuts, curves = choose(dense, budget, how)
    if all(map(torch.equal, cuts[0].units, dense.analysis.every)):
        return Pruned(cuts[0].units, dense.tensors)
    pruned = finished(dense, cuts)
    log.info("prune: of what the cut does, %s", _parts(dense.analysis, [*map(len, pruned.units)], curves))
    return pruned


def choose(dense: Dense, budget: Budget, how: Prune) -> tuple[list[Cut], list[Curve]]:
    """Choose the units that stay.

    Args:
        dense: what is pruned.
        budget: shares of its macs and params that stay.
        how: the declaration.

    Returns:
        The nearest of all cuts that were tried, the nearest first, and what each group's width does.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
    """
    alike = evenly(dense.analysis, budget, how)
    if alike == {tuple(map(len, dense.analysis.every))}:
        return [Cut(alike.pop(), dense.analysis.every, {}, torch.zeros(1))], []
    rankings = [*shown(damage.ranked(dense, how.criterion), "prune: groups", len(dense.analysis.groups))]
    cuts = nearest(cut_to(dense, rankings, each) for each in shown(sorted(alike), "prune: shares"))
    cut = cuts[0]
    logs, found = torch.full((len(rankings),), torch.nan, dtype=torch.float64), [cut.nats]
    for number in shown(range(ROUNDS), "prune: rounds"):
        logs = damage.weighed(rankings, cut.widths, damage.together(dense, cut.units, cut.fitted, number), logs)
        curves = damage.curves(rankings, logs)
        curves = [near(*each, how.round_to) for each in zip(dense.analysis.groups, curves, cut.widths, strict=True)]
        try:
            widths = allocated(free(dense.analysis), curves, budget, replace(how, floor=0.0, round_to=1))
        except BudgetError:  # both targets, met where it began, aren't met in reach of there
            break
        cut = cut_to(dense, rankings, widths)
        cuts = nearest([*cuts, cut])
        found.append(cut.nats)
        if number >= PATIENCE and min(found[-PATIENCE:]) > NEARER * min(found[:-PATIENCE]):
            break
    log.debug("prune: %s nats on images held back", ", ".join(f"{nats:.4f}" for nats in found))
    return cuts, damage.curves(rankings, logs)


def cut_to(dense: Dense, rankings: Sequence[Ranking], widths: Widths) -> Cut:
    """Cut all groups to some widths.

    Args:
        dense: what is pruned.
        rankings: of the units of each group.
        widths: how many of each stay.
    """
    units = [ranking.order[:k].sort().values for ranking, k in zip(rankings, widths, strict=True)]
    fitted = dense.fitted(units)
    return Cut(widths, units, fitted, dense.off(units, dense.cut(units, fitted)))


def finished(dense: Dense, cuts: Sequence[Cut]) -> Pruned:
    """The nearest of some cuts, signals repaired where that helps on the images held back, readers fitted on all.

    Args:
        dense: what is pruned.
        cuts: of it.
    """
    some = dense.fit[:REPAIRED]
    whole = watch(running(dense.analysis.kept(dense.analysis.every)), dense.tensors, some)

    def tensors(cut: Cut, fitted: Fits) -> dict[str, Tensor]:
        kept, plain = dense.analysis.kept(cut.units), dense.cut(cut.units, fitted)
        if not cut.repaired:
            return plain
        return repaired(running(kept), places(kept.traced), plain, some, narrowed(whole, kept))

    def off(cut: Cut) -> Tensor:
        return dense.off(cut.units, tensors(cut, cut.fitted))

    also = [replace(cut, repaired=True) for cut in cuts]
    best = min([*cuts, *(replace(cut, off=off(cut)) for cut in also)], key=_nats)
    shown = outputs(running(dense.analysis.kept(best.units)), tensors(best, best.fitted), some)
    _say(best.off, dense.divergence(shown, whole.output))
    return Pruned(best.units, tensors(best, dense.fitted(best.units, whole=True)))


def evenly(analysis: Analysis, budget: Budget, how: Prune) -> set[Widths]:
    """The widths of a budget that is shared out alike: streams last of all, or like all others; two floors.

    Args:
        analysis: groups and costs.
        budget: shares of macs and params that stay.
        how: the declaration.

    Raises:
        BudgetError: it can't be met.
    """
    floors = (how, replace(how, floor=how.floor / 4))
    return {allocated(of, prior(of), budget, each) for of in (analysis, free(analysis)) for each in floors}


def allocated(of: Analysis, curves: Sequence[Curve], budget: Budget, how: Prune) -> Widths:
    """The widths of least damage within a budget."""
    return tuple(allocate(of, curves, budget, how.round_to, how.floor))


def free(analysis: Analysis) -> Analysis:
    """The analysis with streams that are cut like all others."""
    return replace(analysis, groups=tuple(replace(group, residual=False) for group in analysis.groups))


def near(group: Group, curve: Curve, width: int, round_to: int) -> Curve:
    """Of a damage curve, the widths that one round may change this one into."""
    ladder = {*ladder_of(group.units, round_to, 0.0), width}
    return {k: curve[k] for k in sorted(ladder) if width / CHANGE - round_to <= k <= width * CHANGE + round_to}


def _nats(cut: Cut) -> float:
    return cut.nats


def nearest(cuts: Iterable[Cut]) -> list[Cut]:
    """Those of least divergence, each widths once, the nearest first: as many as are repaired."""
    return sorted({cut.widths: cut for cut in cuts}.values(), key=_nats)[:NEAREST]


def _parts(analysis: Analysis, widths: Sequence[int], curves: Sequence[Curve]) -> str:
    """The groups whose cut does most."""
    nats = [curve[k] for curve, k in zip(curves, widths, strict=True)]
    most = sorted(zip(nats, analysis.groups, widths, strict=True), key=lambda each: -each[0])[:TOLD]
    total = max(sum(nats), 1e-300)  # of a cut that costs nothing
    return ", ".join(f"{each / total:.0%} is {group.name} ({group.units} → {k})" for each, group, k in most)


def _say(held: Tensor, fit: Tensor) -> None:
    """How far the result is from the dense model: whether fitted or chosen by it, a set of images flatters."""
    nats, each = max(float(held.mean()), float(fit.mean())), (len(held), held.mean(), len(fit), fit.mean())
    about = (
        "prune: about %.3g nats from the dense model; on the %d images that chose it %.3g, on %d of those fitted %.3g"
    )
    log.info(about, nats, *each)
