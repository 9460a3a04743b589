"""Files and folders are the former one or the new one, whole, whatever happens at whichever step of writing them."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import moments
import pytest

import zoo
from zoo import atomic, catalog
from zoo.errors import StorageError
from zoo.exchange import exchanged

CASES = [
    *(f"folder/{lacking}/{former}/killed" for lacking in moments.LACKING for former in ("nothing", "old")),
    "folder/whole/empty/killed",
    "file/whole/nothing/killed",
    *(f"folder/{lacking}/old/{cut}" for lacking in ("whole", "no exchange") for cut in moments.CUTS[1:]),
    *(f"file/whole/old/{cut}" for cut in moments.CUTS),
    *(f"folder/{lacking}/old/{other}" for lacking in ("whole", "neither") for other in moments.OTHERS),
    "file/whole/old/written",
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Case → a row for each step."""
    script = [sys.executable, moments.__file__, str(tmp_path_factory.mktemp("moments")), *CASES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(moments.CUTS)])
def test_cut_off_at_any_step_the_former_or_the_new_one_is_found_and_the_next_write_leaves_nothing_else(case, rows):
    kind, lacking, former, cut = case.split("/")
    found = [row["found"] for row in rows[case] if row["came"] != "unharmed"]

    assert len(found) > (5 if kind == "file" else 10)
    assert {*found} == {former, "new"}
    assert found == sorted(found, key=["nothing", "empty", "old", "new"].index)  # the new one from some step on
    for row in rows[case]:
        assert row["next"] == "next"
        if lacking not in ("no locks", "neither"):  # there, nothing tells a killed process from a living one
            assert row["left then"] == []
        if cut != "killed":
            said = "the disk is full; nothing half-written was left" if cut == "full" else "interrupted"
            assert said in row["came"] or (row["found"], row["came"]) == ("new", "unharmed")
            assert row["left"] == [] or row["found"] == "new"  # what was to be removed couldn't be


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(moments.OTHERS)])
def test_what_another_process_does_at_any_step_harms_neither(case, rows):
    _, lacking, former, other = case.split("/")
    found = {"read": {"new"}, "written": {"new", "other"}, "discarded": {"new", "nothing"}}[other]
    if (lacking, other) == ("neither", "discarded"):
        found |= {former}  # which was put back, as nothing tells that its place was taken in between

    assert {row["found"] for row in rows[case]} == found
    assert {(row["came"], *row["left"], row["next"], *row["left then"]) for row in rows[case]} == {("unharmed", "next")}
    if other == "read":
        assert {row["read"] for row in rows[case]} == {"old", "new"}


def test_what_a_living_process_writes_is_left_alone_by_whoever_writes_beside_it(tmp_path):
    with atomic.replacing(tmp_path / "folder") as new, atomic.writing(tmp_path / "file") as file:
        (new / "one").write_text("1")
        file.write(b"1")
        atomic.sweep(tmp_path)
        with atomic.writing(tmp_path / "other"):
            pass
        (new / "two").write_text("2")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "file",
        "folder",
        "folder/one",
        "folder/two",
        "other",
    ]


def test_of_those_that_want_a_place_alone_one_comes_after_the_other_and_nothing_stays(tmp_path):
    place, happened = tmp_path / "place", []

    def act(number):
        with atomic.alone(place, lambda: happened.append("waits")):
            happened.append(f"{number} begins")
            atomic.sweep(place.parent)
            time.sleep(0.02)
            happened.append(f"{number} ends")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(8)))

    done = [each for each in happened if each != "waits"]
    assert len(done) == 16
    assert [each.replace("begins", "ends") for each in done[::2]] == done[1::2]
    assert "waits" in happened
    with atomic.alone(tmp_path / "new" / "folder" / "place"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_removed_that_only_looks_alike(tmp_path):
    names = [".model.zoo-aside", ".model.12345678.zoo", "model.12345678.zoo-aside", ".model.12345678.zoo-aside.folder"]
    names.append("...12345678.zoo-aside")  # of the place `.`, which is none
    for name in names:
        (tmp_path / name).write_text("years of work")
    with atomic.writing(tmp_path / "model"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "model"])


def test_what_is_written_is_on_the_disk_before_it_takes_its_place_and_that_before_the_former_one_goes(
    tmp_path, monkeypatch
):
    happened = []

    def told(what, call):
        def wrapped(first, *others):
            path = Path(f"/proc/self/fd/{first}").readlink() if what == "flush" else Path(first)
            happened.append((what, str(path.relative_to(tmp_path)).partition(".zoo-aside")[2] or path.name))
            return call(first, *others)

        return wrapped

    moments.replace_folder(tmp_path / "model", "old")
    monkeypatch.setattr(os, "fsync", told("flush", os.fsync))
    monkeypatch.setattr(atomic, "exchanged", told("exchange", exchanged))
    monkeypatch.setattr(atomic.shutil, "rmtree", told("remove", atomic.shutil.rmtree))
    moments.replace_folder(tmp_path / "model", "new")

    files = [("flush", f".folder{path}") for path in ("/a", "/b", "/b/c", "")]
    assert (sorted(happened[:3]), happened[3]) == (files[:3], files[3])
    assert happened[4:] == [("exchange", ".folder"), ("flush", tmp_path.name), ("remove", ".folder")]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_system_that_cannot_exchange_is_told_from_one_that_refuses(number, tmp_path, monkeypatch):
    class System:
        @staticmethod
        def renameat2(*given):
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *given, **options: System)
    monkeypatch.setattr("ctypes.get_errno", lambda: number)
    assert not exchanged(tmp_path / "one", tmp_path / "other")
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EACCES)
    with pytest.raises(PermissionError):
        exchanged(tmp_path / "one", tmp_path / "other")
    monkeypatch.delattr(System, "renameat2")
    assert not exchanged(tmp_path / "one", tmp_path / "other")


def test_a_folder_that_may_not_be_emptied_is_not_replaced(tmp_path, monkeypatch):
    moments.replace_folder(tmp_path / "model", "old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(StorageError, match="can't be written: Permission denied"):
        moments.replace_folder(tmp_path / "model", "new")
    assert moments.content(tmp_path / "model") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_through_a_link_the_folder_that_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    for text in ("old", "new"):
        moments.replace_folder(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert moments.content(tmp_path / "disk" / "model") == text
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_a_folder_is_discarded_at_once_and_one_that_is_not_there_costs_nothing(tmp_path, monkeypatch):
    moments.replace_folder(tmp_path / "model", "old")
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(atomic.shutil, "rmtree", lambda path: exec("raise KeyboardInterrupt"))
        atomic.discard(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    atomic.discard(tmp_path / "new folder" / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "ask",
    [
        zoo.load,
        zoo.create,
        lambda name: zoo.load(Path(name)),
        lambda name: zoo.push(name, "./elsewhere"),
        lambda name: zoo.verify(name, structure_only=True),
    ],
    ids=["load", "create", "load a path", "push", "verify"],
)
def test_whoever_asks_for_a_model_whose_replacement_was_cut_off_finds_the_former_one(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo.push(catalog.EMBEDDED / "digits_cnn_pruned_25", "./org/name")
    (tmp_path / "org" / "name").rename(tmp_path / "org" / ".name.12345678.zoo-aside.former")
    (tmp_path / "org" / ".name.12345678.zoo-aside").touch()

    ask("org/name")
    assert (tmp_path / "org" / "name" / "model.safetensors").is_file()
