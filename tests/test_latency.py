"""A latency in place of a budget: rough cuts are timed, the method runs at the share found, and the result is timed."""

import itertools
import json
import re

import pytest
import torch
from click.testing import CliRunner
from conftest import CNN, disturbed
from torch import nn

import zoo
from zoo.cli import cli
from zoo.compression import latency
from zoo.compression.latency import reached, share_at
from zoo.errors import BudgetError
from zoo.measurement.latency import milliseconds, processor
from zoo.structure.description import Description, attach_


class Timed(nn.Module):
    """A model that takes so long."""

    def __init__(self, ms):
        super().__init__()
        self.ms, self.pretrained_cfg = ms, {"input_size": (1, 2, 2)}


def law(share):
    """Milliseconds of a rough cut: 4 that no cut saves."""
    return 4 + 6 * share


def asked(ms, off=1.0, least=0.0, ours=law):
    """Reach a latency where what a method makes takes `off` times as long as a rough cut; result, shares it ran at."""
    ran = []

    def rough(share):
        if share < least:
            raise BudgetError("none is as small")
        return Timed(ours(share))

    def made(share):
        ran.append(share)
        return Timed(off * ours(share))

    return reached(Timed(ours(1.0)), ms, rough, made).ms, ran


@pytest.fixture(autouse=True)
def _told(monkeypatch):
    monkeypatch.setattr(latency, "milliseconds", lambda models, size: [model.ms for model in models])


@pytest.mark.parametrize("ms", [9.5, 7.0, 5.0])
def test_the_share_is_that_whose_rough_cut_is_as_fast(ms):
    found, ran = asked(ms)
    assert found == pytest.approx(ms)
    assert ran == [pytest.approx((ms - 4) / 6)]


def test_between_the_first_cuts_others_are_timed():
    found, ran = asked(6.0, ours=lambda share: 4 + 6 * share**3)
    assert abs(found / 6.0 - 1) < 0.03
    assert len(ran) == 1


@pytest.mark.parametrize(("off", "runs"), [(1.02, 1), (0.95, 1), (1.2, 2), (0.8, 2)])
def test_a_result_that_misses_is_made_once_more(off, runs):
    found, ran = asked(7.0, off)
    assert len(ran) == runs
    assert 0.9 * 7.0 <= found <= 1.03 * 7.0
    if runs == 2:
        assert law(ran[1]) == pytest.approx(7.0 / off)


def test_of_two_results_that_miss_the_one_within_what_is_asked_is_taken(caplog):
    found, _ = asked(7.0, off=1.2, least=0.49)  # no cut is as small as would be needed
    assert found <= 1.2 * 7.0
    times = iter([12.0, 6.5, 6.0])
    made = lambda share: Timed(next(times))  # noqa: E731
    assert reached(Timed(10.0), 7.0, lambda share: Timed(law(share)), made).ms == 6.5


@pytest.mark.parametrize(
    ("ms", "least", "message"),
    [
        (11.0, 0.0, "latency of 11 ms: the dense model takes 10 ms here; ask for less"),
        (
            5.0,
            0.4,
            "the smallest cut that was tried, 50% of the macs, takes 7 ms here, the dense model 10",
        ),
        (5.0, 0.9, "next to nothing of the model can be cut"),
    ],
)
def test_what_cannot_be_is_one_line(ms, least, message):
    with pytest.raises(BudgetError, match=re.escape(message)):
        asked(ms, least=least)


def test_a_smaller_cut_takes_no_longer():
    assert share_at({1.0: 10.0, 0.5: 6.0, 0.25: 6.5, 0.1: 5.0}, 5.5) < 0.25


def test_a_machine_that_is_slower_for_a_while_is_told_apart(monkeypatch):
    slow = itertools.chain([1.0] * 3, itertools.repeat(2.0))

    def told(models, size):
        slower = next(slow)
        return [slower * model.ms for model in models]

    monkeypatch.setattr(latency, "milliseconds", told)
    found, ran = asked(7.0)
    assert (found, len(ran)) == (pytest.approx(7.0), 1)


