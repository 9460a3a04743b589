"""A disk that refuses whatever is written to it: what was there stays, nothing else does, and one line says so."""

import contextlib
import errno
import os
import resource
from pathlib import Path

import pytest
import torch

import zoo
from zoo import catalog
from zoo.errors import StorageError
from zoo.hub.foreign import ptdeco
from zoo.structure.describing import describe
from zoo.training import checkpoint
from zoo.verbs import sweeping

SAYS = r"/place(/\S+)? can't be written: .* nothing half-written was left"
CHECKPOINT = Path(__file__).parent / "data" / "torch_dag" / "deit3_tiny_pruned"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save(place):
    zoo.save(zoo.load("digits_cnn_pruned_25"), place)


def push(place):
    zoo.push(catalog.EMBEDDED / "digits_cnn_pruned_25", place)


def convert(place):
    zoo.convert(CHECKPOINT, place)


def export(place):
    model = zoo.load("digits_vit_lowrank_50")
    ptdeco.write_decomposition(place, model, describe(model).plan)


def plot(place):
    points = [sweeping.Point(share, str(share), share, 1, "top1", share) for share in (1.0, 0.8, 0.5)]
    sweeping.plot(points, None, place)


def state(place):
    checkpoint.save_state(place, "run", {"weight": torch.zeros(20_000)}, {})


@contextlib.contextmanager
def at_most(size):
    """No file may grow beyond so many bytes."""
    former, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (former, hard))


@pytest.mark.parametrize("size", [0, 20_000])
@pytest.mark.parametrize("write", [save, push, convert, export, plot, state])
def test_what_finds_no_room_leaves_nothing_and_says_so(write, size, tmp_path):
    with (
        at_most(size),
        pytest.raises(StorageError, match=SAYS),
    ):
        write(tmp_path / "place")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("former", [False, True], ids=["new", "over a former one"])
@pytest.mark.parametrize(
    ("write", "call", "number"),
    [
        (save, "zoo.atomic.os.fsync", errno.ENOSPC),
        (save, "zoo.atomic.os.replace", errno.EIO),
        (save, "zoo.atomic.os.rename", errno.ENOSPC),
        (push, "zoo.verbs.saving.shutil.copy", errno.ENOSPC),
        (push, "zoo.atomic.os.rename", errno.EACCES),
    ],
)
def test_a_disk_that_refuses_leaves_what_was_there_and_says_so(tmp_path, monkeypatch, write, call, number, former):
    if former:
        push(tmp_path / "place")
    before = content(tmp_path)

    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(StorageError, match=SAYS) as caught:
        write(tmp_path / "place")
    assert ("the disk is full" in str(caught.value)) == (number == errno.ENOSPC)
    assert content(tmp_path) == before


def test_a_folder_that_may_not_be_written_to_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match=r"can't be written: (Not a directory|File exists)"):
        push(tmp_path / "file" / "place")
