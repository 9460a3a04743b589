"""Allocation: budgets hold, against every combination of small instances and on hundreds of groups."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.catalog.entry import Budget
from zoo.compression.channels.groups import Analysis, Cost, Group
from zoo.compression.prune.allocation import allocate, prior, widths
from zoo.compression.prune.cost_model import Counts
from zoo.errors import BudgetError


@given(units=st.integers(1, 300), round_to=st.integers(1, 32), floor=st.floats(0, 1))
def test_widths_rise_in_steps_to_all_units_and_keep_above_the_floor(units, round_to, floor):
    found = widths(units, round_to, floor)
    step = min(round_to, max(1, units // 8))
    assert found[-1] == units
    assert found == sorted(set(found))
    assert all(k % step == 0 and k >= floor * units for k in found[:-1])
    assert found[0] >= 1


@pytest.mark.parametrize(
    ("units", "round_to", "floor", "expected"),
    [(1, 8, 0.1, [1]), (8, 8, 0.5, [4, 5, 6, 7, 8]), (30, 8, 0.5, [15, 18, 21, 24, 27, 30]), (64, 32, 0, [8, 16])],
)
def test_few_units_take_steps_of_an_eighth(units, round_to, floor, expected):
    assert expected == widths(units, round_to, floor)[: len(expected)]


def problem(units, chain, damages):
    """Return layers in a chain, each width between two of them, and a damage that falls as units are kept."""
    groups = tuple(Group(f"g{i}", n, (), (), ()) for i, n in enumerate(units))
    neighbours = [(0,), *((i, i + 1) for i in range(len(units) - 1)), (len(units) - 1,)]
    macs = tuple(Cost(count, tuple({g: 1.0} for g in pair)) for count, pair in zip(chain, neighbours, strict=False))
    params = tuple(Cost(1 + count // 7, cost.axes) for count, cost in zip(chain[::-1], macs, strict=False))
    curves = [
        dict(zip(range(1, n + 1), sorted(itertools.accumulate(d[:n]), reverse=True), strict=True))
        for n, d in zip(units, damages, strict=True)
    ]
    return Analysis(groups, macs, params), [{k: v - min(c.values()) for k, v in c.items()} for c in curves]


problems = st.integers(1, 3).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(2, 6), min_size=n, max_size=n),
        st.lists(st.integers(10, 1000), min_size=n + 1, max_size=n + 1),
        st.lists(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(drawn=problems, share=st.floats(0.05, 1))
def test_an_allocation_meets_its_budget_and_is_close_to_the_best_there_is(drawn, share):
    analysis, damage = problem(*drawn)
    budget = Budget(share)
    full = [group.units for group in analysis.groups]

    def fits(kept):
        return analysis.total(analysis.macs, kept) <= (share + 1e-10) * analysis.total(analysis.macs, full)

    possible = [kept for kept in itertools.product(*damage) if fits(kept)]
    if not possible:
        with pytest.raises(BudgetError, match="can't be met"):
            allocate(analysis, damage, budget)
        return
    kept = allocate(analysis, damage, budget)
    assert all(k in curve for k, curve in zip(kept, damage, strict=True))
    assert fits(kept)
    for g in range(len(kept)):
        assert not any(fits([*kept[:g], k, *kept[g + 1 :]]) for k in damage[g] if k > kept[g]), "nothing left to give"
    best, worst = (f(sum(c[k] for c, k in zip(damage, kept, strict=True)) for kept in possible) for f in (min, max))
    found = sum(curve[k] for curve, k in zip(damage, kept, strict=True))
    assert found <= best + 0.25 * (worst - best) + 1e-9


def test_with_one_price_for_every_unit_the_least_damaging_are_taken():
    analysis = Analysis(
        tuple(Group(name, 3, (), (), ()) for name in "ab"), (Cost(3, ({0: 1.0},)), Cost(3, ({1: 1.0},))), (Cost(6, ()),)
    )
    damage = [{1: 9.0, 2: 4.0, 3: 0.0}, {1: 2.0, 2: 1.0, 3: 0.0}]
    assert allocate(analysis, damage, Budget(4 / 6)) == [3, 1]
    assert allocate(analysis, damage, Budget(3 / 6)) == [2, 1]


def blocks(count, residual=True):
    """Bottlenecks on residual streams of four widths: inner widths and, with early layers at more positions, costs."""
    streams = [Group(f"stream{s}", 64 * 2**s, (), (), (), residual=residual) for s in range(4)]
    groups, macs, params = list(streams), [], []
    for block in range(count):
        stage = 4 * block // count
        a, b, n = len(groups), len(groups) + 1, 64 * 2**stage
        groups += [Group(f"{block}.a", n, (), (), ()), Group(f"{block}.b", n, (), (), ())]
        for size, axes in [(n * n, (stage, a)), (9 * n * n, (a, b)), (n * n, (b, stage)), (n * n, (stage, stage))]:
            params.append(Cost(size, tuple({g: 1.0} for g in axes)))
            macs.append(Cost(size * 49 * 4 ** (3 - stage), params[-1].axes))
    return Analysis(tuple(groups), tuple(macs), tuple(params))


def shares(analysis, kept):
    full = [group.units for group in analysis.groups]
    return [analysis.total(c, kept) / analysis.total(c, full) for c in (analysis.macs, analysis.params)]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_counts_and_their_slopes_are_those_of_the_costs(data):
    analysis = blocks(4)
    kept = [data.draw(st.integers(1, group.units)) for group in analysis.groups]
    counts = Counts.of(analysis)
    np.testing.assert_allclose(counts.at(kept), shares(analysis, kept), rtol=1e-9)
    first, second = counts.slopes(kept)
    g = data.draw(st.integers(0, len(kept) - 1))
    more = data.draw(st.integers(1, analysis.groups[g].units)) - kept[g]
    changed = shares(analysis, [*kept[:g], kept[g] + more, *kept[g + 1 :]])
    np.testing.assert_allclose(
        counts.at(kept) + first[:, g] * more + second[:, g] * more**2, changed, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    "pair", [(0.6, 0.6), (0.6, 0.75), (0.5, 0.8), (0.55, 0.45), (0.37, 0.5), (0.9, 0.7)], ids=lambda p: f"{p[0]}-{p[1]}"
)
def test_both_targets_are_met_within_their_tolerances_by_inner_widths_in_multiples_of_eight(pair):
    analysis = blocks(40)
    kept = allocate(analysis, prior(analysis), Budget(*pair))
    macs, params = shares(analysis, kept)
    assert 0.995 * pair[0] <= macs <= pair[0] * (1 + 1e-9)
    assert abs(params / pair[1] - 1) <= 0.05
    assert all(k % 8 == 0 for k in kept)
    assert kept[:4] == [group.units for group in analysis.groups[:4]]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_with_macs_alone_hundreds_of_groups_land_within_a_thousandth_below(share):
    analysis = blocks(150)
    assert 0.999 * share <= shares(analysis, allocate(analysis, prior(analysis), Budget(share)))[0] <= share + 1e-9


FLAT = {  # damages too small to tell widths apart: (share that stays, noise) -> damage
    "one figure": lambda share, noise: 1e-9 * (1 + 1e-9 * noise),
    "near zero": lambda share, noise: 1e-12 * (1 - share),
    "a cliff below a half": lambda share, noise: 1e-9 if share >= 0.5 else 0.1 * (1 - share),
}


@pytest.mark.parametrize("curve", FLAT)
@pytest.mark.parametrize("count", [10, 40])
def test_where_damage_is_alike_the_budget_is_spent(count, curve):
    analysis, random = blocks(count), np.random.default_rng(0)
    damage = [
        {
            k: FLAT[curve](k / group.units, random.normal()) if k < group.units else 0.0
            for k in range(1, group.units + 1)
        }
        for group in analysis.groups
    ]
    assert 0.995 * 0.9 <= shares(analysis, allocate(analysis, damage, Budget(0.9)))[0] <= 0.9


def test_more_budget_does_no_more_damage():
    analysis = blocks(20)
    damage = prior(analysis)
    totals = [
        sum(curve[k] for curve, k in zip(damage, allocate(analysis, damage, Budget(share)), strict=True))
        for share in np.linspace(0.2, 1, 17)
    ]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == 0


def test_streams_are_cut_only_where_inner_widths_at_their_floor_do_not_reach_and_then_the_floor_falls():
    analysis = blocks(8)
    full = [group.units for group in analysis.groups]
    least = shares(analysis, [*full[:4], *(n // 4 for n in full[4:])])[0]
    inner = allocate(analysis, prior(analysis), Budget(least * 1.05), floor=0.25)
    assert inner[:4] == full[:4]
    streams = allocate(analysis, prior(analysis), Budget(least * 0.95), floor=0.25)
    assert streams[:4] != full[:4]
    assert all(k >= n / 4 for k, n in zip(streams, full, strict=True))
    lowered = allocate(analysis, prior(analysis), Budget(0.05), floor=0.25)
    assert any(k < n / 4 for k, n in zip(lowered, full, strict=True))
    assert shares(analysis, lowered)[0] <= 0.05


def test_without_measurements_groups_of_one_kind_keep_one_share():
    analysis = blocks(4, residual=True)
    groups = tuple(Group(str(g), 640, (), (), ()) for g in range(3))
    costs = tuple(Cost(1000, ({g: 1.0},)) for g in range(3))
    even = Analysis(groups, costs, costs)
    assert allocate(even, prior(even), Budget(0.5)) == [320, 320, 320]
    assert allocate(analysis, prior(analysis), Budget(0.5)) == allocate(analysis, prior(analysis), Budget(0.5))


def test_widths_between_the_multiples_are_taken_where_the_targets_need_them():
    groups = (Group("a", 64, (), (), ()), Group("b", 64, (), (), ()))
    macs = tuple(Cost(1000, ({g: 1.0},)) for g in range(2))
    kept = allocate(Analysis(groups, macs, macs), prior(Analysis(groups, macs, macs)), Budget(0.5391, 0.53))
    assert sum(kept) == 69


def test_of_two_targets_that_exclude_one_another_neither_is_exceeded():
    analysis = blocks(2)
    macs, params = shares(analysis, allocate(analysis, prior(analysis), Budget(0.9, 0.1)))
    assert macs <= 0.9
    assert params <= 0.105
    with pytest.raises(BudgetError, match=r"0\.001 of the params can't be met: what can be cut leaves at least 0\.\d+"):
        allocate(analysis, prior(analysis), Budget(0.9, 0.001))
