"""One share for all groups, to compare with: the order of units, the refit and the rounding of `prune`, but no rounds.

Hidden units alone are cut, or streams like all others, whichever is nearer to the dense model on images held back.
"""

from zoo.catalog.entry import Budget
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune import damage
from zoo.compression.prune.allocation import widths
from zoo.compression.prune.dense import Dense
from zoo.compression.prune.prune import Cut, Prune, Widths, cut_to


def choose(dense: Dense, budget: Budget, how: Prune) -> Cut:
    """In place of `prune.choose`."""
    rankings = [*damage.ranked(dense, how.criterion)]
    found = {one_share(dense.analysis, budget, how, streams) for streams in (False, True)} - {None}
    return min((cut_to(dense, rankings, each) for each in found), key=lambda cut: cut.nats)


def one_share(analysis: Analysis, budget: Budget, how: Prune, streams: bool) -> Widths | None:
    """The widths: of all that are cut the narrowest, for its size, grows first, until the macs don't allow it.

    What is left of them then goes to those for which one more step is small enough.

    Args:
        analysis: groups and costs.
        budget: share of macs.
        how: the declaration.
        streams: whether they are cut.

    Returns:
        None where the budget can't be met so.
    """
    groups, most = analysis.groups, budget.macs * sum(cost.count for cost in analysis.macs)
    ladders = [widths(g.units, how.round_to, 0.0) if streams or not g.residual else [g.units] for g in groups]
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
