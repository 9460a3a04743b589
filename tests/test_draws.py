"""A draw is one of the whole set: seeded, each class in its share, and the beginning of a larger one."""

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import rows, write_classes

from zoo.tasks import draws
from zoo.tasks.datasets import dataset
from zoo.tasks.draws import order
from zoo.tasks.lengths import training_set


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 3))
def test_every_beginning_of_a_draw_holds_each_class_in_its_share(labels, seed):
    labels = np.array(labels)
    drawn = order(labels, seed)
    counts = np.bincount(labels)

    assert sorted(drawn) == list(range(len(labels)))
    for size in {1, len(labels) // 3, len(labels) // 2, len(labels)}:
        found = np.bincount(labels[drawn[:size]], minlength=len(counts))
        assert (np.abs(found - size * counts / len(labels)) <= len(counts) / 2 + 1).all()


def test_classes_of_a_size_are_drawn_equally_often():
    labels = np.repeat(np.arange(10), 50)

    assert np.bincount(labels[order(labels, 0)[:100]]).tolist() == [10] * 10
    assert set(np.bincount(labels[order(labels, 0)[:95]])) == {9, 10}


def test_a_draw_depends_on_its_seed_alone_and_is_the_beginning_of_a_larger_one():
    few, more, other = (
        list(dataset("digits", "train", limit=limit, seed=seed)["label"]) for limit, seed in ((50, 0), (90, 0), (50, 1))
    )

    assert few == more[:50] != other
    assert np.bincount(few).tolist() == [5] * 10
    assert list(dataset("digits[:50]", "train")["label"]) == few


def test_how_many_classes_were_seen_is_said(caplog):
    caplog.set_level("INFO", "zoo")
    dataset("digits", "train", limit=7)

    assert caplog.messages == ["digits: 7 of 1347 images drawn, of 7 of its 10 classes"]


@pytest.fixture
def hub(monkeypatch):
    """A set of the Hub sorted by class, whose labels can be read alone or not."""

    def served(alone):
        def load(spec, streaming, columns=None):
            if columns and not alone:
                raise ValueError("BuilderConfig doesn't have a 'columns' key")
            table = rows().select_columns(columns) if columns else rows()
            return datasets.IterableDatasetDict({"train": table.to_iterable_dataset(4)})

        monkeypatch.setattr(datasets, "load_dataset", load)

    return served


def test_a_draw_of_a_stream_is_that_of_the_same_table(hub):
    hub(alone=True)
    drawn, table = dataset("org/set", "train", limit=20), dataset(rows(), "train", limit=20)

    assert drawn[:]["image"] == table[:]["image"]
    assert drawn[:]["label"] == table[:]["label"]
    assert len(list(dataset("org/set", "train", limit=99))) == 64


@pytest.mark.parametrize("cause", ["its labels can't be read alone", "it is long"])
def test_a_draw_of_another_stream_is_shuffled_over_its_shards_and_says_so(cause, hub, monkeypatch, caplog):
    caplog.set_level("INFO", "zoo")
    hub(alone=cause == "it is long")
    monkeypatch.setattr(draws, "THROUGH", 63)
    first, again, other = (dataset("org/set", "train", limit=20, seed=seed)[:]["label"] for seed in (0, 0, 1))

    assert first == again
    assert set(first) == {0, 1}
    assert len(first) == len(other) == 20
    assert caplog.messages[0] == "org/set: 20 images drawn by a buffer over its shards in random order, of 2 classes"


def test_a_large_draw_of_a_stream_stays_a_stream(hub, monkeypatch):
    hub(alone=False)
    monkeypatch.setattr(draws, "HELD", 19)
    drawn = dataset("org/set", "train", limit=20)

    assert isinstance(drawn, datasets.IterableDataset)
    assert len(list(drawn)) == 20


@pytest.mark.parametrize("limit", [None, 20, 65, 99])
@pytest.mark.parametrize("alone", [False, True])
def test_what_is_damaged_in_a_stream_is_left_out_whatever_its_limit(limit, alone, monkeypatch):
    stored = list(rows().cast_column("image", datasets.Image(decode=False)))
    damaged = {"image": {"bytes": b"damaged", "path": None}, "label": 1, "note": "x"}
    table = datasets.Dataset.from_list([*stored, damaged], features=rows().features)

    def load(spec, streaming, columns=None):
        if columns and not alone:
            raise ValueError("BuilderConfig doesn't have a 'columns' key")
        return {"train": (table.select_columns(columns) if columns else table).to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = [row["image"]["bytes"] for row in dataset("org/set", "train", limit=limit, skip_damaged=True)]

    assert b"damaged" not in found
    assert len(found) in ((19, 20) if limit == 20 else (64,))


@pytest.mark.parametrize("spec", ["here/set", "here/set[:40]"])
def test_a_folder_named_like_an_id_of_the_hub_is_a_folder_for_training_too(spec, tmp_path, monkeypatch):
    write_classes(tmp_path / "here" / "set")
    (tmp_path / "here" / "set" / "train" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    trained, drawn = training_set(spec), dataset(spec, "train")

    assert trained.features["label"].names == drawn.features["label"].names == ["empty", "meadow", "sea"]
    assert trained["label"][:] == drawn["label"][:]
    assert len(trained) == (40 if spec.endswith("]") else 64)
