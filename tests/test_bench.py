"""Latency of models that take turns: what is told of simulated noise, and `zoo bench`."""

import itertools
import json
import random
import re
import sys
from dataclasses import replace
from math import comb

import pytest
import torch
from click.testing import CliRunner
from conftest import CNN, disturbed
from torch import nn

import zoo
from zoo.cli import cli
from zoo.errors import RepositoryError, StructureError
from zoo.measurement import latency
from zoo.measurement.latency import Timing, compare, interval, turns
from zoo.structure.description import attach_
from zoo.verbs import benching, candidates, cold_starts
from zoo.verbs.backends import BACKENDS, Backend

# The statistics, by a machine whose every call takes what is simulated.


drawn = random.Random  # of noise, and of orders


class Machine:
    """Calls that take so many milliseconds, times what the machine does meanwhile."""

    def __init__(self, noise):
        self.now, self.noise = 0.0, noise

    def call(self, ms):
        def run():
            self.now += 1e-3 * ms * next(self.noise)

        return run

    def told(self, ms, rounds=50, seed=0, copied=True):
        """A model of so many milliseconds beside a base of 10."""
        calls = {"model": self.call(ms), "base": self.call(10.0)}
        copy = self.call(10.0) if copied else None
        clock = lambda: self.now  # noqa: E731
        return compare(calls, "base", copy, rounds=rounds, clock=clock, order=drawn(seed))["model"]


def white(seed, scatter=0.02):
    draw = drawn(seed)
    while True:
        yield draw.lognormvariate(0, scatter)


def drifting(seed):
    """A machine that gets half as fast again in some hundred calls, and recovers."""
    return (each * (1 + 0.5 * (n % 300) / 300) for n, each in enumerate(white(seed)))


def in_bursts(seed):
    """Another process comes and goes."""
    draw, busy = drawn(seed), False
    for each in white(seed + 1):
        busy ^= draw.random() < 0.05
        yield each * (1 + busy)


def periodic(seed):
    """Every third turn, of two calls each, is slow: with a fixed order it is always the same model's."""
    slow = itertools.cycle([1, 1, 1, 1, 1.3, 1.3])
    return (each * next(slow) for each in white(seed))


NOISES = [white, lambda seed: white(seed, 0.3), drifting, in_bursts, periodic]


@pytest.mark.parametrize("noise", NOISES)
def test_a_model_beside_itself_is_never_told_apart_in_fifty_repetitions(noise):
    verdicts = {Machine(noise(seed)).told(10.0, seed=seed).verdict for seed in range(50)}
    assert verdicts <= {"no difference", "can't tell"}


@pytest.mark.parametrize("noise", [white, drifting, in_bursts])
def test_a_tenth_is_found_where_times_scatter_by_two_per_cent(noise):
    found = [Machine(noise(seed)).told(10.0 / 1.1, seed=seed) for seed in range(20)]
    assert sum(each.verdict == "faster" for each in found) >= 18
    assert all(each.ratio_low <= 1.1 <= each.ratio_high for each in found)
    assert all(abs(each.ratio - 1.1) < 0.03 for each in found)


def test_without_a_copy_intervals_alone_would_claim_what_lies_in_memory():
    """Copies of a network are about a per cent apart; that is less than is ever told."""
    found = [Machine(white(seed, 0.005)).told(10.0 / 1.02, seed=seed, copied=False) for seed in range(10)]
    assert all(each.ratio_low > 1 for each in found)
    assert {each.verdict for each in found} == {"no difference"}


def test_where_noise_is_large_nothing_can_be_told_but_what_is_larger():
    assert {Machine(white(seed, 0.3)).told(10.0 / 1.1, seed=seed).verdict for seed in range(10)} == {"can't tell"}
    assert Machine(white(0, 0.3)).told(2.0).verdict == "faster"
    assert Machine(white(0, 0.3)).told(50.0).verdict == "slower"


