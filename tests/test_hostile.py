"""Hostile folders: what asks for much is refused before it is read, built or waited for.

`scripts/bench/hostile` shows what each of its folders costs; here all of them are read that are written at once.
"""

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from mutating import mutations, valid_folders, written

import zoo
from zoo import catalog
from zoo.errors import RepositoryError, StructureError, WeightsError, ZooError
from zoo.files import read_json
from zoo.hub.weights import save_weights
from zoo.structure.plan import Plan

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
sys.path.insert(0, str(BENCH))
import hostile  # noqa: E402
from hostile_folders import DOORS, FOLDERS, doors, graph, put, relus  # noqa: E402

sys.path.remove(str(BENCH))

LARGE = (
    "MB",
    "000 (",
    "00,000",
    "50,000",
    "4,000]",
    "1,500",
    "9,999",
    "8 deep",
    "of 400 each",
    "2e10",
    "4,096 (efficientvit)",
)
READ = ("README.md is", "graph.json is", "results.json is")  # by what loading a plan doesn't look at
SMALL = [name for name in FOLDERS if not any(word in name for word in LARGE)]


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_that_asks_for_much_costs_little_and_is_refused_in_one_line(name, tmp_path):
    write, read = FOLDERS[name]
    write(tmp_path / "net")
    cost = hostile.cost(DOORS[read[0]], tmp_path / "net")

    assert cost.within
    assert (cost.said == "read") == name.startswith(READ)
    assert "\n" not in cost.said


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of layers without channels
def test_any_change_of_a_valid_folder_gives_a_model_or_an_error_of_one_line(tmp_path):
    """`scripts/bench/run hostile --fuzz MINUTES` does the same for longer."""
    folders = valid_folders(tmp_path)

    @settings(max_examples=30)
    @given(mutations(folders))
    def gives(mutation):
        name, files = mutation
        folder = written(folders[name], tmp_path / "net", files)
        said = []
        for door in doors(folder):
            try:
                DOORS[door](folder)
            except ZooError as error:
                said.append(str(error))
        assert not any("\n" in each for each in said)

    gives()


@pytest.fixture
def saved(tmp_path):
    """A repository, to be changed."""
    shutil.copytree(catalog.EMBEDDED / "digits_cnn_pruned_50", tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ([0], 40_000, r"a head of [\d,]+ bytes, where its structure needs at most 1,\d{3},\d{3}"),
        ([2**32], 1, r"4,294,\d{3},\d{3} bytes, where its structure needs at most"),
    ],
    ids=["many tensors", "many values"],
)
def test_a_file_of_more_than_its_structure_can_need_is_refused_before_it_is_read(shape, count, message, saved):
    row = {"dtype": "U8", "shape": shape, "data_offsets": [0, shape[0]]}
    head = json.dumps({f"t{i}": row for i in range(count)}).encode()
    with (saved / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + shape[0])  # which takes no room
    with pytest.raises(WeightsError, match=rf"safetensors is damaged \({message}"):
        zoo.load(saved)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=range(3))
def test_what_is_no_file_is_refused_and_not_waited_for(make, file, saved):
    (saved / file).unlink()
    make(saved / file)
    with pytest.raises((RepositoryError, WeightsError), match=rf"{file} isn't a file"):
        zoo.load(saved)


@pytest.mark.parametrize(
    ("most", "more", "message"),
    [
        ([{"edit": "narrow"}] * 100, [{"edit": "narrow"}] * 101, "expected a list of at most 100"),
        ([{"edit": "mask", "paths": ["a" + ".0" * 31]}], [{"edit": "mask", "paths": ["a" + ".0" * 32]}], "32 words"),
        ([{"edit": "swap", "classes": {"a" * 1000: "B"}}], [{"edit": "swap", "classes": {"a" * 1001: "B"}}], "a path"),
    ],
    ids=["edits", "factors within factors", "characters"],
)
def test_a_plan_is_bounded_before_it_is_applied(most, more, message):
    Plan.from_json(most)
    with pytest.raises(StructureError, match=message):
        Plan.from_json(more)


def test_a_graph_without_weights_is_read_measured_and_saved(tmp_path):
    graph(relus(1))(tmp_path / "net")
    config = read_json(tmp_path / "net" / "config.json")
    config["zoo"]["weights_sha256"] = save_weights(tmp_path / "net" / "model.safetensors", {})
    put(tmp_path / "net" / "config.json", config)

    rows = {row.figure: row for row in zoo.verify(tmp_path / "net", structure_only=True).rows}
    assert (rows["params"].measured, rows["params"].verdict) == (0, "differs")
    assert zoo.measure(zoo.load(zoo.save(zoo.load(tmp_path / "net"), tmp_path / "again"))).params == 0
