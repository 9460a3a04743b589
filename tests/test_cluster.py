"""Many models on a cluster: a task each, whatever becomes of its node; the command line that starts them."""

import importlib
import json
import math
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
from builders.__main__ import FAMILIES, main
from builders.costs import SPEED, cost, hours
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
        (["--all"], "--all is for --on, --print or --costs; --on auto is this machine"),
        (["--all", "--on", "auto", "--data", "digits"], "--data is of one family: with --all each takes its own"),
        (["digits", "--on", "auto", "--costs"], "--on, --print and --costs are three things"),
        (["digits", "--price", "2"], "--price and --json are of --costs"),
        (["own.toml", "--costs"], "--costs is of families, not of files"),
        (["digits", "--print", "hf-jobs"], "what such a job makes is lost with it: say --push ORG"),
        (["own.toml", "--print", "hf-jobs", "--push", "me"], "such a job sees no files of this machine: name a family"),
    ],
)
def test_what_shall_be_built_is_said_once(words, said):
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, said in result.stderr) == (2, True)


def printed(*words):
    """What the command prints."""
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == 0, result.stderr
    return result.stdout


FILE = """
[[model]]
name = "mine"
base = "digits_cnn"
recipe = { method = "integer", data = "digits" }
"""


@pytest.mark.parametrize("names", [("digits",), ("--all",), ("it's mine.toml",)])
def test_arrays_of_slurm_name_each_model_once_and_run_the_same_command(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("it's mine.toml").write_text(FILE)
    script = printed(*names, "--print", "slurm", "--precision", "bf16", "--push", "me", "--out", "/shared/my build")
    fakes = """
    python() { printf '%s|' "$@" >> ran; echo >> ran; }
    exec() { "$@"; }
    sbatch() {
        cat > array; last=$(sed -n 's/^#SBATCH --array=0-//p' array)
        for SLURM_ARRAY_TASK_ID in $(seq 0 $last); do . ./array; done
    }
    """
    subprocess.run(["bash", "-euc", fakes + script], check=True)
    ran = Path("ran").read_text().splitlines()
    asked = tasks([*FAMILIES] if names == ("--all",) else [*names], Run())
    family_of = {task.name: task.call.args[0] for task in asked}
    end = "|--push|me|--precision|bf16|--out|/shared/my build|"

    assert sorted(ran) == sorted(f"-m|builders|{family}|{name}{end}" for name, family in family_of.items())
    arrays = [int(last) + 1 for last in re.findall(r"--array=0-(\d+)", script)]
    gpus = [task.gpu for task in asked]
    assert arrays == [count for count in (sum(gpus), len(gpus) - sum(gpus)) if count]
    assert script.count("--gres=gpu:1") == any(gpus)


def test_jobs_of_hugging_face_are_lines_of_its_own_command_within_twice_the_hours():
    script = printed("yolov8n", "--print", "hf-jobs", "--push", "me", "--channels-last")
    hf = """hf() { printf '%s|' "$@"; echo; }; IMAGE="me/image:1"\n"""
    said = subprocess.run(["bash", "-euc", hf + script], check=True, capture_output=True, text=True).stdout.splitlines()

    assert len(said) == 4
    for line, name in zip(said, [task.name for task in tasks(["yolov8n"], Run())], strict=True):
        limit = math.ceil(2 * hours(catalog.info(name), "yolov8n")) + 2
        assert line == (
            f"jobs|run|--detach|--name|{name}|--flavor|a100-large|--timeout|{limit}h|--secrets|HF_TOKEN|me/image:1|"
            f"python|-m|builders|yolov8n|{name}|--push|me|--channels-last|"
        )
    assert "IMAGE: an image" in subprocess.run(["bash", "-c", script], capture_output=True, text=True).stderr


def test_costs_are_counted_by_hand_and_summed_by_family():
    forward, images = 8.7e9 / 2, 117_266 // 128 * 128  # YOLOv8 nano's operations as it is published, two to a product
    kept = {"yolov8n_own_pruned_73": 0.730, "yolov8n_own_pruned_59": 0.586, "yolov8n_own_pruned_43": 0.428}
    macs = {"yolov8n": 500 * images * 3 * forward}
    macs |= {name: 200 * images * (3 * share + 1) * forward for name, share in kept.items()}
    by_hand = {name: count / 30e12 / 3600 for name, count in macs.items()}
    (found,) = json.loads(printed("yolov8n", "--costs", "--price", "2.5", "--json"))

    assert found["models"] == pytest.approx(by_hand, rel=0.01)
    assert found["gpu_hours"] == pytest.approx(sum(found["models"].values()))
    assert found["dollars"] == pytest.approx(2.5 * found["gpu_hours"])
    rows = [re.split(r" {2,}", line.strip()) for line in printed("yolov8n", "--costs", "--price", "10").splitlines()]
    figures = ["4", f"{found['gpu_hours']:.0f}", f"{10 * found['gpu_hours']:.0f}"]
    assert [row for row in rows if len(row) == 4] == [
        ["family", "models", "GPU hours", "dollars"],
        ["yolov8n", *figures],
        ["all", *figures],
    ]
    assert json.loads(printed("digits", "--costs", "--json"))[0]["gpu_hours"] == 0  # minutes on two cores


@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])
def test_a_script_says_the_hours_that_are_counted(name):
    text = importlib.import_module(f"builders.{name}").__doc__
    counted = cost(name, Run()).hours.values()
    said = re.search(r"GPU hours (\d+) to (\d+) each, (\d+) in all", text).groups()
    assert said == tuple(f"{value:.0f}" for value in (min(counted), max(counted), sum(counted)))


def test_scripts_assume_the_speed_that_is_counted_with():
    for name, speed in SPEED.items():
        text = re.sub(r"\s+", " ", importlib.import_module(f"builders.{name}").__doc__)
        assert name == "cifar_resnet20" or f"at {speed:.0f} TMACs a second" in text
    assert {*FAMILIES} - {*SPEED} == {"digits", "int8"}