@pytest.mark.parametrize("n", [14, 15, 16, 50, 101])
def test_the_interval_leaves_out_the_median_in_one_of_ten_thousand(n):
    low, high = interval([*range(n)])
    below = [sum(comb(n, j) for j in range(k)) / 2**n for k in range(n // 2)]  # P(Bin(n, ½) < k)
    k = max(k for k, tail in enumerate(below) if 2 * tail <= 1e-4)
    assert (low, high) == ((k - 1, n - k) if k else (-float("inf"), float("inf")))


def test_few_rounds_tell_nothing():
    assert Machine(white(0)).told(1.0, rounds=14).verdict == "can't tell"
    assert Machine(white(0)).told(1.0, rounds=15).verdict == "faster"


@pytest.mark.parametrize(
    ("interval", "margin", "verdict"),
    [
        ((1.04, 1.2), 0.03, "faster"),
        ((1.04, 1.2), 0.05, "can't tell"),
        ((1.01, 1.02), 0.03, "no difference"),
        ((0.95, 1.05), 0.03, "no difference"),
        ((0.5, 0.9), 0.05, "slower"),
        ((0.5, 0.96), 0.05, "can't tell"),
        ((-float("inf"), float("inf")), 0.03, "can't tell"),
    ],
)
def test_what_is_told_of_an_interval(interval, margin, verdict):
    assert Timing(1, 1, 1, 1.0, *interval, margin).verdict == verdict
    if verdict in ("faster", "slower"):
        low, high = interval
        other = {"faster": "slower", "slower": "faster"}[verdict]
        assert Timing(1, 1, 1, 1.0, 1 / high, 1 / low, margin).verdict == other


# How turns are taken.


def test_each_round_has_another_order_and_every_model_has_been_warmed_up():
    machine, said = Machine(itertools.repeat(1.0)), []

    def call(name):
        run = machine.call(5.0)
        return lambda: (said.append(name), run())

    found = turns([call("a"), call("b"), call("c")], 40, lambda: machine.now, drawn(0))
    assert [len(times) for times in found] == [40] * 3
    assert all(each == pytest.approx(5.0) for times in found for each in times)
    warm = len(said) - 2 * 3 * 40  # a turn has a call that isn't counted and one that is
    assert said[:warm] == sorted(said[:warm])
    rounds = ["".join(said[warm + 6 * r : warm + 6 * r + 6 : 2]) for r in range(40)]
    assert {*rounds} == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_warming_up_goes_on_until_calls_get_no_faster():
    slow = itertools.chain([100.0, 50.0, 20.0, 12.0, 11.0], itertools.repeat(10.0))
    machine = Machine(slow)
    found = turns([machine.call(1.0)], 3, lambda: machine.now)
    assert found == [[pytest.approx(10.0)] * 3]


def test_what_is_fast_is_called_several_times_in_a_turn_all_models_as_often():
    machine, calls = Machine(itertools.repeat(1.0)), [0, 0]

    def call(which, ms):
        run = machine.call(ms)

        def counted():
            calls[which] += 1
            run()

        return counted

    fast, slow = turns([call(0, 0.25), call(1, 1.0)], 10, lambda: machine.now)
    assert (fast, slow) == ([pytest.approx(0.25)] * 10, [pytest.approx(1.0)] * 10)
    assert calls == [10 * (1 + 8) + 4] * 2


# The verb.


@pytest.fixture
def by_macs(monkeypatch):
    """A machine on which a model takes as long as its macs say."""
    machine = Machine(itertools.repeat(1.0))

    def started(model, images):
        ms = zoo.measure(model, images.shape[1:]).macs / 1e5 * len(images)
        return machine.call(ms)

    monkeypatch.setitem(BACKENDS, "eager", Backend(lambda model, images: model, started))
    monkeypatch.setitem(latency.CLOCKS, "wall", lambda: machine.now)


def test_a_model_of_the_list_stands_below_the_dense_one_that_it_was_made_of(by_macs):
    found = zoo.bench(["digits_cnn_pruned_25", "digits_cnn_pruned_50"], batch=[1, 4])
    names = ["digits_cnn", "digits_cnn_pruned_25", "digits_cnn_pruned_50"]
    assert [(row.name, row.batch) for row in found.rows] == [(name, batch) for batch in (1, 4) for name in names]
    dense, quarter, half = found.rows[:3]
    assert (dense.base, quarter.base, half.base) == (None, "digits_cnn", "digits_cnn")
    assert quarter.timing.ratio == pytest.approx(dense.macs / quarter.macs)
    assert [row.verdict for row in found.rows[:3]] == [None, "faster", "faster"]
    assert found.rows[3].timing.ms == pytest.approx(4 * dense.timing.ms)
    assert (found.rounds, found.threads, found.device) == (benching.ROUNDS, 1, "cpu")


def test_a_dense_model_among_them_is_the_base_itself(by_macs):
    names = ["timm/resnet18", "digits_cnn_pruned_25", "digits_cnn"]
    rows = zoo.bench(names, rounds=15).rows
    assert [(row.name, row.base) for row in rows] == [
        ("timm/resnet18", None),
        ("digits_cnn", None),
        ("digits_cnn_pruned_25", "digits_cnn"),
    ]


def test_what_all_are_compared_with_can_be_said_and_left_out(by_macs):
    model = disturbed(CNN, 32)
    rows = zoo.bench([model, model], base=model, rounds=15, input=(3, 32, 32)).rows
    assert [(row.base, row.verdict) for row in rows] == [(None, None), *[("ResNet (base)", "no difference")] * 2]
    assert [row.name for row in rows] == ["ResNet (base)", "ResNet", "ResNet (2)"]
    alone = zoo.bench("digits_cnn_pruned_25", base=False, rounds=15).rows
    assert [(row.name, row.base, row.timing.ratio) for row in alone] == [("digits_cnn_pruned_25", None, None)]


def test_a_model_that_is_named_as_its_base_is_told_apart_by_a_number(by_macs):
    smaller = zoo.load("digits_cnn_pruned_25")
    attach_(smaller, replace(smaller.zoo_entry, name="digits_cnn"))
    rows = zoo.bench(smaller, rounds=15).rows
    assert [(row.name, row.base) for row in rows] == [("digits_cnn", None), ("digits_cnn (2)", "digits_cnn")]


def test_nothing_is_fetched_and_a_graph_without_weights_is_built_with_zeros(monkeypatch):
    reference = zoo.load("digits_cnn_int8")
    described = reference.zoo_entry, dict(reference.pretrained_cfg)
    monkeypatch.setattr(candidates, "description_named", lambda name: described)
    found = candidates.candidate("me/somewhere")
    assert found.macs == zoo.measure(reference).macs
    assert found.base == reference.zoo_entry.base
    assert not any(each.any() for each in found.model.buffers())
    assert found.model(found.images(2)).shape == (2, 10)


def test_a_module_is_copied_and_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rows = zoo.bench(model, input=(1, 8, 8), rounds=15, dtype=torch.float64).rows
    assert [(row.name, row.base, row.macs) for row in rows] == [("Sequential", None, 2 * 9 * 36)]
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {each.dtype for each in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["digits_cnn_pruned_25", "digits_cnn_int8"])
def test_onnxruntime_computes_floats_and_integers(name):
    pytest.importorskip("onnxscript")
    rows = zoo.bench(name, base=False, backend="onnxruntime", rounds=15, batch=2).rows
    assert [(row.name, row.backend) for row in rows] == [(name, "onnxruntime")]
    assert rows[0].timing.ms > 0


def test_an_onnx_file_is_computed_by_onnxruntime_and_by_nothing_else(tmp_path):
    pytest.importorskip("onnxscript")
    file = zoo.export("digits_cnn_int8", onnx=tmp_path / "digits.onnx")
    rows = zoo.bench(str(file), base="digits_cnn", rounds=15).rows
    assert [(row.name, row.backend, row.input) for row in rows] == [
        ("digits_cnn (base)", "eager", (1, 32, 32)),
        (str(file), "onnxruntime", (1, 32, 32)),
    ]
    said = run(str(file), "--base", "digits_cnn", "--rounds", "15")[1]
    assert f"{file}: computed by another backend than the base" in said.replace("\n", "")
    with pytest.raises(StructureError, match="torch doesn't compute an ONNX file: leave --backend out"):
        zoo.bench(str(file), backend="eager")
    with pytest.raises(RepositoryError, match=r"no file nowhere\.onnx: zoo export MODEL --onnx"):
        zoo.bench("nowhere.onnx")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here, whose queue a call must wait for")
@pytest.mark.gpu
def test_on_an_accelerator_a_call_ends_when_its_work_does():
    row = zoo.bench("timm/resnet50", device="cuda", batch=64, rounds=15).rows[0]
    assert row.timing.ms > 1  # launching alone takes less


def test_a_fresh_process_tells_seconds_and_memory_and_has_no_module_of_this_one(monkeypatch):
    monkeypatch.setattr(cold_starts, "STARTS", 1)
    row = zoo.bench("digits_cnn", rounds=1, cold=True).rows[0]
    assert row.cold.cold_s > 100 * row.timing.ms / 1e3
    assert 100 < row.cold.memory_mb < 4000  # of which torch alone takes 200 at least
    with pytest.raises(StructureError, match="Conv2d is a module of this process, which no fresh one has"):
        zoo.bench(nn.Conv2d(1, 1, 1), input=(1, 2, 2), rounds=1, cold=True)


def test_threads_are_as_many_as_before():
    assert zoo.bench("digits_cnn", threads=2, rounds=15).threads == 2
    assert torch.get_num_threads() == 1


# The command line.


def run(*line):
    found = CliRunner().invoke(cli, ["bench", *line])
    return found.exit_code, found.output, found.exception


def test_the_table_says_what_is_told_and_where_it_holds(by_macs):
    code, said, _ = run("digits_cnn_pruned_25", "--rounds", "15")
    assert code == 0
    words = ["1 thread;", "torch", "15 rounds", "digits_cnn", "eager", "585k", "4.01x", "4.01 to 4.01", "base"]
    assert all(word in said for word in words)


def test_of_a_busy_machine_it_is_said_what_can_not_be_told():
    from zoo.cli.benching import busy

    assert busy(None, "wall") == busy(0.04, "wall") == ""
    assert re.search("for 80% .* can't be told so: use a free one, or --threads 1 --clock cpu$", busy(0.8, "wall"))
    assert busy(0.8, "cpu").endswith(", which isn't counted")


def test_json_has_every_figure_by_its_name(by_macs, tmp_path):
    code, said, _ = run("digits_cnn", "--base", "digits_cnn", "--json", "--plot", str(tmp_path / "bench.png"))
    assert code == 0
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert {"machine", "device", "threads", "versions", "rounds", "waited"} <= {*found}
    row = found["rows"][1]
    assert (row["name"], row["verdict"], row["ratio_low"], row["ratio_high"]) == ("digits_cnn", "no difference", 1, 1)
    assert row["margin"] == latency.LEAST
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["digits_cnnn"], "no model 'digits_cnnn' in the catalog; did you mean digits_cnn"),
        (["timm/resnet"], "has no architecture 'resnet'"),
        (["./nowhere"], "no folder nowhere: expected a model repository"),
        (["digits_cnn", "--device", "cuda:9"], "bench: device 'cuda:9' can't be used here"),
        (["digits_cnn_int8", "--dtype", "bfloat16"], "computes in integers, and can't be given another dtype"),
        (["digits_cnn", "--backend", "onnxruntime", "--dtype", "bfloat16"], "onnxruntime computes in float32 here"),
        (["resnet18_v1_int8"], "isn't known yet"),
    ],
)
def test_what_cannot_be_is_one_line(line, expected):
    code, _, error = run(*line)
    assert code == 1
    assert expected in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch": 1.5}, "bench: batch is 1.5, expected a whole number from 1"),
        ({"batch": []}, "bench: nothing to time"),
        ({"threads": 0}, "bench: threads is 0, expected a whole number from 1"),
        ({"dtype": torch.int8}, "bench: dtype is torch.int8, expected a floating-point torch.dtype"),
        ({"input": (16, 16)}, "input is (16, 16), expected (channels, height, width)"),
    ],
)
def test_what_python_can_ask_and_cannot_be_is_one_line(options, expected):
    with pytest.raises(StructureError, match=re.escape(expected)):
        zoo.bench("digits_cnn", **options)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--batch", "0"], "'0' isn't a number from 1 on"),
        (["--batch", "1,a"], "'1,a' isn't a number from 1 on"),
        (["--rounds", "14"], "14 is not in the range x>=15"),
        (["--threads", "0"], "0 is not in the range x>=1"),
        (["--base", "digits_vit", "--alone"], "--base and --alone: leave one of them out"),
        (["--backend", "tvm"], "'tvm' is not one of 'eager', 'compile', 'onnxruntime'"),
    ],
)
def test_what_is_spelt_wrong_is_told_as_usage(line, expected):
    code, said, _ = run("digits_cnn", *line)
    assert code == 2
    assert expected in said


def test_an_extra_that_is_missing_is_named_before_anything_is_built(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "some.onnx").write_bytes(b"program")
    for line in (["digits_cnn", "--backend", "onnxruntime"], [str(tmp_path / "some.onnx")]):
        code, _, error = run(*line)
        assert code == 1
        assert str(error).startswith("onnxruntime isn't installed; it comes with: pip install 'compressed-zoo[")


def test_backends_of_the_command_line_are_those_of_the_table():
    from zoo.cli import benching as line

    assert (tuple(BACKENDS), tuple(latency.CLOCKS)) == (line.BACKENDS, line.CLOCKS)
