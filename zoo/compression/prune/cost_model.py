"""Counts: macs and params as functions of the units cut, for hundreds of groups at once.

A cost is a product over its axes, so a count is a polynomial in x_g, the share of group g that is cut:

    C(x) = Σ_n w_n ∏_a∈n v_a(x),   v_a(x) = 1 − Σ_g t_ag x_g

Costs of equal axes are added up once, and all first derivatives take one pass over what remains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.compression.channels.groups import Analysis, Cost

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Counts:
    """Macs and params, as shares of the dense model's.

    Args:
        units: of each group [G].
        weights: w, share of the macs and of the params [2, N].
        axes: of each cost, rows of `taken` [N, m]; the last row is an axis that nothing is cut from.
        taken: t [A, G].
        doubled: groups that lie in two axes a, b of one cost: that cost, g, which factors are other axes, t_ag · t_bg.
    """

    units: Array
    weights: Array
    axes: NDArray[np.int64]
    taken: Array
    doubled: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], Array]

    @staticmethod
    def of(analysis: Analysis) -> "Counts":
        """The counts of a model."""
        names: dict[tuple[tuple[int, float], ...], int] = {}
        merged: dict[tuple[int, ...], list[float]] = {}
        for what, costs in enumerate((analysis.macs, analysis.params)):
            total = sum(cost.count for cost in costs)
            for cost in costs:
                place = tuple(sorted(_axes(cost, names)))
                merged.setdefault(place, [0.0, 0.0])[what] += cost.count / max(total, 1)
        taken = np.zeros((len(names) + 1, len(analysis.groups)))
        for axis, row in names.items():
            for g, share in axis:
                taken[row, g] = share
        longest = max(map(len, merged), default=0)
        axes = np.array([[*place, *[len(names)] * (longest - len(place))] for place in merged], dtype=np.int64)
        pairs = [
            (n, int(g), [place not in (i, j) for place in range(longest)], taken[axes[n, i], g] * taken[axes[n, j], g])
            for n in range(len(axes))
            for i, j in combinations(range(longest), 2)
            for g in np.flatnonzero(taken[axes[n, i]] * taken[axes[n, j]])
        ]
        doubled = (
            np.array([pair[0] for pair in pairs], dtype=np.int64),
            np.array([pair[1] for pair in pairs], dtype=np.int64),
            np.array([pair[2] for pair in pairs], dtype=np.bool_).reshape(len(pairs), longest),
            np.array([pair[3] for pair in pairs], dtype=np.float64),
        )
        units = np.array([group.units for group in analysis.groups], dtype=np.float64)
        return Counts(units, np.array(list(merged.values())).T.reshape(2, -1), axes, taken, doubled)

    def at(self, kept: Any) -> Array:
        """Shares of macs and params, [..., 2], with so many units kept of each group [..., G]."""
        v = 1 - (1 - np.asarray(kept, dtype=np.float64) / self.units) @ self.taken.T
        found: Array = v[..., self.axes].prod(-1) @ self.weights.T
        return found

    def slopes(self, kept: Any) -> tuple[Array, Array]:
        """First and second coefficient of the shares in one more unit of a group, [2, G] each: exact up to degree two.

        With d units more of group g alone the shares change by first · d + second · d².
        """
        v = 1 - self.taken @ (1 - np.asarray(kept, dtype=np.float64) / self.units)
        factors = v[self.axes]
        first = np.zeros((2, len(self.taken)))
        for column in range(self.axes.shape[1]):
            others = np.delete(factors, column, axis=1).prod(1)
            for what in range(2):
                first[what] += np.bincount(self.axes[:, column], self.weights[what] * others, minlength=len(self.taken))
        second = np.zeros((2, len(self.units)))
        cost, group, others_of, share = self.doubled
        rest = np.where(others_of, factors[cost], 1.0).prod(1) * share
        for what in range(2):
            second[what] = np.bincount(group, self.weights[what][cost] * rest, minlength=len(self.units))
        return first @ self.taken / self.units, second / self.units**2


def _axes(cost: Cost, names: dict[tuple[tuple[int, float], ...], int]) -> Sequence[int]:
    """Numbers of a cost's axes, new ones added."""
    keys = (tuple(sorted((g, share) for g, share in axis.items() if share)) for axis in cost.axes)
    return [names.setdefault(key, len(names)) for key in keys if key]
