"""What the command line tells of methods and refuses before anything is imported."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from zoo.catalog.methods import METHODS, Apart, available, check_options
from zoo.cli import cli
from zoo.compression import algorithm
from zoo.declarations import arguments, meanings
from zoo.errors import UnknownName
from zoo.training.distillation import Distil
from zoo.training.schedule import Schedule


@pytest.mark.parametrize("words", [["--method", "{}", "--help"], ["--method={}", "-h"], ["--help", "--method", "{}"]])
def test_the_help_of_a_method_has_its_options_wherever_it_is_named(words):
    found = CliRunner().invoke(cli, ["compress", *(word.format("dwain") for word in words)], terminal_width=100)
    assert found.exit_code == 0
    assert "trade_off_factor" in found.output
    assert "proportion_weight" not in found.output


@pytest.mark.parametrize("method", available())
def test_the_help_of_a_method_has_every_option_of_it_and_of_its_training_with_its_default(method):
    found = CliRunner().invoke(cli, ["compress", "--method", method, "--help"], terminal_width=100)
    lines = [" ".join(line.split()) for line in found.output.splitlines()]
    told = " ".join(lines)
    chosen = algorithm(method)
    fields = [*dataclasses.fields(chosen.declaration), *dataclasses.fields(Schedule), *dataclasses.fields(Distil)]
    for field in fields:
        assert sum(line.startswith(f"{field.name} ") for line in lines) >= 1, field.name
        if isinstance(field.default, float | str):
            written = f"{field.default:g}" if isinstance(field.default, float) else field.default
            assert f"[default: {written}]" in told
    trains = chosen.schedule is not None
    assert [any(line.startswith(f"{name} ") for line in lines) for name in ("images", "calibrate_steps")] == [True] * 2
    assert (f"{method}'s own training" in told) == trains
    assert "hflip Horizontal flip probability. [default: 0.5]" in told


@pytest.mark.parametrize("method", available())
def test_no_field_of_a_declaration_lacks_its_meaning(method):
    for kind in (algorithm(method).declaration, Schedule, Distil, Apart):
        assert [each.name for each in arguments(kind) if not each.meaning] == []


def test_meanings_are_read_over_lines_and_end_with_the_section():
    text = "Do.\n\nArgs:\n    a: one\n        and two.\n    b (int): three, e.g.: four.\n\nReturns:\n    c: five.\n"
    assert meanings(text) == {"a": "one and two", "b": "three, e.g.: four"}


@pytest.mark.parametrize("method", available())
def test_names_of_options_are_known_before_a_method_is_imported(method):
    names = [field.name for field in dataclasses.fields(algorithm(method).declaration)]
    check_options(method, dict.fromkeys([*names, *Apart.__struct_fields__]))
    with pytest.raises(UnknownName, match=f"^{method} has no option 'nope', known are {', '.join(names)}$"):
        check_options(method, {"nope": 1})


LATE = ("torch", "timm", "datasets", "huggingface_hub", "numpy")
WRONG = {
    "budget": (["digits_vit", "--budget", "2"], 2, "2.0 is not in the range"),
    "method": (["digits_vit", "--method", "nope"], 2, "'nope' is not one of"),
    "no budget": (["digits_vit"], 2, "--method prune needs --budget SHARE"),
    "option": (["digits_vit", "--budget", "0.5", "--set", "nope=1"], 1, "prune has no option 'nope'"),
    "base": (["nope", "--budget", "0.5"], 1, "no model 'nope' in the catalog"),
    "timm": (["timm/nope.a1", "--budget", "0.5"], 1, "timm has no architecture 'nope'"),
    "base's folder": (["./nope", "--budget", "0.5"], 1, "no folder nope"),
    "data": (["digits_vit", "--budget", "0.5", "--data", "nope[:5]"], 1, "no data set 'nope'"),
    "data's folder": (["digits_vit", "--budget", "0.5", "--data", "./nope"], 1, "./nope: no such folder"),
}


def test_mistakes_are_told_before_anything_slow_is_imported(tmp_path):
    script = (
        "import json, sys; from click.testing import CliRunner\n"
        "from zoo.cli import cli; from zoo.errors import ZooError\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    ran = CliRunner().invoke(cli, line)\n"
        f"    late = [name for name in {LATE} if name in sys.modules]\n"
        "    print(json.dumps([ran.output + str(ran.exception), isinstance(ran.exception, ZooError), late]))\n"
    )
    lines = [["compress", "--data", "digits", "--out", "new", *line] for line, *_ in WRONG.values()]
    ran = subprocess.run(
        [sys.executable, "-c", script, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for (_, code, expected), said in zip(WRONG.values(), map(json.loads, ran.stdout.splitlines()), strict=True):
        assert expected in said[0]
        assert said[1:] == [code == 1, []]
    assert not [*tmp_path.iterdir()]


def test_a_name_that_timm_has_is_left_to_timm(monkeypatch):
    from zoo.cli import checks

    checks.check_base("timm/resnet18.a1_in1k")
    checks.check_base("resnet18")  # the verb says how timm's own is named
    monkeypatch.setattr(checks, "find_spec", lambda name: SimpleNamespace(origin="/nowhere/__init__.py"))
    checks.check_base("timm/nope")  # nothing is known of it


def test_data_is_told_with_its_limit_in_the_help():
    option = next(each for each in cli.commands["compress"].params if each.name == "data")
    assert isinstance(option, click.Option)
    assert option.metavar == "SPEC[:N]"
    assert METHODS["prune"].words in CliRunner().invoke(cli, ["compress", "--method", "prune", "--help"]).output
