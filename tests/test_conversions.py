"""Origins converted once and kept: by two processes at once, in a cache that refuses, with the clock set back."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from family import CHECKPOINT, FAMILY
from msgspec import structs

import zoo
from zoo import catalog, files
from zoo.verbs import conversions


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Of an origin that nothing was converted of."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "own.toml").write_text(FAMILY.format(family="", more=""))
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return catalog.info("tiny")


def test_of_two_at_once_one_converts_and_the_other_waits(entry, monkeypatch):
    converted, made = conversions.converted, []

    def slowly(*given):
        made.append(converted(*given))
        time.sleep(0.3)
        return made[0]

    monkeypatch.setattr(conversions, "converted", slowly)
    with ThreadPoolExecutor(2) as both:
        one, other = both.map(lambda _: conversions.conversion(entry, CHECKPOINT), range(2))

    assert (one, len(made)) == (other, 1)
    assert zoo.load(one).zoo_entry.name == "tiny"
    assert sorted(path.name for path in one.parent.iterdir()) == [one.name, "tiny.json"]


@pytest.mark.parametrize("how", ["a file is in its place", "the disk is full"])
def test_a_cache_that_cannot_keep_a_conversion_costs_time_only(entry, how, monkeypatch, caplog):
    fsync, kept = os.fsync, files.cache()

    def refuse(descriptor):
        if kept in Path(f"/proc/self/fd/{descriptor}").readlink().parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    if how == "the disk is full":
        monkeypatch.setattr(os, "fsync", refuse)
    else:
        kept.write_text("")

    folder = conversions.conversion(entry, CHECKPOINT)

    assert zoo.load(folder).zoo_entry.name == "tiny"
    assert kept not in folder.parents
    assert "tiny isn't kept, but converted for this process alone: " in caplog.text
    assert conversions.converted_before(entry) is None


def test_the_last_conversion_is_the_last_one_though_the_clock_was_set_back(entry):
    entries = [structs.replace(entry, license=license) for license in ("mit", "0bsd")]
    first, last = (conversions.conversion(each, CHECKPOINT) for each in entries)
    os.utime(last, (0, 0))

    assert first != last
    assert conversions.converted_before(entry) == last


@pytest.mark.parametrize("text", ["", "{}", '{"folder": 5}', '{"folder": "../elsewhere"}', '{"folder": "gone"}'])
def test_a_damaged_note_of_the_last_conversion_costs_time_only(entry, text):
    (files.cache() / "converted").mkdir(parents=True)
    (files.cache() / "converted" / "tiny.json").write_text(text)
    assert conversions.converted_before(entry) is None
