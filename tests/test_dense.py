"""timm's table of results: what of it is kept, and that the models cost what the rows say."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

from zoo.catalog.dense import FILE, dense


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parent.parent / "scripts" / "timm_results.py"
    spec = importlib.util.spec_from_file_location("timm_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_small_sorted_and_names_its_source():
    lines = FILE.read_text().splitlines()
    assert FILE.stat().st_size < 100_000
    assert re.search(r"pytorch-image-models/blob/[0-9a-f]{40}/results/results-imagenet\.csv", lines[0])
    assert "Apache-2.0" in lines[1]
    rows = dense()
    assert len(rows) > 500
    assert len({row.id for row in rows}) == len(rows)
    assert [row.top1 for row in rows] == sorted((row.top1 for row in rows), reverse=True)
    assert all(0.4 < row.top1 < 0.91 and row.params > 1e5 and row.macs > 1e7 and row.layers > 10 for row in rows)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.7, 0.9, 0.97])
def test_what_a_row_costs_is_what_is_counted(place, script):
    row = dense()[int(place * len(dense()))]
    assert list(script.counted(row.id)) == [row.params, row.macs, row.layers, row.outputs]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"top1_err": "31.755"}, "doesn't add up"),
        ({"model": "resnet18.a9_in1k"}, "no longer in timm"),
        ({"img_size": "224"}, "of another input than the model's own"),
        ({"param_count": "11.71"}, "has other parameters here"),
    ],
)
def test_a_row_of_timms_table_is_kept_where_it_is_of_the_model_that_timm_builds(changed, reason, script, capsys):
    top1 = {"top1": "65.664", "top1_err": "34.336"}
    row = {"model": "resnet18.a3_in1k", "img_size": "160", **top1, "param_count": "11.69", **changed}
    found = list(script.rows([row], left := Counter()))
    assert left == ({reason: 1} if reason else {})
    assert len(found) == (not reason)
