"""Many models on a cluster: a task each, whatever becomes of its node; the command line that starts them."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from builders import family
from builders.__main__ import main
from builders.family import Run, tasks, trains
from zoo import catalog
from zoo.cli import clustering
from zoo.cli import main as zoo_main
from zoo.cluster import Ended, Running, each
from zoo.errors import ClusterError, DataError, MissingExtra, ZooError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """What `tests/clustered.py` prints."""
    folder = tmp_path_factory.mktemp("clustered")
    command = [sys.executable, str(ROOT / "tests" / "clustered.py"), str(folder)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=surroundings, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, *map(json.loads, done.stdout.splitlines())  # Ray has put nothing between them


def test_tasks_come_back_as_they_end_and_an_error_leaves_the_others(clustered):
    folder, ended, _, _ = clustered
    by_name = {each["name"]: each for each in ended}

    assert len(ended) == len(by_name) == 5
    assert ended[-1]["name"] == "last"  # though it was the first that began
    assert {name: each["error"] for name, each in by_name.items() if each["error"]} == {
        "refused": ["DataError", "no images: pass --data"],
        "wrong": ["ClusterError", "ValueError: one line"],
    }
    assert {each["tries"] for each in ended} == {1}, "an error of its own isn't tried again"
    assert by_name["plain"]["value"] == [{"CPU": 1.0}, str(folder)]
    assert by_name["with a GPU"]["value"] == [{"CPU": 2.0, "GPU": 1.0}, str(folder)]


def test_tasks_whose_node_is_killed_run_again_on_another_one(clustered):
    _, _, ended, told = clustered
    lost = {name for name, then in told["killed"].items() if then["node"].endswith(told["dead"])}

    assert len(lost) == 2
    assert sorted(each["name"] for each in ended) == [f"task {number}" for number in range(5)]
    assert {each["value"] for each in ended} == {"go"}
    assert {each["name"] for each in ended if each["tries"] == 2} == lost
    assert {each["tries"] for each in ended} == {1, 2}
    assert not [each for each in ended if each["node"].endswith(told["dead"])]


def here(asked, address, watch):
    """Tasks run in this process, as `each` would on a cluster: pickled on their way."""
    for number, task in enumerate(asked):
        task = pickle.loads(pickle.dumps(task))  # noqa: S301, TID251  # as Ray does
        watch({task.name: Running("node", 1 + number % 2, "1 load")})
        try:
            yield Ended(task.name, task.call(lambda line: None), None, "node")
        except ZooError as error:
            yield Ended(task.name, None, error, "node")


def test_each_model_is_a_task_and_what_fails_is_told(tmp_path, monkeypatch):
    def one(entry, run, out):
        if "vit" in entry.name:
            raise DataError(f"{entry.name}: no images")
        return out / entry.name

    monkeypatch.setattr(family, "one", one)
    monkeypatch.setattr(clustering, "each", here)
    words = ["digits", "digits_cnn", "digits_vit", "--on", "head:6379", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, words)

    assert (result.exit_code, result.stdout) == (1, f"{tmp_path / 'digits_cnn'}\n")
    assert re.sub(r"\d+ s", "0 s", result.stderr).splitlines() == [
        "digits_cnn: begins on node",
        "digits_cnn: done in 0 s, 1 of 2",
        "digits_vit: try 2 begins on node",
        "digits_vit: digits_vit: no images",
        "Error: 1 of 2 models weren't made; the same command goes on with them",
    ]


def test_models_are_verified_by_a_task_each_and_printed_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clustering, "each", lambda asked, *how: reversed([*here(asked, *how)]))
    names = ["digits_cnn", "digits_vit"]

    def printed(*words):
        with pytest.raises(SystemExit) as end:
            zoo_main(["verify", *names, "--structure", "--json", *words])
        return end.value.code, json.loads(capsys.readouterr().out)

    assert printed("--on", "auto", "--save", str(tmp_path)) == printed()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits_cnn.json", "digits_vit.json"]
    names[0] = "nothing_like_it"
    code, found = printed("--on", "auto")
    assert (code, [each["name"] for each in found]) == (1, ["digits_vit"])


def test_all_means_each_model_of_each_family_and_those_that_train_take_a_gpu():
    asked = tasks(["digits", "int8", "resnet18", "yolov8n"], Run())
    entries = [catalog.info(task.name) for task in asked]

    assert len({task.name for task in asked}) == len(asked) == 13 + 35 + 3 + 4
    for task, entry in zip(asked, entries, strict=True):
        assert task.gpu == trains(entry.recipe) == (entry.recipe.method != "integer")
    assert [task.name for task in tasks(["resnet18"], Run(models=("resnet18_lockd_nt005",)))] == [
        "resnet18_lockd_nt005"
    ]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1 (Connection refused): `ray start --head` starts one"),
        ("nowhere", "nowhere is no address of a Ray cluster: expected HOST:PORT of its head, or auto"),
    ],
)
def test_where_no_cluster_is_a_line_says_so_within_seconds(address, said):
    begun = time.monotonic()
    with pytest.raises(ClusterError) as error:
        next(each([], address))
    assert str(error.value).startswith(said)
    assert time.monotonic() - begun < 20  # of which ray's own import takes most


def test_without_ray_a_line_names_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingExtra, match=r"^ray isn't installed; it comes with: pip install 'compressed-zoo\[cluster"
    ):
        next(each([], "auto"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a family or a file of recipes, or say --all"),
        (["digits", "--all", "--on", "auto"], "name a family or a file of recipes, or say --all"),
        (["--all"], "--all is for a cluster: --on auto makes one of this machine"),
    ],
)
def test_what_shall_be_built_is_said_once(words, said):
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, said in result.stderr) == (2, True)
