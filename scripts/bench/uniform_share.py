"""One share for all groups, to compare with: the order of units, the refit and the rounding of `prune`, but no rounds.

Streams stay whole or are cut like all others, and of the groups at either end, stem and head, none, one or two stay
whole: of these the one nearest to the dense model on images held back is taken.
"""

import itertools

import torch

from zoo.catalog.entry import Budget
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune import damage
from zoo.compression.prune.allocation import widths
from zoo.compression.prune.dense import Dense
from zoo.compression.prune.prune import Cut, Prune, Widths, cut_to, nearest

ENDS = 2  # groups at either end that may stay whole


def choose(dense: Dense, budget: Budget, how: Prune) -> tuple[list[Cut], list[damage.Curve]]:
    """In place of `prune.choose`."""
    rankings = [*damage.ranked(dense, how.criterion)]
    tried = itertools.product((False, True), range(ENDS + 1))
    found = {one_share(dense.analysis, budget, how, streams, ends) for streams, ends in tried} - {None}
    cuts = nearest(cut_to(dense, rankings, each) for each in found)
    return cuts, damage.curves(rankings, torch.zeros(len(rankings)))


def one_share(analysis: Analysis, budget: Budget, how: Prune, streams: bool, ends: int = 0) -> Widths | None:
    """The widths: of all that are cut the narrowest, for its size, grows first, until the macs don't allow it.

    What is left of them then goes to those for which one more step is small enough.

    Args:
        analysis: groups and costs.
        budget: share of macs.
        how: the declaration.
        streams: whether they are cut.
        ends: how many groups at either end aren't.

    Returns:
        None where the budget can't be met so.
    """
    groups, most = analysis.groups, budget.macs * sum(cost.count for cost in analysis.macs)
    inner = range(ends, len(groups) - ends)
    ladders = [
        widths(group.units, how.round_to, 0.0) if g in inner and (streams or not group.residual) else [group.units]
        for g, group in enumerate(groups)
    ]
    kept = tuple(ladder[0] for ladder in ladders)
    if analysis.total(analysis.macs, kept) > most:
        return None
    full, last = False, set[int]()
    for _, g, k in sorted((k / groups[g].units, g, k) for g, ladder in enumerate(ladders) for k in ladder[1:]):
        wider = (*kept[:g], k, *kept[g + 1 :])
        fits = analysis.total(analysis.macs, wider) <= most
        full = full or not fits
        kept = wider if fits and g not in last else kept
        last |= {g} if full else set()
    return kept
