"""The index of a large catalog: never anything but what the files say, whatever becomes of it or of them."""

import os
import time
from types import SimpleNamespace

import pytest

from zoo import atomic, catalog
from zoo.catalog import index, reader
from zoo.errors import CatalogError

FAMILY = '[family]\narchitecture = "resnet18"\ntask = "image-classification"\nbase = "timm/resnet18.a1_in1k"\n'
MODEL = '[[model]]\nname = "{0}"\nrecipe = {{method = "prune", budget = {{macs = 0.5}}}}\nreported = [{{top1 = 0.5}}]\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A catalog of three files with two models each, and an index of it; the files have settled."""
    monkeypatch.setattr(reader, "INDEXED", 1)
    monkeypatch.setattr(index, "SETTLED", 0)
    folder = tmp_path / "mine"
    for project, family in (("one", "a"), ("one", "b"), ("two", "c")):
        (folder / project).mkdir(parents=True, exist_ok=True)
        (folder / project / f"{family}.toml").write_text(
            FAMILY + MODEL.format(f"{family}1") + MODEL.format(f"{family}2")
        )
    time.sleep(0.02)  # a tick of the file system's clock
    assert list(read(folder)) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert (folder / index.NAME).is_file()
    return folder


def read(folder):
    """What a new process would read: name → entry."""
    reader.read_catalog.cache_clear()
    return dict(reader.read_catalog(folder))


def from_files(folder):
    """The same, whatever an index says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "taken", lambda path: {})
        patch.setattr(index, "keep", lambda path, parts: None)
        return read(folder)


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, as they are."""
    found, toml = [], reader._toml
    monkeypatch.setattr(reader, "_toml", lambda file: found.append(file.name) or toml(file))
    return found


def test_what_an_index_says_is_what_the_files_say_and_none_of_them_is_read(folder, reads):
    entries = read(folder)

    assert reads == []
    assert entries == from_files(folder)
    assert entries["c1"].recipe.budget.macs == 0.5


def test_a_model_is_made_of_the_index_when_it_is_looked_up(folder, monkeypatch):
    monkeypatch.setenv("ZOO_CATALOG", str(folder))
    monkeypatch.setattr(reader, "INDEXED", 1_000)  # the package's own needs none
    reader.read_catalog.cache_clear()
    catalog.known("nothing")
    decoder, made = index._DECODER, []
    counting = SimpleNamespace(decode=lambda fields: made.append(fields) or decoder.decode(fields))
    monkeypatch.setattr(index, "_DECODER", counting)

    assert [catalog.info("b2").name, catalog.info("b2").name] == ["b2", "b2"]
    assert len(made) == 1


def rewritten(folder):
    (folder / "one" / "b.toml").write_text(FAMILY + MODEL.format("b9"))


def rewritten_with_its_time_set_back(folder):
    path = folder / "one" / "b.toml"
    before = path.stat()
    path.write_text(path.read_text().replace("0.5", "0.6"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_one_as_old_and_large(folder):
    path = folder / "one" / "b.toml"
    path.with_suffix(".new").write_text(path.read_text().replace("b1", "b3"))
    os.utime(path.with_suffix(".new"), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rewritten, ["b.toml"]),
        (rewritten_with_its_time_set_back, ["b.toml"]),
        (replaced_by_one_as_old_and_large, ["b.toml"]),
        (lambda folder: (folder / "one" / "b.toml").rename(folder / "one" / "d.toml"), ["d.toml"]),
        (lambda folder: (folder / "one").rename(folder / "three"), ["a.toml", "b.toml"]),
        (lambda folder: (folder / "two" / "new.toml").write_text(FAMILY + MODEL.format("x")), ["new.toml"]),
        (lambda folder: (folder / "two" / "c.toml").unlink(), []),
    ],
)
def test_a_file_that_changed_is_read_again_and_no_other(folder, reads, change, expected):
    change(folder)
    time.sleep(0.02)
    entries = read(folder)

    assert reads == expected
    assert entries == from_files(folder)
    reads.clear()
    assert entries == read(folder)
    assert reads == []


