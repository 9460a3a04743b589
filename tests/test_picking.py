"""`zoo pick`: which models are contenders, what is kept of timings, and what is said."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from msgspec import structs

import zoo
from zoo import catalog
from zoo.catalog.dense import DATA, dense
from zoo.cli import cli
from zoo.errors import BudgetError, DataError, StorageError, StructureError
from zoo.measurement import latency
from zoo.measurement.latency import Timing
from zoo.verbs import picking, timings, watch
from zoo.verbs.contenders import Limits, contenders, family, load_lines, refused

TASK = "image-classification"
NONE = Limits()


# Contenders.


def test_accuracies_of_different_data_sets_never_meet():
    ours, _ = contenders("digits", TASK, NONE)
    theirs, _ = contenders(DATA, TASK, NONE)
    assert {catalog.info(each.name).dataset for each in ours} == {"digits"}
    assert not {each.name for each in ours} & {each.name for each in theirs}
    assert {catalog.info(each.name).dataset for each in theirs if not each.name.startswith("timm/")} == {DATA}


def test_contenders_are_the_most_accurate_of_each_structure_and_whatever_is_left_out_is_counted():
    found, left = contenders(DATA, TASK, NONE)
    assert len({each.structure for each in found}) == len(found) > 300
    best = max((row for row in dense() if row.architecture == "resnet50" and row.side == 224), key=lambda row: row.top1)
    mine = [each for each in found if each.name.startswith("timm/resnet50.") and each.side == 224]
    assert [(each.name, each.top1) for each in mine] == [(f"timm/{best.id}", best.top1)]
    entries = [catalog.info(name) for name in catalog.names(all=True)]
    of_data = [entry for entry in entries if entry.dataset == DATA and entry.task == TASK]
    own = {entry.origin.repo for entry in of_data if entry.origin and entry.origin.format == "timm"}
    rows = [row for row in dense() if f"timm/{row.id}" not in own]
    assert len(found) + sum(left.values()) == len(of_data) + len(rows)
    assert left["not built yet"] == sum(entry.status == "recipe" for entry in of_data)


def test_what_timm_has_compressed_is_compressed():
    found = {each.name: each for each in contenders(DATA, TASK, NONE)[0]}
    assert found["ecaresnet50d_pruned_58"].compressed
    assert "timm/ecaresnet50d_pruned.miil_in1k" not in found
    row = next(row for row in dense() if row.id == "ecaresnet50d_pruned.miil_in1k")
    assert found["ecaresnet50d_pruned_58"].top1 == row.top1  # at 224 pixels, which is what is timed


def test_an_entry_of_ones_own_that_says_it_is_embedded_and_is_not_leaves_the_others_to_be_picked(tmp_path, monkeypatch):
    family = '[family]\ntask = "image-classification"\narchitecture = "resnet18"\nbase = "timm/resnet18"\n'
    family += 'input = [3, 64, 64]\ndataset = "pets"\nlicense = "mit"\n'
    said = 'reported = [{source = "https://example.com", top1 = 0.9}]\n'
    mine = f'[[model]]\nname = "a"\nstatus = "embedded"\n{said}[[model]]\nname = "b"\nrepo = "me/b"\n{said}'
    (tmp_path / "mine.toml").write_text(family + mine)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))
    found, left = contenders("pets", TASK, NONE)
    assert [each.name for each in found] == ["b"]
    assert list(left.values()) == [1]


def test_measured_and_reported_are_told_apart():
    assert not any(each.reported for each in contenders("digits", TASK, NONE)[0])
    assert all(each.reported for each in contenders(DATA, TASK, NONE)[0] if each.name.startswith("timm/"))


ONE = next(each for each in contenders("digits", TASK, NONE)[0] if each.name == "digits_cnn")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, ""),
        ({"params": ONE.params, "macs": ONE.macs, "top1": ONE.top1, "licenses": ("mit", "apache-2.0")}, ""),
        ({"params": ONE.params - 1}, "parameters not as asked"),
        ({"macs": ONE.macs - 1}, "multiply-accumulates not as asked"),
        ({"top1": ONE.top1 + 1e-6}, "accuracy not as asked"),
        ({"memory_mb": 4 * ONE.params / 2**20 + 0.01}, ""),
        ({"memory_mb": 4 * ONE.params / 2**20 - 0.01}, "memory not as asked"),
        ({"licenses": ("mit",)}, "another licence"),
    ],
)
def test_what_is_asked_beside_latency(limits, reason):
    assert refused(ONE, Limits(**limits)) == reason


@pytest.mark.parametrize("key", ["params", "macs"])
def test_what_is_asked_and_not_known_is_left_out(key):
    assert refused(structs.replace(ONE, **{key: None}), Limits(**{key: 1e12})).endswith("not known")


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("resnet50d", "resnet"),
        ("tf_efficientnet_b0", "efficientnet"),
        ("vit_small_patch16_224", "vit"),
        ("swin_s3", "swin"),
    ],
)
def test_models_of_one_kind_have_one_family(architecture, kind):
    assert family(architecture) == kind


def test_how_a_model_is_loaded():
    named = structs.replace(ONE, name="timm/resnet18.a1_in1k")
    assert load_lines(ONE) == ('zoo.load("digits_cnn")',)
    assert load_lines(named)[1] == 'timm.create_model("resnet18.a1_in1k", pretrained=True)'


# A machine of which each digits' model takes a millisecond for 100 k parameters, which is what is kept.


class Watched:
    """In the place of the watch."""

    glances = ()
    interrupted = math.inf

    def __init__(self, device, batch, backend, dtype, clock, limit, conditions, bar):
        self.conditions = conditions

    def glance(self, contender):
        if len(self.glances) >= self.interrupted:
            raise KeyboardInterrupt
        self.glances.append(contender.name)
        ms = contender.params / 1e5
        timings.remember(self.conditions, {contender.structure: ms}, {})
        return ms

    def together(self, contenders, rounds):
        found = {each.structure: Timing(ms := each.params / 1e5, 0.99 * ms, 1.01 * ms) for each in contenders}
        timings.remember(self.conditions, {}, found)
        return found


@pytest.fixture
def glances(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(picking, "Watch", Watched)
    monkeypatch.setattr(Watched, "glances", seen := [])
    return seen


def test_the_most_accurate_that_is_fast_enough_is_picked(glances):
    entries = [catalog.info(name) for name in catalog.names("digits")]
    sizes = {entry.name: catalog.size(entry) for entry in entries if entry.dataset == "digits"}
    for limit in (0.5, 0.6, 2.0):
        fits = {name: size.top1 for name, size in sizes.items() if size.params / 1e5 <= limit}
        found = zoo.pick(limit, dataset="digits")
        assert found.winner.top1 == max(fits.values())
        assert found.winner.ms <= limit
        assert {found.winner.compressed: found.winner}.items() <= {True: found.compressed, False: found.dense}.items()


def test_what_was_timed_is_not_timed_again_unless_it_is_asked_or_the_machine_is_another(glances):
    first = zoo.pick(1.0, dataset="digits")
    assert glances
    glances.clear()
    again = zoo.pick(1.0, dataset="digits")
    assert glances == []
    assert (again.winner, again.front) == (first.winner, first.front)
    for other in ({"fresh": True}, {"batch": 2}, {"threads": 2}, {"dtype": torch.float64}, {"clock": "cpu"}):
        glances.clear()
        assert zoo.pick(1.0, dataset="digits", **other).winner == first.winner
        assert glances


def test_what_was_timed_before_it_was_interrupted_is_kept(glances, monkeypatch):
    monkeypatch.setattr(Watched, "interrupted", 2)
    with pytest.raises(KeyboardInterrupt):
        zoo.pick(1.0, dataset="digits")
    monkeypatch.setattr(Watched, "interrupted", math.inf)
    zoo.pick(1.0, dataset="digits")
    assert len(glances) == len({*glances})


@pytest.mark.parametrize("damage", ["", "[]", '{"glances": {"a": -1}}', "{"])
def test_a_file_of_timings_that_cannot_be_read_is_as_none(glances, damage):
    conditions = zoo.pick(1.0, dataset="digits").conditions
    timings.file_of(conditions).write_text(damage)
    assert timings.known(conditions) == ({}, {})
    timings.remember(conditions, {"a": 1.0}, {})
    assert timings.known(conditions) == ({"a": 1.0}, {})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, BudgetError, "pick: say how fast it must be, or how accurate: max_latency_ms=8 or min_top1=0.8"),
        ({"max_latency_ms": 0}, BudgetError, "pick: max_latency_ms is 0, expected milliseconds above 0"),
        ({"min_top1": 80}, BudgetError, "pick: min_top1 is 80, expected a share above 0, at most 1, such as 0.8"),
        (
            {"max_latency_ms": 1, "max_params": 9},
            BudgetError,
            "pick: no model is as asked (11 parameters not as asked)",
        ),
        ({"max_latency_ms": 1e-9}, BudgetError, "pick: no model takes at most 1e-09 ms here; the fastest of"),
        ({"max_latency_ms": 1, "dataset": "dogs"}, DataError, "by its accuracy on dogs; known are"),
        ({"max_latency_ms": 1, "backend": "abacus"}, StructureError, "backend 'abacus'"),
        ({"max_latency_ms": 1, "device": "meta"}, StructureError, "device 'meta'"),
        ({"max_latency_ms": 1, "batch": 0}, StructureError, "pick: batch is 0, expected a whole number from 1"),
        ({"max_latency_ms": 1, "threads": 0}, StructureError, "pick: threads is 0, expected a whole number from 1"),
        ({"max_latency_ms": 1, "dtype": torch.int8}, StructureError, "pick: dtype is torch.int8, expected a floating"),
        (
            {"max_latency_ms": 1, "dataset": DATA, "task": "object-detection"},
            DataError,
            "no model for object-detection",
        ),
    ],
)
def test_what_cannot_be_is_one_line(glances, options, error, message):
    with pytest.raises(error, match=re.escape(message)) as found:
        zoo.pick(**{"dataset": "digits", **options})
    assert "\n" not in str(found.value)


# The command line.


def run(*line):
    return CliRunner().invoke(cli, ["pick", "--dataset", "digits", *line], catch_exceptions=False)


def test_the_command_line_says_what_to_load_and_whether_compression_pays(glances):
    said = run("--max-latency-ms", "0.6").output
    assert 'zoo.load("digits' in said
    assert re.search(r"at 0.6 ms the best compressed model, .*|no dense model is as asked", said)
    assert "picked" in said


def test_a_busy_machine_is_told_and_that_none_of_a_kind_was_timed_is_not_that_there_is_none(glances, monkeypatch):
    monkeypatch.setattr(picking, "waiting", lambda threads: lambda: 0.5)
    said = run("--max-latency-ms", "0.5").output
    assert "this machine is busy: for 50% of the time" in said
    assert "\nof those that were timed, no dense model is as asked\n" in said


def test_json_is_the_whole_pick(glances):
    found = json.loads(run("--max-latency-ms", "0.6", "--json").stdout)
    assert found["winner"] == json.loads(json.dumps(zoo.pick(0.6, dataset="digits").to_json()["winner"]))
    assert found["contenders"] == 11
    assert found["conditions"]["batch"] == 1


def test_the_plot_appears_whole(glances, tmp_path):
    run("--max-latency-ms", "2", "--plot", str(tmp_path / "pick.png"))
    assert (tmp_path / "pick.png").read_bytes().startswith(b"\x89PNG")


def test_where_the_plot_cannot_be_written_the_pick_is_told_all_the_same(glances, tmp_path, capfd):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"pick\.png can't be written"):
        cli(["pick", "--dataset", "digits", "--max-latency-ms", "2", "--plot", str(tmp_path / "file" / "pick.png")])
    assert 'zoo.load("digits' in capfd.readouterr().out


@pytest.mark.parametrize(("clock", "share", "kept"), [("wall", 0.5, False), ("wall", 0.01, True), ("cpu", 0.5, True)])
def test_what_was_timed_while_others_had_the_cores_is_not_kept(clock, share, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(watch, "waiting", lambda threads: lambda: share)
    found = zoo.pick(1e4, dataset="digits", max_params=53_000, clock=clock)
    assert [bool(each) for each in timings.known(found.conditions)] == [kept, kept]


def test_a_glance_that_is_kept_tells_nothing_of_the_time_when_others_had_the_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    waits, took = iter([0.5, 0.5, 0.0, 0.0]), iter([*[8.0] * 12, *[2.0] * 12])  # of two that run beside each other
    monkeypatch.setattr(watch, "waiting", lambda threads: lambda: next(waits))
    monkeypatch.setattr(watch.Watch, "_started", lambda self, contender: contender.name)
    monkeypatch.setattr(watch.Watch, "_spent", lambda self, call: next(took))
    bar = SimpleNamespace(update=lambda: None)
    eye = watch.Watch(torch.device("cpu"), 1, "eager", None, "wall", None, {"machine": "this"}, bar)
    found = [eye.glance(SimpleNamespace(name=name, structure=name)) for name in "abcd"]

    assert found == [8.0, 8.0, 2.0, 2.0]
    assert timings.known({"machine": "this"})[0] == {"c": 2.0, "d": 2.0}


def test_waiting_is_the_share_of_the_time_that_threads_were_ready_and_others_had_the_cores(monkeypatch):
    monkeypatch.setattr(latency, "waited", iter([2.0, 5.0, None]).__next__)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=iter([10.0, 20.0, 30.0]).__next__))
    share = latency.waiting(2)
    assert share() == 3 / 10 / 2
    assert share() is None


def test_three_models_are_really_timed(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    found = zoo.pick(1e4, dataset="digits", max_params=53_000, seconds=60)
    assert found.contenders == 3
    assert found.winner.top1 == max(each.top1 for each in found.timed)
    assert 0 < found.winner.low <= found.winner.ms <= found.winner.high