# The clock.


class Ticking(nn.Module):
    """A model that moves a clock on, by one span after the other."""

    def __init__(self, clock, *spans):
        super().__init__()
        self.clock, self.spans = clock, itertools.cycle(spans)

    def forward(self, images):
        self.clock[0] += next(self.spans)
        return images


def test_models_take_turns_and_what_is_rarely_slow_is_left_out():
    now = [0.0]
    models = [Ticking(now, 0.004), Ticking(now, 0.004, 0.004, 0.004, 0.004, 0.5), Ticking(now, 0.002)]
    found = milliseconds(models, (1, 2, 2), lambda: now[0])
    assert found == [pytest.approx(4.0), pytest.approx(4.0), pytest.approx(2.0)]


def test_a_machine_that_is_too_noisy_says_so():
    now = [0.0]
    slow = itertools.cycle([0.002, 0.002, 0.004, 0.004])  # two calls a turn: every other turn is slow
    model = Ticking(now, *[0.002] * 4, *itertools.islice(slow, 4 * 400))
    with pytest.raises(BudgetError, match=r"^this machine is too noisy to tell: the same model took 2 ms and 4 ms"):
        milliseconds([model], (1, 2, 2), lambda: now[0])


# Whole methods: with a machine that takes a nanosecond for each multiply-accumulate.


@pytest.fixture
def by_macs(monkeypatch):
    def told(models, size):
        return [zoo.measure(model, size).macs / 1e6 for model in models]

    monkeypatch.setattr(latency, "milliseconds", told)


@pytest.mark.parametrize("method", ["prune", "low_rank"])
def test_a_method_makes_what_is_as_fast_and_its_recipe_says_on_which_machine(method, by_macs):
    model = disturbed(CNN, 32)
    attach_(model, Description("dense", CNN))
    whole = zoo.measure(model).macs / 1e6
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smaller = zoo.compress(model, latency_ms=round(0.8 * whole, 4), data=images, method=method)
    assert 0.6 * whole < zoo.measure(smaller).macs / 1e6 <= 1.03 * 0.8 * whole
    assert smaller.zoo_entry.recipe["options"] == {"latency_ms": round(0.8 * whole, 4), "timed_on": processor()}
    assert smaller.zoo_entry.name.endswith("ms")
    assert "thread" in processor()


def test_the_command_line_asks_for_a_latency_and_its_recipe_carries_it(by_macs, tmp_path):
    line = ["digits_cnn", "--data", "digits[:64]", "--method", "low_rank", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(cli, ["compress", *line, "--latency-ms", "1.5"], catch_exceptions=False)
    assert found.exit_code == 0
    made = json.loads((tmp_path / "out" / "config.json").read_text())["zoo"]
    assert (made["name"], made["recipe"]["options"]["latency_ms"]) == ("digits_cnn_lowrank_1.5ms", 1.5)
    assert made["recipe"]["options"]["timed_on"] == processor()
    assert 1.2e6 < zoo.measure(zoo.load(tmp_path / "out")).macs <= 1.03 * 1.5e6


def test_a_graph_is_timed_as_a_graph(by_macs):
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(1152, 4)]
    model = nn.Sequential(*layers).eval()
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ms = 0.7 * zoo.measure(model, (3, 16, 16)).macs / 1e6
    smaller = zoo.compress(model, latency_ms=ms, data=images, example=(3, 16, 16))
    assert zoo.measure(smaller).macs / 1e6 <= 1.03 * ms


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"latency_ms": 5, "budget": 0.5}, "latency of 5 ms: a budget is given too: leave one of them out"),
        ({"latency_ms": 5, "method": "falor"}, "latency of 5 ms: falor has thresholds"),
    ],
)
def test_a_latency_stands_in_place_of_a_budget(options, expected, cnn):
    attach_(cnn, Description("dense", CNN))
    with pytest.raises(BudgetError, match=f"^{expected}$"):
        zoo.compress(cnn, data=torch.randn(2, 3, 32, 32), **options)
