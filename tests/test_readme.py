"""The README's code runs, and its tables and help are those of today."""

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import zoo
from zoo import catalog
from zoo.cli import cli
from zoo.files import read_json

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_python_block_runs_and_prints_what_its_comments_say(block: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # what it writes
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    promised = re.findall(r"print\(.*\)  +# (.*)", block)

    assert promised == printed.getvalue().splitlines()


@pytest.mark.parametrize("name", catalog.names("digits_*"))
def test_the_table_of_models_holds_the_measured_figures(name: str) -> None:
    measured = read_json(catalog.EMBEDDED / name / "results.json")["measured"]
    row = next(line for line in README.splitlines() if line.startswith(f"| [`{name}`](model_cards/{name}.md) |"))

    assert [cell.strip() for cell in row.split("|")[2:5]] == [
        f"{measured['params']:,}",
        f"{measured['macs']:,}",
        f"{100 * measured['top1']:.2f} %",
    ]


def test_every_command_named_in_the_readme_exists() -> None:
    named = set(re.findall(r"^zoo (\w+)", README, re.MULTILINE))

    assert named
    for command in named:
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize("name", cli.commands)
def test_the_help_of_every_command_has_a_whole_example_that_parses(name, tmp_path, monkeypatch) -> None:
    for folder in ("build/mine", "photographs", "decomposed"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("best.pth", "classes.txt"):
        (tmp_path / file).write_text("one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    help = CliRunner().invoke(cli, [name, "--help"]).output
    examples = re.findall(rf"^  zoo {name} (.*)$", help, re.MULTILINE)

    assert examples
    for example in examples:
        command = cli.commands[name]
        command.make_context(name, shlex.split(example))


ROOMS = [path.parent for path in sorted((ROOT / "zoo").rglob("__init__.py")) if path.parent.name != "zoo"]
UNTOLD = {"compression", "tasks", "prune", "models", "onnx"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room.name not in UNTOLD], ids=lambda room: room.name)
def test_a_room_says_what_lies_in_it(room) -> None:
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    files = {path.stem for path in room.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}

    assert files - {"__init__"} <= set(re.findall(r"\w+", told))


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_rooms_and_the_direction_of_imports_are_those_that_are_checked() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    chain, tree = re.findall(r"```\n(.*?)```", section("How it is put together"), re.DOTALL)

    assert [set(re.findall(r"\w+", layer)) for layer in chain.split(">")] == [
        {room for room in layer.split(" | ") if room != "version"} for layer in layers if layer != "__main__"
    ]
    rooms = {
        room.relative_to(ROOT / "zoo") for room in ROOMS if room.parent.name != "tasks" and room.name != "torch_dag"
    }
    assert {each.name for each in rooms} | {"zoo"} == set(re.findall(r"(\w+)/", tree))


def test_what_is_told_of_adding_to_it_is_there() -> None:
    told = section("Add to it")
    paths = re.findall(r"`((?:zoo|builders|tests|scripts)/[\w./<>]+)`", told)
    tables = dict(re.findall(r"`([A-Z]+)` in `([\w/.]+)`", told))

    assert [path for path in paths if not list(ROOT.glob(re.sub(r"<\w+>", "*", path)))] == []
    assert tables.keys() == {"METHODS", "TASKS", "STEPS", "FAMILIES", "SPEED"}
    for table, path in tables.items():
        assert re.search(rf"^{table}\b", (ROOT / path).read_text(), re.MULTILINE)
    assert [len(re.findall(r"^\d\. ", part, re.MULTILINE)) for part in told.split("\n\nA ")[1:]] == [4] * 4


def test_every_bench_is_listed_and_can_be_tried_quickly() -> None:
    bench = ROOT / "scripts" / "bench"
    listed = subprocess.run([bench / "run"], capture_output=True, text=True, check=True).stdout.split()

    assert set(re.findall(r"scripts/bench/run (\w+)", README)) <= set(listed)
    for name in listed:
        assert f"scripts/bench/run {name} [--quick]" in (bench / f"{name}.py").read_text()


def test_the_first_two_commands_are_the_demo_and_the_tests() -> None:
    first = re.search(r"```\n(.*?)```", README, re.DOTALL)

    assert first is not None
    assert [line.split()[0] for line in first.group(1).strip().splitlines()] == ["scripts/demo", "scripts/test"]


def test_importing_zoo_imports_no_torch() -> None:
    code = "import sys, zoo; print(sorted({'torch', 'timm', 'huggingface_hub'} & set(sys.modules)), zoo.__version__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.strip() == f"[] {zoo.__version__}"
