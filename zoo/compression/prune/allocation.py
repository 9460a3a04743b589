"""Allocation: one budget shared out over groups so that the least damage is done.

    min Σ_g D_g(k_g) + α · macs(k) + β · params(k)

D_g(k) is the damage when k units stay. α makes the macs meet their share; where params are a target too, β of either
sign makes them meet theirs: both lie on one circle, α = eᵃ cos θ, β = eᵃ sin θ, so that at every angle more price means
fewer macs, and two nested bisections find a and θ. Counts are products of widths, so each group answers the price of a
unit of its own beside the widths that the others have just taken, until they agree. What rounding leaves, single steps
and exchanges of two mend.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.catalog.entry import Budget
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune.cost_model import Array, Counts
from zoo.errors import BudgetError
from zoo.printable import logger

_log = logger(__name__)

MACS_TOLERANCE = 0.005  # below the share of the macs, where params are a target too
PARAMS_TOLERANCE = 0.05  # on either side
ALL = 4096  # combinations of widths that are looked at one by one
CANDIDATES = 24  # steps of each kind that exchanges are made of


def widths(units: int, round_to: int, floor: float) -> list[int]:
    """The widths that a group may take, rising to all its units.

    Args:
        units: how many there are.
        round_to: widths are multiples of it; a group of few units takes an eighth of them instead.
        floor: the smallest share of the units.

    >>> widths(64, 8, 0.25)
    [16, 24, 32, 40, 48, 56, 64]
    >>> widths(4, 8, 0.25)
    [1, 2, 3, 4]
    """
    step = min(round_to, max(1, units // 8))
    return [*(k for k in range(step, units, step) if k >= floor * units), units]


def prior(analysis: Analysis) -> list[dict[int, float]]:
    """Damage where nothing was measured: D_g(k) = −m_g^¾ p_g^¼ log(k / units), m, p the group's shares of the counts.

    Groups whose macs and params stand in one ratio are then all cut to one share, and those with more params to a mac
    are spared a little, as published pruned models do.
    """
    counts = Counts.of(analysis)
    m, p = counts.slopes(counts.units)[0] * counts.units
    weights = m**0.75 * p**0.25
    return [
        {k: -float(weight) * math.log(k / group.units) for k in range(1, group.units + 1)}
        for weight, group in zip(weights, analysis.groups, strict=True)
    ]


def allocate(
    analysis: Analysis,
    damage: Sequence[Mapping[int, float]],
    budget: Budget,
    round_to: int = 8,
    floor: float = 0.125,
) -> list[int]:
    """Choose how many units of each group stay.

    With macs alone the model keeps at most their share. With params, both are targets: macs at most their share and
    within 0.5 % of it, params within 5 % of theirs. What can't be met so is sought, in this order, with widths between
    the multiples of `round_to`, with residual streams cut too, and with the floor halved again and again.

    Args:
        analysis: groups and costs.
        damage: of each group, width → damage; all units kept is 0.
        budget: shares of macs, and of params where given.
        round_to: widths are multiples of it.
        floor: the smallest share of a group's units.

    Returns:
        Units kept of each group: those nearest to the targets from below where widths allow no better.

    Raises:
        BudgetError: with every group at its smallest width the model is still over the budget.
    """
    counts, target = Counts.of(analysis), _Target(budget)
    best: tuple[float, Array] | None = None
    for free, lowest in _reaches(analysis, floor):
        ladder = [
            _allowed(curve, int(n), round_to, lowest, ok)
            for curve, n, ok in zip(damage, counts.units, free, strict=True)
        ]
        least = [ks[0] for ks in ladder]
        if target.over(counts.at(least)) > 0:
            continue
        kept = _solve(counts, _Hulls.of(damage, ladder), target)
        step = round_to
        while True:
            kept = _mended(counts, damage, ladder, target, kept)
            missed = target.missed(counts.at(kept))
            if best is None or missed < best[0] - 1e-12:
                best = (float(missed), kept)
            if missed == 0 or step == 1:
                break
            step //= 2
            ladder = [
                _allowed(curve, int(n), step, lowest, ok)
                for curve, n, ok in zip(damage, counts.units, free, strict=True)
            ]
        if missed == 0:
            break
    if best is None or target.over(counts.at(best[1])) > 0:
        raise _unmet(budget, counts.at(least), None if best is None else counts.at(best[1]))
    if target.missed(counts.at(best[1])) > 0:
        shares = counts.at(best[1])
        _log.warning("budget: macs %.3f and params %.3f are left, nearer widths don't lead", shares[0], shares[1])
    return [int(k) for k in best[1]]


def _reaches(analysis: Analysis, floor: float) -> Iterator[tuple[list[bool], float]]:
    """Which groups may be cut, and how far, from the gentlest to the harshest."""
    inner = [not group.residual for group in analysis.groups]
    if not all(inner):
        yield inner, floor
    while True:
        yield [True] * len(inner), floor
        if floor < 1e-3:
            return
        floor /= 2


def _allowed(curve: Mapping[int, float], units: int, round_to: int, floor: float, free: bool) -> list[int]:
    return [k for k in widths(units, round_to, floor) if k in curve] if free else [units]


def _unmet(budget: Budget, least: Array, nearest: Array | None) -> BudgetError:
    if nearest is not None:
        return BudgetError(
            f"budget of {budget.macs:g} of the macs and {budget.params:g} of the params can't be met at once: the "
            f"nearest is {nearest[0]:.3f} and {nearest[1]:.3f}; ask for that, or for macs alone"
        )
    share, found, what = (budget.macs, least[0], "macs")
    if found <= share and budget.params is not None:
        share, found, what = (budget.params, least[1], "params")
    return BudgetError(
        f"budget of {share:g} of the {what} can't be met: what can be cut leaves at least {found:.3f}; ask for "
        f"more, or lower round_to"
    )


class _Target:
    """How far counts are from a budget; 0 where it is met."""

    def __init__(self, budget: Budget) -> None:
        self.macs, self.params = budget.macs, budget.params

    def over(self, share: Array) -> Array:
        """What is above the upper edges."""
        found = np.maximum(share[..., 0] / self.macs - 1 - 1e-9, 0)
        if self.params is not None:
            found = found + np.maximum(share[..., 1] / self.params - 1 - PARAMS_TOLERANCE, 0)
        return np.asarray(found)

    def missed(self, share: Array) -> Array:
        """What is outside any edge; above the macs counts tenfold."""
        found = 10 * np.maximum(share[..., 0] / self.macs - 1 - 1e-9, 0)
        if self.params is not None:
            found = found + np.maximum(1 - MACS_TOLERANCE - share[..., 0] / self.macs, 0)
            found = found + np.maximum(abs(share[..., 1] / self.params - 1) - PARAMS_TOLERANCE, 0)
        return np.asarray(found)


@dataclass(frozen=True, eq=False)
class _Hulls:
    """Lower convex hulls of the damage curves: widths rising [G, W + 1] and the slopes between them [G, W].

    Shorter ones repeat their smallest width, with a slope of −∞: those segments are always kept.
    """

    widths: Array
    slopes: Array

    @staticmethod
    def of(damage: Sequence[Mapping[int, float]], ladder: Sequence[Sequence[int]]) -> "_Hulls":
        hulls = [_hull({k: curve[k] for k in ks}) for curve, ks in zip(damage, ladder, strict=True)]
        longest = max(map(len, hulls))
        found, slopes = np.zeros((len(hulls), longest)), np.full((len(hulls), longest - 1), -np.inf)
        for g, (hull, curve) in enumerate(zip(hulls, damage, strict=True)):
            start = longest - len(hull)
            found[g] = [hull[0]] * start + hull
            values = np.array([curve[k] for k in hull])
            slopes[g, start:] = np.diff(values) / np.diff(hull)
        return _Hulls(found, slopes)

    def answer(self, price: Array, second: Array, kept: Array) -> Array:
        """The width of least damage and price of each group; `second` bends the price of a unit away from `kept`."""
        cost = price[:, None]
        if second.any():
            cost = cost + second[:, None] * (self.widths[:, 1:] + self.widths[:, :-1] - 2 * kept[:, None])
        taken = (self.slopes + cost < 0).sum(1)
        answer: Array = np.take_along_axis(self.widths, taken[:, None], 1)[:, 0]
        return answer


def _hull(curve: Mapping[int, float]) -> list[int]:
    """Widths on the lower convex hull of a damage curve."""
    hull: list[int] = []
    for k in sorted(curve):
        while len(hull) > 1 and (curve[hull[-1]] - curve[hull[-2]]) * (k - hull[-2]) >= (curve[k] - curve[hull[-2]]) * (
            hull[-1] - hull[-2]
        ):
            hull.pop()
        hull.append(k)
    return hull


def _solve(counts: Counts, hulls: _Hulls, target: _Target) -> Array:
    """Widths near the target: β = 0 where that lands params in their tolerance, else the nearest edge of it."""
    kept = _at_angle(counts, hulls, target.macs, 0.0)
    if target.params is None or kept is None:
        return counts.units if kept is None else kept
    low, high = target.params * (1 - PARAMS_TOLERANCE), target.params * (1 + PARAMS_TOLERANCE)
    share = counts.at(kept)[1]
    if low <= share <= high:
        return kept
    less = share > high
    inner, outer = 0.0, math.pi if less else -math.pi / 2
    for _ in range(14):
        angle = (inner + outer) / 2
        found = _at_angle(counts, hulls, target.macs, angle)
        if found is None:  # what has a price can't free that many macs
            outer = angle
            continue
        share = counts.at(found)[1]
        reached = share <= high if less else share >= low
        inner, outer = (inner, angle) if reached else (angle, outer)
        kept = found
        if low <= share <= high:
            return kept
    return kept


def _at_angle(counts: Counts, hulls: _Hulls, macs: float, angle: float) -> Array | None:
    """The most macs within their share at one ratio of the prices; None where no price frees enough."""
    first, _ = counts.slopes(counts.units)
    steepest = np.abs(hulls.slopes[np.isfinite(hulls.slopes)])
    if not (steepest > 0).any():
        steepest = np.ones(1)
    low = math.log(steepest[steepest > 0].min() / max(float(first.max()), 1e-12)) - 5
    high = math.log(steepest.max() / max(float(first[first > 0].min()), 1e-12)) + 25
    direction = np.array([math.cos(angle), math.sin(angle)])
    kept, best = counts.units, None
    if counts.at(kept)[0] <= macs:
        return kept
    price = None
    for _ in range(32):
        scale = math.exp((low + high) / 2)
        for _ in range(4):
            first, second = counts.slopes(kept)
            price = direction @ first if price is None else (price + direction @ first) / 2
            kept = hulls.answer(scale * price, scale * (direction @ second), kept)
        share = counts.at(kept)[0]
        if share > macs:
            low = math.log(scale)
        else:
            high, best = math.log(scale), kept
            if share > macs * (1 - MACS_TOLERANCE / 2):
                return best
        if high - low < 1e-3:
            break
    return best


def _mended(
    counts: Counts, damage: Sequence[Mapping[int, float]], ladder: Sequence[Sequence[int]], target: _Target, kept: Array
) -> Array:
    """Steps and exchanges of two, while what is missed, or else the damage, falls."""
    if math.prod(map(len, ladder)) <= ALL:
        return _best_of_all(counts, damage, ladder, target)
    kept = kept.copy()
    for _ in range(200 + sum(map(len, ladder))):  # where curves are flat, all widths may have to rise again
        groups, values, gains = _steps(damage, ladder, kept)
        if not len(groups):
            break
        found = _best_step(counts, target, kept, groups, values, gains)
        if found is None:
            break
        kept = found
    return kept


def _best_of_all(
    counts: Counts, damage: Sequence[Mapping[int, float]], ladder: Sequence[Sequence[int]], target: _Target
) -> Array:
    """Of all combinations of widths the one that misses least, or else does the least damage."""
    combinations = np.array([*itertools.product(*ladder)], dtype=np.float64)
    nats = sum(np.array([curve[int(k)] for k in column]) for curve, column in zip(damage, combinations.T, strict=True))
    share = counts.at(combinations)
    order = np.lexsort((-share[:, 0], np.round(nats, 12), target.missed(share)))
    best: Array = combinations[order[0]]
    return best


def _steps(
    damage: Sequence[Mapping[int, float]], ladder: Sequence[Sequence[int]], kept: Array
) -> tuple[Array, Array, Array]:
    """Widths within two steps of those kept: group, width, damage more."""
    found = [
        (g, k, curve[k] - curve[int(at)])
        for g, (curve, ks, at) in enumerate(zip(damage, ladder, kept, strict=True))
        for k in [*[k for k in ks if k < at][-2:], *[k for k in ks if k > at][:2]]
    ]
    groups, values, gains = np.array(found or np.zeros((0, 3))).T
    return groups.astype(np.int64), values, gains


def _best_step(
    counts: Counts, target: _Target, kept: Array, groups: Array, values: Array, gains: Array
) -> Array | None:
    """The best of all single steps and of exchanges between the most promising; None where nothing is better."""
    first, second = counts.slopes(kept)
    change = values - kept[groups]
    freed = first[:, groups] * change + second[:, groups] * change**2  # [2, steps]
    chosen = np.unique(
        np.concatenate(
            [
                side[np.argsort(gains[side] / np.maximum(abs(freed[what, side]), 1e-12), kind="stable")[:CANDIDATES]]
                for side in (np.flatnonzero(change < 0), np.flatnonzero(change > 0))
                for what in range(2)
            ]
        )
    )
    now = counts.at(kept)
    left, right = (side.ravel() for side in np.meshgrid(chosen, chosen))
    left, right = left[groups[left] < groups[right]], right[groups[left] < groups[right]]
    singles = np.arange(len(groups))
    left, right = np.concatenate([singles, left]), np.concatenate([singles, right])
    alone = left == right
    more = gains[left] + np.where(alone, 0, gains[right])
    share = now + (freed[:, left] + np.where(alone, 0, freed[:, right])).T
    order = np.lexsort((-share[:, 0], np.round(more, 12), np.round(target.missed(share), 6)))[:64]
    trial = np.repeat(kept[None], len(order), 0)
    rows = np.arange(len(order))
    trial[rows, groups[left[order]]] = values[left[order]]
    trial[rows, groups[right[order]]] = values[right[order]]
    share = counts.at(trial)
    keys = [
        (float(m), round(float(d), 12), -float(s))  # where damage is the same, macs are there to be spent
        for m, d, s in zip(target.missed(share), more[order], share[:, 0], strict=True)
    ]
    best = min(range(len(keys)), key=keys.__getitem__)
    (missed, worse, macs), before = keys[best], float(target.missed(now))
    better = missed < before - 1e-9 or (missed <= before + 1e-12 and (worse, macs) < (-1e-12, 0.0))
    further = missed <= before + 1e-12 and worse <= 0 and -macs > now[0] + 1e-12
    return trial[best] if better or further else None
