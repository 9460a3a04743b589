"""Streams to train on: every row once, whoever reads it, in an order of (seed, epoch) alone that mixes a sorted set."""

import itertools

import accelerate
import datasets
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import DataError
from zoo.tasks.lengths import counted
from zoo.tasks.loader import loader
from zoo.tasks.streams import GROUPS, LANES, Epoch, Stream


def rows(count, shards, whole=False):
    """A stream of numbered rows, sorted by class, ten to a class, which doesn't know its shards' lengths if `whole`."""
    table = datasets.Dataset.from_dict({"image": list(range(count)), "label": [i // 10 for i in range(count)]})
    stream = table.to_iterable_dataset(num_shards=shards)
    lengths = [len(list(stream.shard(shards, index))) for index in range(shards)]
    return Stream(stream, count, () if whole else tuple(lengths))


def numbers(epoch, positions=None):
    """The rows of some positions, of all if None."""
    return [epoch.row(each)[1]["image"] for each in (range(len(epoch)) if positions is None else positions)]


@settings(max_examples=10)
@given(
    count=st.integers(1, 700),
    shards=st.integers(1, 9),
    batch=st.integers(1, 70),
    whole=st.booleans(),
)
def test_an_epoch_has_every_row_once_but_those_of_a_last_partial_batch(count, shards, batch, whole):
    epoch = Epoch(rows(count, min(shards, count), whole), batch, 0, 0)
    found = numbers(epoch)
    assert len(found) == len(set(found)) == count // batch * batch
    assert [epoch.stream.total, set(found) <= set(range(count))] == [count, True]


@settings(max_examples=10)
@given(
    processes=st.sampled_from([1, 2, 3, 4, 8]),
    workers=st.integers(1, 5),
    skipped=st.integers(0, 12),
    whole=st.booleans(),
)
def test_processes_workers_and_a_resumed_run_read_the_rows_of_one(processes, workers, skipped, whole):
    stream, batch = rows(500, 5, whole), 48
    expected = numbers(Epoch(stream, batch, 3, 1))
    share = batch // processes
    for process, worker in itertools.product(range(processes), range(workers)):
        epoch = Epoch(stream, batch, 3, 1)
        for number in range(skipped + worker, len(epoch) // batch, workers):
            part = range(number * batch + process * share, number * batch + (process + 1) * share)
            assert numbers(epoch, part) == [expected[position] for position in part]


def test_a_process_and_a_worker_open_their_own_lanes_alone():
    epoch, batch = Epoch(rows(6400, 10), 64, 0, 0), 64
    for number in range(0, len(epoch) // batch, GROUPS):  # the first of four workers, on the first of two processes
        numbers(epoch, range(number * batch, number * batch + batch // 2))
    assert len(epoch._open) == LANES // 2


def test_order_is_of_seed_and_epoch():
    stream = rows(640, 4)
    first = numbers(Epoch(stream, 32, 0, 0))
    assert first == numbers(Epoch(stream, 32, 0, 0))
    assert len({tuple(numbers(Epoch(stream, 32, *which))) for which in ((0, 0), (0, 1), (1, 0))}) == 3


@pytest.mark.parametrize("shards", [1, 16])
def test_a_batch_of_a_sorted_set_is_of_many_classes_even_where_it_is_one_file(shards):
    stream, batch = rows(20_000, shards), 64
    epoch = Epoch(stream, batch, 0, 0)
    for number in (0, 1, 100):
        classes = {each // 10 for each in numbers(epoch, range(number * batch, (number + 1) * batch))}
        assert len(classes) >= 2 * LANES


def test_a_stream_that_ends_sooner_than_its_epoch_begins_again():
    stream = Stream(rows(10, 1).data, 25)
    found = numbers(Epoch(stream, 25, 0, 0))
    assert all(found.count(each) in (2, 3) for each in range(10))


def test_shards_that_are_shorter_than_their_footers_said_are_an_error():
    with pytest.raises(DataError, match="a stream of 30 images ended too soon"):
        numbers(Epoch(Stream(rows(20, 2).data, 30, (15, 15)), 10, 0, 0))


def batches(stream, workers=0):
    return loader(stream, lambda image: torch.tensor([float(image)]), 16, seed=1, epoch=2, workers=workers)


@pytest.mark.parametrize("whole", [False, True])
def test_a_loader_of_a_stream_has_a_length_and_the_same_batches_for_all(whole):
    stream = rows(200, 3, whole)
    expected = [images.flatten().tolist() for images, _ in batches(stream)]
    assert len(batches(stream)) == len(expected) == 200 // 16
    assert [images.flatten().tolist() for images, _ in batches(stream, workers=2)] == expected
    halves = [
        [images.flatten().tolist() for images, _ in prepare_data_loader(batches(stream), None, 2, rank, True)]
        for rank in range(2)
    ]
    assert [left + right for left, right in zip(*halves, strict=True)] == expected
    resumed = accelerate.skip_first_batches(prepare_data_loader(batches(stream), None, 1, 0, True), 5)
    assert [images.flatten().tolist() for images, _ in resumed] == expected[5:]


def test_what_is_skipped_is_not_decoded():
    decoded = []
    stream = rows(200, 3)
    skipping = loader(stream, lambda image: decoded.append(image) or torch.zeros(1), 16, epoch=0)
    next(iter(accelerate.skip_first_batches(skipping, 10)))
    assert len(decoded) == 16


def test_the_length_is_the_data_sets_own_or_the_steps_of_the_schedule():
    stream = datasets.Dataset.from_dict({"image": [0, 1, 2], "label": [0, 1, 0]}).to_iterable_dataset()
    assert len(counted(stream, least=48)) == 48
    with pytest.raises(DataError, match=r"^org/name is a stream, and nothing says how many images it has: .* --steps"):
        counted(stream, "org/name")
    stream.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=3)})
    stream = datasets.IterableDataset(stream._ex_iterable, info=stream.info, split=datasets.Split.TRAIN)
    assert len(counted(stream.select_columns(["image", "label"]))) == 3
    assert len(counted(stream, most=2)) == 2
