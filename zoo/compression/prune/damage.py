"""Damage: what the cut of a group does to the model's outputs.

A group's units are ranked, and what its refitted readers miss when the first k stay, noise to signal r(k), tells how
its damage grows; with the group cut to ¾, ½, ¼ and ⅛ the divergence of the outputs is measured, and the factor between
the two interpolated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from zoo.compression.prune.criteria import CRITERIA, Evidence, gradients, l2
from zoo.compression.prune.dense import Dense
from zoo.compression.prune.obs import eliminate
from zoo.compression.prune.readers import fits, written
from zoo.compression.prune.refit import Moments

POINTS = (0.75, 0.5, 0.25, 0.125)  # shares of a group's units at which the outputs are looked at
IMAGES = 64  # looked at for each of them,
FORWARDS = 12_800  # and about so many for all groups together, 8 for each at least

Curve = Mapping[int, float]
"""Width → damage, in nats."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The units of a group.

    Args:
        order: the most important first [units].
        noise: r(k), noise to signal when the first k of them stay, k = 0..units.
    """

    order: Tensor
    noise: Sequence[float]


def curves(dense: Dense, criterion: str) -> Iterator[tuple[Ranking, Curve]]:
    """Rank the units of each group in turn, and measure what its cut does.

    Args:
        dense: what is pruned.
        criterion: a name in `CRITERIA`.
    """
    groups = dense.analysis.groups
    slopes = gradients(dense.model, groups, dense.batches) if criterion == "taylor" else {}
    looks = dense.first(max(8, min(IMAGES, FORWARDS // len(POINTS) // len(groups))))
    target = dense.watched(looks).output
    for portion, moments in dense.seen.portions([group.readers for group in groups]):
        for g in range(len(groups))[portion]:
            ranking = _ranked(dense, g, criterion, Evidence(dense.tensors, moments, slopes))
            yield ranking, _alone(dense, g, ranking, moments, looks, target)


def _ranked(dense: Dense, g: int, criterion: str, evidence: Evidence) -> Ranking:
    group, score = dense.analysis.groups[g], CRITERIA[criterion]
    if group.readers:
        known = score and score(group, evidence)
        return Ranking(*eliminate(dense.tensors, group, evidence.seen, dense.ridge, known))
    # nobody can be fitted: as many units as are cut, the smallest weights first
    order = l2(group, evidence).argsort(descending=True, stable=True)
    return Ranking(order, [1 - k / group.units for k in range(group.units + 1)])


def _alone(
    dense: Dense, g: int, ranking: Ranking, moments: Mapping[str, Moments], looks: Sequence[Tensor], target: Tensor
) -> Curve:
    """The damage of a group that is cut alone."""
    analysis, points = dense.analysis, []
    group = analysis.groups[g]
    for k in sorted({max(1, round(share * group.units)) for share in POINTS}):
        units = [*dense.every[:g], ranking.order[:k].sort().values, *dense.every[g + 1 :]]
        fitted = fits(dense.tensors, [group], [units[g]], moments, dense.ridge)
        cut = analysis.kept(units).select(written(analysis, dense.tensors, fitted))
        points.append((ranking.noise[k], dense.far(dense.output(units, cut, looks), target)))
    return scaled(ranking.noise, points)


def scaled(noise: Sequence[float], points: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Width → nats: in proportion to the noise, the factor straight in logarithms between the points measured.

    Args:
        noise: noise to signal when k units stay, falling, k = 0..units.
        points: noise and nats of some of these widths.
    """
    r, nats = np.maximum(np.array(sorted(points)).T, 1e-9)  # more noise does no less damage
    factors = np.log(np.maximum.accumulate(nats) / r)
    curve = noise * np.exp(np.interp(np.log(np.maximum(noise, 1e-12)), np.log(r), factors))
    return {k: float(curve[k]) for k in range(1, len(noise))}
