"""Allocation: one budget shared out over groups so that the least damage is done.

    min Σ_g D_g(k_g)   subject to   macs(k) ≤ share · macs,   params(k) ≤ share · params

D_g(k) is the damage measured when k units stay. From everything kept, the cheapest step down (damage per share of the
counts freed) is taken until the budget is met. Steps lead along the lower convex hull of D_g, so that a bad first step
does not hide a good second one; counts are products of widths, so each step is priced where it is taken. What the last
step freed too much is then given back where it heals most.
"""

from collections.abc import Mapping, Sequence

from zoo.catalog.entry import Budget
from zoo.compression.groups import Analysis
from zoo.errors import BudgetError


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


def allocate(analysis: Analysis, damage: Sequence[Mapping[int, float]], budget: Budget) -> list[int]:
    """Choose how many units of each group stay.

    Args:
        analysis: groups and costs.
        damage: of each group, the allowed widths → damage; all units kept is 0.
        budget: shares of macs, and of params where given.

    Returns:
        Units kept of each group.

    Raises:
        BudgetError: with every group at its smallest width the model is still over the budget.
    """
    full = [group.units for group in analysis.groups]
    targets = [(analysis.macs, budget.macs, "macs")]
    if budget.params is not None:
        targets.append((analysis.params, budget.params, "params"))
    totals = [analysis.total(costs, full) for costs, _, _ in targets]
    smallest = [min(curve) for curve in damage]
    for (costs, share, what), total in zip(targets, totals, strict=True):
        least = analysis.total(costs, smallest) / total
        if least > share + 1e-9:
            raise BudgetError(
                f"budget of {share:g} of the {what} can't be met: what can be cut leaves at least {least:.3f}; ask for "
                f"more, or lower the floor"
            )

    def excess(kept: Sequence[int]) -> float:
        return sum(
            max(0.0, analysis.total(costs, kept) / total - share)
            for (costs, share, _), total in zip(targets, totals, strict=True)
        )

    paths = [_hull(curve) for curve in damage]
    kept = list(full)
    while (over := excess(kept)) > 1e-9:
        prices = []
        for g, path in enumerate(paths):
            lower = max((k for k in path if k < kept[g]), default=None)
            if lower is not None:
                freed = over - excess([*kept[:g], lower, *kept[g + 1 :]])
                if freed > 0:
                    prices.append(((damage[g][lower] - damage[g][kept[g]]) / freed, g, lower))
        _, g, lower = min(prices)
        kept[g] = lower
    return _give_back(kept, damage, excess)


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


def _give_back(kept: list[int], damage: Sequence[Mapping[int, float]], excess: object) -> list[int]:
    assert callable(excess)
    while True:
        gains = []
        for g, curve in enumerate(damage):
            upper = min((k for k in curve if k > kept[g]), default=None)
            if upper is not None and excess([*kept[:g], upper, *kept[g + 1 :]]) <= 1e-9:
                gains.append((curve[kept[g]] - curve[upper], g, upper))
        if not gains:
            return kept
        _, g, upper = max(gains)
        kept[g] = upper