def test_a_file_that_changed_just_before_the_index_was_written_is_read_again(folder, reads, monkeypatch):
    monkeypatch.setattr(index, "SETTLED", 3600 * 10**9)  # all of them
    read(folder)

    assert reads == ["a.toml", "b.toml", "c.toml"]


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


@pytest.mark.parametrize(
    "damage", [cut, flipped, lambda data: b"", lambda data: data + b"\0", lambda data: b"\xc1" * 99]
)
def test_a_damaged_index_is_made_again(folder, reads, damage):
    path = folder / index.NAME
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    read(folder)

    assert reads == ["a.toml", "b.toml", "c.toml"]
    assert path.read_bytes() == whole


def test_the_index_of_another_version_is_made_again(folder, reads, monkeypatch):
    monkeypatch.setattr(index, "_code", lambda: b"another")
    read(folder)

    assert reads == ["a.toml", "b.toml", "c.toml"]


def test_an_index_that_somebody_else_wrote_says_nothing_that_a_file_may_not(folder):
    path = folder / index.NAME
    data = path.read_bytes()[index._DIGEST :].replace(b"resnet18", b"resnet\xff8").replace(b"prune", b"shrug")
    path.write_bytes(index._digest(data) + data)

    with pytest.raises(CatalogError, match=r"\.zoo-index: a1: .*remove that file, it is made again"):
        read(folder)


@pytest.mark.parametrize("where", ["a folder that is read only", "a disk that is full", "something else of that name"])
def test_where_no_index_can_be_written_the_models_are_there_all_the_same(folder, reads, monkeypatch, where):
    expected, path = from_files(folder), folder / index.NAME
    path.unlink()
    reads.clear()
    if where == "a folder that is read only":
        monkeypatch.setattr(index.os, "access", lambda *_: False)
    elif where == "a disk that is full":
        monkeypatch.setattr(atomic, "_flush", full)
        monkeypatch.setattr(atomic.os, "fsync", full)
    else:
        path.mkdir()

    assert read(folder) == expected == read(folder)
    assert len(reads) == (3 if where == "a folder that is read only" else 6)  # which has its index in the cache
    assert sorted(os.listdir(folder)) == ([index.NAME] if path.exists() else []) + ["one", "two"]


def full(*_):
    raise OSError(28, "No space left on device")


def test_what_msgpack_would_change_is_left_to_its_file(folder, reads):
    text = FAMILY.replace('base = "timm/resnet18.a1_in1k"', 'base = {id = "timm/resnet18", args = {x = 1999-12-31}}')
    (folder / "two" / "dated.toml").write_text(text + MODEL.format("dated"))
    time.sleep(0.02)
    for _ in range(2):
        assert read(folder)["dated"].base.args["x"].year == 1999
    assert reads == ["dated.toml", "dated.toml"]


def test_a_mistake_beside_an_index_names_file_entry_and_key(folder):
    (folder / "one" / "b.toml").write_text(FAMILY + MODEL.format("b1").replace("macs", "mac"))
    with pytest.raises(CatalogError, match=r"b.toml: b1.recipe.budget: unknown key 'mac'"):
        read(folder)

    (folder / "one" / "b.toml").write_text(FAMILY + MODEL.format("c2"))
    with pytest.raises(CatalogError, match="c2 stands in one/b and in two/c"):
        read(folder)


def test_a_small_catalog_has_no_index(folder, monkeypatch):
    (folder / index.NAME).unlink()
    monkeypatch.setattr(reader, "INDEXED", 7)
    read(folder)

    assert not (folder / index.NAME).exists()


def test_an_index_is_whole_or_as_it_was(folder, monkeypatch):
    before = (folder / index.NAME).read_bytes()
    rewritten(folder)
    monkeypatch.setattr(atomic.os, "replace", full)  # the last step
    read(folder)

    assert (folder / index.NAME).read_bytes() == before
