"""Declarations: what a file or a caller may say, and what is said where it doesn't fit."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from msgspec import Meta, Struct
from mutating import damaged

from zoo import catalog
from zoo.catalog import reader
from zoo.catalog.entry import Budget
from zoo.catalog.report import Report
from zoo.compression.low_rank.dwain import Dwain
from zoo.compression.low_rank.falor import Falor
from zoo.compression.low_rank.lockd import Lockd
from zoo.compression.low_rank.low_rank import LowRank
from zoo.compression.prune.prune import Prune
from zoo.declarations import Count, Finite, Name, Positive, Share, Whole, one_of, validated
from zoo.errors import StructureError, ZooError
from zoo.hub import repository
from zoo.structure.description import Description
from zoo.structure.graph.graph import Graph
from zoo.structure.plan import Plan
from zoo.training.distillation import Distil
from zoo.training.schedule import Machine, Schedule

# What doesn't fit.


class Leaf(Struct, frozen=True, forbid_unknown_fields=True):
    count: Count
    kind: Literal["one", "two"] = "one"


class Apple(Struct, tag_field="fruit", tag="apple", forbid_unknown_fields=True):
    leaves: dict[str, Leaf] = {}


class Pear(Struct, tag_field="fruit", tag="pear", forbid_unknown_fields=True):
    sizes: tuple[Count, ...] = ()


FRUITS = list[Apple | Pear]
TOLD = [
    (Count, 0, "x is 0, expected a whole number of at least 1"),
    (Count, True, "x is True, expected a whole number of at least 1"),
    (Count, 1.0, "x is 1.0, expected a whole number of at least 1"),
    (Count, "1", "x is '1', expected a whole number of at least 1"),
    (Count, 10**5000, "x is a number of thousands of digits, expected a whole number of at least 1"),
    (Whole, -1, "x is -1, expected a whole number of at least 0"),
    (Positive, math.nan, "x is nan, expected a number above 0"),
    (Positive, math.inf, "x is inf, expected a number above 0"),
    (Finite, -math.inf, "x is -inf, expected a finite number"),
    (Finite, 10**400, "x is 1000000000000000000000000000000000000...00000, expected a finite number"),
    (Share, 1.5, "x is 1.5, expected a share above 0, at most 1"),
    (Annotated[float, Meta(ge=1e-13, lt=1e3)], 0, "x is 0, expected a number of at least 1e-13, below 1,000"),
    (Annotated[int, Meta(ge=2, le=3)] | None, 4, "x is 4, expected a whole number from 2 to 3"),
    (Annotated[str, one_of(("a", "b.c"))], "bxc", "x is 'bxc', expected one of a, b.c"),
    (Annotated[str, one_of(("a", "b.c"))], "a\n", r"x is 'a\n', expected one of a, b.c"),
    (Annotated[list[int], Meta(max_length=2)], [1, 2, 3], "x is [1, 2, 3], expected a list of at most 2"),
    (str | list[str], ["a", 1], "x[1] is 1, expected text"),
    (bool | None, 1, "x is 1, expected true or false"),
    (dict[str, Finite], {"a": 1, "b": "c"}, "x.b is 'c', expected a finite number"),
    (dict[str, int], {"a\n": "c"}, r"x['a\n'] is 'c', expected a whole number"),
    (dict[Name, int], {"a" * 1001: 1}, f"x has the key '{'a' * 37}...{'a' * 38}', expected text of at most"),
    (FRUITS, {}, "x is {}, expected a list"),
    (FRUITS, [{"fruit": "apple"}, 3], "x[1] is 3, expected a table"),
    (FRUITS, [{}], "x[0]: unknown fruit None, known are apple, pear"),
    (FRUITS, [{"fruit": "fig"}], "x[0]: unknown fruit 'fig', known are apple, pear"),
    (FRUITS, [{"fruit": "pear", "leaves": {}}], "x[0]: unknown key 'leaves', known are fruit, sizes"),
    (FRUITS, [{"fruit": "pear", "sizes": [1, 0]}], "x[0].sizes[1] is 0, expected a whole number of at least 1"),
    (FRUITS, [{"fruit": "apple", "leaves": {"a": {"count": 1}, "b": {}}}], "x[0].leaves.b: missing 'count'"),
    (FRUITS, [{"fruit": "apple", "leaves": {"a": {"count": 1, "kind": "six"}}}], "kind is 'six', expected one or two"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "data", "message"), TOLD, ids=[message[:40] for *_, message in TOLD])
def test_what_does_not_fit_is_told_with_its_place_itself_and_what_was_expected(kind, data, message):
    with pytest.raises(StructureError) as caught:
        validated(kind, data, "x", StructureError)

    told = str(caught.value)
    if "10000" in message:  # of long values the two ends
        told = told.replace(told.split()[2], message.split()[2])
    assert message in told


def test_a_path_goes_on_from_a_place_and_begins_after_a_colon():
    for where, told in (("a.toml: entry", "a.toml: entry.count is 0, "), ("a.json:", "a.json: count is 0, ")):
        with pytest.raises(StructureError, match=f"^{told}"):
            validated(Leaf, {"count": 0}, where, StructureError)
    with pytest.raises(StructureError, match=r"^a\.json: missing 'count'$"):
        validated(Leaf, {}, "a.json:", StructureError)


def test_what_fits_is_given_as_it_was():
    fruits = [{"fruit": "apple", "leaves": {"a": {"count": 2}}}, {"fruit": "pear", "sizes": [1, 2]}]

    assert validated(FRUITS, fruits, "x", StructureError) == [Apple({"a": Leaf(2)}), Pear((1, 2))]
    kept = validated(list[Finite], [1, 1.0, 2**53], "x", StructureError)
    assert [type(value) for value in kept] == [int, float, int]


# Values made in Python.

WRONG = {
    Budget: {"macs": 0, "params": 1.5},
    Prune: {"criterion": "luck", "round_to": 0, "floor": 2, "ridge": math.nan, "exclude": 3},
    LowRank: {"round_to": 1.5, "ridge": 0, "smoothing": 2, "draws": True, "damping": -1, "steps": 0, "seed": -1},
    Falor: {"nsr_final_threshold": 0, "kl_final_threshold": math.nan, "data_steps": 0, "metric_steps": "5"},
    Lockd: {"nsr_threshold": math.inf, "temperature": True, "start": "pca", "start_steps": None},
    Dwain: {"trade_off_factor": -1, "reduction_factor": 1, "min_rank": 0, "finetune_last": 0},
    Distil: {"alpha": 2, "temperature": 0, "shares": (0.5, 0.6), "divergence": "reverse"},
    Schedule: {"epochs": -1, "steps": 0, "batch_size": 0, "lr": math.inf, "warmup": -1, "ema": 1, "clip": math.nan},
    Machine: {"precision": "fp8", "accumulation": 0, "compile": 1, "workers": -1, "logs": 3},
}


@pytest.mark.parametrize(
    ("kind", "field", "value"), [(kind, *pair) for kind, fields in WRONG.items() for pair in fields.items()]
)
def test_a_declaration_made_in_python_is_held_against_its_types_too(kind, field, value):
    needed = {"macs": 0.5} if kind is Budget else {}
    with pytest.raises(ZooError, match=r"\w+: \w+ is .*, expected |no criterion 'luck', known are obs, ") as caught:
        kind(**{**needed, field: value})
    assert "\n" not in str(caught.value)
    assert field in str(caught.value) or field == "criterion"


def test_numbers_of_numpy_are_numbers():
    assert Schedule(lr=np.float64(0.1)).lr == Budget(np.float64(0.1)).macs == 0.1


# Any JSON in the place of any part.

EMBEDDED = catalog.EMBEDDED / "digits_vit_pruned_50"
CONFIG = json.loads((EMBEDDED / "config.json").read_text())
NODES = [
    {"name": "conv", "op": "conv2d", "inputs": ["x"], "attributes": {"in_channels": 3, "kernel_size": [3, 3]}},
    {"name": "size", "op": "size", "inputs": ["conv"], "attributes": {"dim": 0}},
    {"name": "out", "op": "reshape", "inputs": ["conv", "size"], "attributes": {"shape": ["input", -1]}},
]
FAMILY = {
    "architecture": "resnet18",
    "base": "timm/resnet18",
    "input": [3, 32, 32],
    "recipe": {"options": {"floor": 1}},
}
MODEL = {
    "name": "a",
    "task": "image-classification",
    "preprocessing": {"mean": [0, 0, 0], "crop_pct": 0.9},
    "origin": {"repo": "a/b", "format": "timm"},
    "recipe": {"method": "prune", "budget": {"macs": 0.5}, "teachers": ["b"], "labels": {"cat": 1}, "seed": 1},
    "reported": [{"top1": 0.8, "input": 32, "counting": "ptdeco"}],
}


def described(data, folder):
    (folder / "config.json").write_text(json.dumps(data))  # in ASCII, which half a surrogate can be written in too
    return repository.describe_folder(folder, repository.read_config(folder))


DOORS = {
    "a plan": (lambda data, _: Plan.from_json(data), CONFIG["zoo"]["plan"], Plan),
    "a graph": (lambda data, _: Graph.from_json(data), {"inputs": ["x"], "outputs": ["out"], "nodes": NODES}, Graph),
    "a report": (lambda data, _: Report.from_json(data), json.loads((EMBEDDED / "results.json").read_text()), Report),
    "a configuration": (described, CONFIG, Description),
    "a catalog": (lambda data, _: reader.entries(Path("mine.toml"), data), {"family": FAMILY, "model": [MODEL]}, list),
}


@pytest.mark.parametrize("door", DOORS)
def test_whatever_stands_in_a_file_gives_a_value_or_an_error_of_one_line(door, tmp_path_factory):
    read, valid, kind = DOORS[door]
    folder = tmp_path_factory.mktemp("folder")
    assert isinstance(read(json.loads(json.dumps(valid)), folder), kind)

    @settings(max_examples=300, deadline=None)
    @given(damaged(valid))
    def gives(data):
        try:
            found, told = read(data, folder), ""
        except ZooError as error:
            found, told = None, str(error)
        assert found is None or isinstance(found, kind)
        assert "\n" not in told
        assert len(told) < 1_000

    gives()
