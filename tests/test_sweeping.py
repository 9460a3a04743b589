"""Sweeps: models for several budgets, made once, their table and knee, and the smallest that loses little enough."""

import json

import datasets
import pytest
from click import UsageError

from zoo.cli import making
from zoo.errors import BudgetError
from zoo.tasks.datasets import dataset
from zoo.verbs import beginning, sweeping
from zoo.verbs.sweeping import Point, kept, knee, smallest


def points(*pairs):
    return [Point(macs / 100, f"m{macs}", macs, 1, "top1", figure) for macs, figure in pairs]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(100, 0.9), (80, 0.89), (60, 0.88), (40, 0.5), (20, 0.1)], "m60"),
        ([(100, 0.9), (80, 0.4), (60, 0.2), (40, 0.1)], None),  # nothing lies above the line
        ([(100, 0.9), (50, 0.8)], None),
        ([(100, 0.9), (100, 0.9), (100, 0.9)], None),  # no budget made it smaller
    ],
)
def test_the_knee_lies_highest_above_the_line_from_the_first_to_the_last_point(pairs, expected):
    found = knee(points(*pairs))
    assert (found and found.name) == expected


@pytest.mark.parametrize(("lost", "impossible"), [(0.004, 0), (0.02, 0), (0.1, 0), (1.0, 12), (0.0, 0)])
def test_the_smallest_budget_is_that_which_looking_at_each_percent_finds(monkeypatch, tmp_path, lost, impossible):
    def figure(budget):
        return 0.9 - 0.3 * (1 - budget) ** 3

    def point(at, budget, folder, say, dense):
        if round(100 * budget) < impossible:
            raise BudgetError("too small")
        looked.append(budget)
        return Point(budget, str(budget), budget, 1, "top1", figure(budget))

    looked = []
    monkeypatch.setattr(sweeping, "_point", point)
    monkeypatch.setattr(sweeping, "dense_point", lambda *_: (Point(1.0, "dense", 1, 1, "top1", figure(1.0)), None))
    found = kept(smallest(lambda budget: budget, lost, tmp_path, print), lost)
    each = [share for share in range(max(impossible, 1), 101) if figure(1.0) - figure(share / 100) <= lost]
    assert found.budget == each[0] / 100
    assert len(looked) <= 7


def test_a_sweep_prints_a_table_draws_a_plot_and_makes_each_model_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(beginning, "report_of", lambda *_, **__: pytest.fail("the base is measured again"))
    options = ["--method", "low_rank", "--data", "digits[:64]", "--out", str(tmp_path), "--json"]
    line = ["digits_cnn", "--sweep", "0.5,0.8", *options]
    making.compress.main(line, standalone_mode=False)
    first, said = capsys.readouterr()
    found = json.loads(first)["points"]
    names = ["digits_cnn", "digits_cnn_lowrank_80", "digits_cnn_lowrank_50"]
    assert [(point["budget"], point["name"]) for point in found] == list(zip((1, 0.8, 0.5), names, strict=True))
    for point in found[1:]:
        results = json.loads((tmp_path / point["name"] / "results.json").read_text())["measured"]
        assert point["figure"] == results["top1"]
        assert all(point[key] == results[key] for key in ("macs", "params", "agreement", "kl"))
        assert point["macs"] <= point["budget"] * found[0]["macs"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "made already" not in said
    making.compress.main(line, standalone_mode=False)
    again, said = capsys.readouterr()
    assert again == first
    assert said.count("made already") == 2


def test_without_labels_what_may_be_lost_is_agreement_with_the_dense_model(tmp_path, capsys, monkeypatch):
    """The labels of the split that is evaluated are hidden, as those of well-known sets are."""
    monkeypatch.setattr(sweeping, "STEPS", 8)  # three models
    (tmp_path / "set").mkdir()
    for split, count in (("train", 64), ("test", 100)):
        stored = dataset("digits", split).select(range(count)).remove_columns("label")
        kind = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
        hidden = stored.add_column("label", [-1] * count, feature=kind)
        hidden.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    options = ["--method", "low_rank", "--set", "images=64", "--data", str(tmp_path / "set")]
    line = ["digits_cnn", "--lose-at-most", "5", *options, "--out", str(tmp_path / "out")]
    making.compress.main([*line, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    figures = {point["name"]: point["figure"] for point in found["points"]}

    assert {point["leading"] for point in found["points"]} == {"agreement"}
    assert figures["digits_cnn"] == 1
    assert figures[found["smallest"]] >= 0.95
    assert [*figures].index(found["smallest"]) > 0
    making.compress.main(line, standalone_mode=False)
    head, *rows = capsys.readouterr().out.strip().splitlines()
    assert head.split() == ["model", "budget", "macs", "params", "agreement", "kl"]
    assert next(row for row in rows if "loses at most 5 points" in row).split()[0] == found["smallest"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--sweep", "0.5", "--budget", "0.5"],
            "needs --budget SHARE, or one of --latency-ms, --sweep and --lose",
        ),
        (["--sweep", "0.5,2"], "2.0 is not in the range"),
        (["--sweep", "0.5", "--method", "falor"], "falor has thresholds"),
        (["--lose-at-most", "1", "--method", "falor"], "falor has thresholds"),
    ],
)
def test_what_a_sweep_is_said_must_go_together(tmp_path, options, expected):
    line = ["digits_cnn", "--data", "digits[:64]", "--out", str(tmp_path / "new"), *options]
    with pytest.raises(UsageError, match=expected):
        making.compress.main(line, standalone_mode=False)
