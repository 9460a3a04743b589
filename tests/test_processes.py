"""A verification on several processes: the figures of one, of tables and streams, and of a list that goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.verbs.recorded import file_of, verify_list

NAMES = ["digits_cnn", "digits_cnn_pruned_50", "digits_vit"]
SETTINGS = {"data": "digits", "images": 53}

# Importing takes longer than measuring, so each run is forked after it.
SCRIPT = """
import json, os, pathlib, sys
import accelerate, datasets, evaluate as _, sklearn.metrics, torch
from forked import forked
import zoo
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import Seen, evaluate_together
from zoo.tasks.identity import Identified
from zoo.verbs.recorded import verify_list

torch.set_num_threads(1)
place, asked = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
models = [*map(zoo.load, asked["names"][:2]), zoo.create(asked["names"][2]).eval()]  # which knows nothing
data = dataset("digits", "test", limit=53)
stream = datasets.IterableDataset.from_generator(lambda: iter(data))
parts = {"rows": [*range(53)]}
shards = datasets.IterableDataset.from_generator(lambda rows: map(data.__getitem__, rows), gen_kwargs=parts)
ways = {"table": data, "stream": stream, "shards": shards, "few": data.take(2), "few of a stream": stream.take(2)}

def measured(data):
    cnn, vit = (CLASSIFICATION.evaluation_transform(model.pretrained_cfg) for model in models[1:])
    ours = [Seen(models[0]), Seen(models[1], models[0]), Seen(models[2], view=1)]  # which is of another size
    seen = Identified(cnn, (vit,))
    return evaluate_together(ours, CLASSIFICATION.loader(data, seen, 8))

def run(rank, count):
    figures = {name: measured(data) for name, data in ways.items()}
    folder = place / f"{count}" / f"{rank}"  # of its own, as on another node
    listed = [each.to_json() for each in verify_list(asked["names"], asked["settings"], folder)]
    refused = {}
    damaged = {"data": asked["damaged"], "batch_size": 4}
    told = lambda name, error: refused.update({name: str(error)})
    assert not [*verify_list(asked["names"], damaged, refused=told)]
    found = {"figures": figures, "listed": listed, "refused": refused}
    (place / f"{count}_{rank}.json").write_text(json.dumps(found))

for count in (1, 2, 3):
    children = forked(count, lambda rank: run(rank, count))
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process of one, two and three said: (count, rank) → figures, list, refusals; and where files are."""
    place = tmp_path_factory.mktemp("processes")
    pictures = place / "pictures" / "test"
    for number, row in enumerate(zoo.tasks.datasets.dataset("digits", "test", limit=13)):
        (pictures / str(number % 10)).mkdir(parents=True, exist_ok=True)
        file = pictures / str(number % 10) / f"{number}.png"
        file.write_bytes(row["image"]["bytes"] if number != 5 else b"no picture")
    for count in (1, 2, 3):  # a list that was cut off: the first node has a file
        assert len([*verify_list(NAMES[:1], SETTINGS, place / f"{count}" / "0")]) == 1
    asked = {"names": NAMES, "settings": SETTINGS, "damaged": str(place / "pictures")}
    command = [sys.executable, "-c", SCRIPT, str(place), json.dumps(asked)]
    done = subprocess.run(command, cwd=Path(__file__).parent, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [(count, rank) for count in (1, 2, 3) for rank in range(count)]
    return {(count, rank): json.loads((place / f"{count}_{rank}.json").read_text()) for count, rank in ranks}, place


@pytest.mark.parametrize("way", ["table", "stream", "shards", "few", "few of a stream"])
def test_figures_on_one_two_and_three_processes_are_the_same(found, way):
    said = [each["figures"][way] for each in found[0].values()]
    close = [
        {key: pytest.approx(value, rel=1e-6) if key == "kl" else value for key, value in m.items()} for m in said[0]
    ]

    assert said == [close if way == "shards" else said[0]] * 6  # which are read in other batches, and rounded by them
    assert [each["images"] for each in said[0]] == [2 if "few" in way else 53] * len(NAMES)
    assert said[0] == found[0][1, 0]["figures"]["few" if "few" in way else "table"]
    assert "few" in way or said[0][2]["top1"] < 0.3


def test_a_list_goes_on_alike_on_processes_that_share_no_folder(found):
    said = [each["listed"] for each in found[0].values()]

    assert said == [said[0]] * 6
    assert [each["name"] for each in said[0]] == NAMES
    for count in (1, 2, 3):
        files = [(found[1] / f"{count}" / f"{rank}").glob("*.json") for rank in range(count)]
        assert [len([*each]) for each in files] == [3, 0, 0][:count]
        for name in NAMES:
            assert (
                file_of(name, found[1] / f"{count}" / "0").read_bytes()
                == file_of(name, found[1] / "1" / "0").read_bytes()
            )


def test_an_image_that_one_process_cannot_decode_is_told_by_all_of_them(found):
    for each in found[0].values():
        assert [*each["refused"]] == NAMES
        assert all("5.png: no image that can be decoded" in error for error in each["refused"].values())
