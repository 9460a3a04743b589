"""Weights that change on the disk: what is noticed, what is read again, and what a mapped model makes of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import zoo
from zoo import files
from zoo.errors import WeightsError
from zoo.files import read_json, sha256, sha256_stamped
from zoo.hub import repository

SAVED = sorted((Path(__file__).parent / "data" / "repositories").iterdir())[0]


@pytest.fixture
def saved(tmp_path):
    """A repository that may be damaged."""
    return Path(shutil.copytree(SAVED, tmp_path / "saved"))


@pytest.mark.parametrize("hidden", [False, True])
def test_one_flipped_bit_is_noticed(hidden, saved):
    """Also in a file that has its former size, inode and time again."""
    zoo.load(saved)
    path = saved / "model.safetensors"
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    if hidden:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for check in (zoo.load, repository.check_sha256):
        with pytest.raises(WeightsError, match=r"has sha256 \w{12}…, expected \w{12}…: fetch or save it again$"):
            check(saved)


def test_a_file_that_did_not_change_is_not_read_again(saved, monkeypatch):
    zoo.load(saved)
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"{path} is read again"))
    zoo.load(saved)


@pytest.mark.parametrize("how", ["touched", "replaced", "moved", "overwritten"])
def test_a_file_that_may_have_changed_is_read_again(how, saved, monkeypatch):
    path = saved / "model.safetensors"
    expected = sha256_stamped(path)
    if how == "touched":
        os.utime(path, ns=(1, 1))
    elif how == "replaced":
        status = path.stat()
        path.write_bytes(data := path.read_bytes())
        path.unlink()
        path.with_name("placeholder").write_text("")  # so that the inode isn't given to the next file
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "overwritten":
        status = path.stat()
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        path = path.rename(saved / "elsewhere")
    reads = []
    monkeypatch.setattr(files, "sha256", lambda path: reads.append(path) or sha256(path))
    assert expected == sha256_stamped(path)
    assert reads == [path]


@pytest.mark.parametrize("stamp", ["", "[]", "{}", '{"file": 1}', "KEEP-FILE"])
def test_a_damaged_stamp_costs_time_only(stamp, saved, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    path = saved / "model.safetensors"
    expected = sha256_stamped(path)
    (written,) = (tmp_path / "cache" / "sha256").iterdir()
    written.write_text(json.dumps({"file": read_json(written)["file"]}) if stamp == "KEEP-FILE" else stamp)
    assert expected == sha256_stamped(path)


def test_a_cache_that_cannot_be_written_costs_time_only(saved, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    assert sha256(saved / "model.safetensors") == sha256_stamped(saved / "model.safetensors")


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_overwritten_in_place_changes_a_model_that_maps_it_and_no_other(mmap, saved):
    path, image = saved / "model.safetensors", torch.ones(1, 3, 32, 32)
    model = zoo.load(saved, mmap=mmap)
    with torch.no_grad():
        before = model(image)
        with path.open("r+b") as file:  # the size stays, or whoever maps it would be killed
            file.write(bytes(path.stat().st_size))
        assert torch.equal(before, model(image)) == (not mmap)
