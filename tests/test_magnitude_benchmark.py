"""The benchmark of pruning after training: the source's params, one row from its network to its line, and its page."""

import argparse
import json

import pytest

from builders import magnitude_benchmark as benchmark


@pytest.mark.parametrize("network", benchmark.SOURCE["network"], ids=lambda each: each["name"])
def test_networks_of_ten_classes_have_the_params_that_the_source_reports(network):
    assert benchmark.params_of(network["name"]) == network["params"]


def test_the_source_has_a_figure_of_every_way_and_the_first_is_dense():
    ways = benchmark.SOURCE["ways"]
    assert ways == list(benchmark.WAYS)[: len(ways)]
    for network in benchmark.SOURCE["network"]:
        assert len(network["ms"]) == len(network["top1"]) == len(ways)
        assert max(network["ms"]) == network["ms"][0]


def test_the_quick_one_measures_two_ways_and_takes_what_is_there_from_the_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "OUT", tmp_path)
    benchmark.main(["--quick"])
    rows = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    masked, dense = (rows[name] for name in sorted(rows, key=lambda name: "dense" in name))
    assert masked["params"] == dense["params"]
    assert 0.65 < masked["nonzero"] / masked["params"] < 0.75
    assert masked["macs"] == dense["macs"]

    first = capsys.readouterr().out
    monkeypatch.setattr(benchmark, "WAYS", {})
    benchmark.main(["--quick"])

    assert capsys.readouterr().out == first


def test_the_page_holds_what_was_measured_beside_what_the_source_reports():
    found = {"params": 9, "nonzero": 7, "macs": 10**9, "ms": 2.0, "verdict": "no difference"}
    found |= {"ratio": 1.0, "ratio_low": 0.98, "ratio_high": 1.02, "top1": 0.5}
    rows = {("efficientnet_b4", "l1_unstructured 0.3"): found, ("efficientnet_b4", benchmark.NARROWED): found}

    page = benchmark.page(rows, argparse.Namespace(side=64, batch=1, rounds=20))

    line = "| 9 | 7 | 1.000 G | 2 | 1.00x (0.98 to 1.02) | no difference |"
    assert f"| efficientnet_b4 | l1_unstructured 0.3 {line} 2.23, 5.70x | 50.0 | 7.8 |" in page
    assert f"| efficientnet_b4 | {benchmark.NARROWED} {line} - | 50.0 | - |" in page
