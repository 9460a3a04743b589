"""A server that is killed, cut off, slow, full or asked by many at once: nothing is lost and nothing is half there."""

import contextlib
import hashlib
import http.client
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hub import ask, batch, commit, content, create, follow, large, regular, serving

from zoo.server.values import ATTRIBUTES

DATA = bytes(range(256)) * 40


def whole(address):
    """Everything that clients can see, without the hashes that times are part of."""
    state = {}
    for row in ask(address, "GET", "/api/models").json():
        name = row["id"]
        refs = ask(address, "GET", f"/api/models/{name}/refs").json()
        for ref in refs["branches"] + refs["tags"]:
            at = ref["targetCommit"]
            files = {}
            for each in ask(address, "GET", f"/api/models/{name}/tree/{at}?recursive=true").json():
                if each["type"] == "file":
                    found = content(address, name, each["path"], at)
                    assert (found.status, len(found.body)) == (200, each["size"])
                    files[each["path"]] = hashlib.sha256(found.body).hexdigest()
            titles = [each["title"] for each in ask(address, "GET", f"/api/models/{name}/commits/{at}").json()]
            state[name, ref["ref"]] = (files, titles)
    return state


def unfinished(folder):
    """Files that were being written."""
    return [path for path in folder.rglob(".*") if path.name != ".hub"]


def add(address):
    lines = [regular("a.txt", "new"), regular("b/c.txt", "new"), large(address, "org/one", "w.bin", DATA)]
    lines.append(("deletedFile", {"path": "old.txt"}))
    return commit(address, "org/one", *lines, title="added")


def in_parts(address):
    return commit(address, "org/one", large(address, "org/one", "p.bin", DATA * 2), title="parts")


def delete(address):
    return ask(address, "DELETE", "/api/repos/delete", {"organization": "org", "name": "one"})


def move(address):
    return ask(address, "POST", "/api/repos/move", {"fromRepo": "org/one", "toRepo": "other/name"})


def tag(address):
    return ask(address, "POST", "/api/models/org/one/tag/main", {"tag": "v1"})


def make(address):
    return create(address, "org/two")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with a repository of two commits."""
    folder = tmp_path_factory.mktemp("before") / "hub"
    with serving(folder) as address:
        create(address, "org/one")
        lines = [regular("old.txt", "old"), regular("a.txt", "old"), large(address, "org/one", "v.bin", b"\0old")]
        assert commit(address, "org/one", *lines, title="old").status == 200
    return folder


@pytest.mark.parametrize("change", [add, in_parts, make, delete, move, tag])
def test_a_server_killed_at_any_step_leaves_the_state_before_or_after_and_the_change_can_be_made_again(
    before, change, tmp_path
):
    states, outcomes = [], []
    for kill in range(500):  # the 0th is never killed
        folder = shutil.copytree(before, tmp_path / str(kill))
        done = False
        with serving(folder, part=8192, faults={"kill": kill}) as address:
            if not kill:
                states.append(whole(address))
            with contextlib.suppress(http.client.HTTPException, ConnectionError):
                done = change(address).status == 200
        with serving(folder, part=8192) as address:
            found = whole(address)
            if not kill:
                states.append(found)
            assert found in states
            if found == states[0]:
                outcomes.append("before")
                assert change(address).status == 200
                assert whole(address) == states[1]
            else:
                outcomes.append("after")
        assert unfinished(folder) == []
        if kill and done:
            break

    assert states[0] != states[1]
    assert outcomes[1] == "before"
    assert outcomes[-2:] == ["after", "after"]  # killed when all was done but the answer, and not at all
    assert outcomes[1:] == sorted(outcomes[1:], reverse=True)


def test_what_was_committed_is_there_after_a_restart_and_pinned_revisions_stay(before, tmp_path):
    folder = shutil.copytree(before, tmp_path / "hub")
    with serving(folder) as address:
        old = ask(address, "GET", "/api/models/org/one").json()["sha"]
        assert add(address).status == tag(address).status == 200
        link = ask(address, "GET", "/org/one/resolve/main/w.bin").headers["location"]
        state = whole(address)
    with serving(folder) as address:
        assert whole(address) == state
        assert content(address, "org/one", "old.txt", old).body == b"old"
        again = ask(address, "GET", "/org/one/resolve/main/w.bin").headers["location"]
        moved = again.split("/models/")[0] + "/models/" + link.split("/models/")[1]
        assert follow(moved).body == DATA  # an address given before the restart still holds


def test_commits_of_many_at_once_are_all_there(before, tmp_path):
    with serving(shutil.copytree(before, tmp_path / "hub")) as address, ThreadPoolExecutor(8) as pool:
        names = [f"{number}.txt" for number in range(40)]
        answers = list(pool.map(lambda name: commit(address, "org/one", regular(name, name), title=name), names))
        rows = ask(address, "GET", "/api/models/org/one/commits/main").json()

        assert {answer.status for answer in answers} == {200}
        assert sorted(row["title"] for row in rows[:40]) == sorted(names)
        assert rows[0]["id"] in [answer.json()["commitOid"] for answer in answers]
        assert [content(address, "org/one", name).body.decode() for name in names] == names


def test_of_many_commits_on_one_parent_the_first_is_taken_and_the_others_hear_412(before, tmp_path):
    with serving(shutil.copytree(before, tmp_path / "hub")) as address, ThreadPoolExecutor(8) as pool:
        parent = ask(address, "GET", "/api/models/org/one").json()["sha"]

        def attempt(number):
            return commit(address, "org/one", regular("a.txt", str(number)), parent=parent)

        answers = list(pool.map(attempt, range(8)))
        winner = next(number for number, answer in enumerate(answers) if answer.status == 200)

        assert sorted(answer.status for answer in answers) == [200] + 7 * [412]
        assert content(address, "org/one", "a.txt").body == str(winner).encode()
        assert commit(address, "org/one", regular("a.txt", "x"), parent=parent[:7]).status == 412
        head = answers[winner].json()["commitOid"]
        assert commit(address, "org/one", regular("a.txt", "y"), parent=head[:7]).status == 200


def test_a_full_disk_is_said_and_leaves_what_was_there(before, tmp_path):
    folder = shutil.copytree(before, tmp_path / "hub")
    with serving(folder, faults={"full": 20_000}) as address:
        state = whole(address)
        data = DATA * 3
        oid = hashlib.sha256(data).hexdigest()
        upload = batch(address, "org/one", oid, len(data)).json()["objects"][0]["actions"]["upload"]
        answer = follow(upload["href"], "PUT", data)

        assert answer.status == 507
        assert "nothing half-written was left" in answer.json()["error"]
        assert commit(address, "org/one", ("lfsFile", {"path": "w", "oid": oid})).status == 400
        assert commit(address, "org/one", regular("long.txt", "x" * 30_000)).status == 507
        assert whole(address) == state
        assert commit(address, "org/one", regular("short.txt", "x")).status == 200
    assert unfinished(folder) == []


@pytest.mark.parametrize(("full", "where"), [(4_000, "a part"), (12_000, "joining them")])
def test_a_disk_that_fills_up_during_an_upload_in_parts_keeps_those_and_the_client_goes_on(
    full, where, before, tmp_path
):
    folder, data = shutil.copytree(before, tmp_path / "hub"), DATA * 2
    oid = hashlib.sha256(data).hexdigest()
    with serving(folder, part=8192, faults={"full": full}) as address:
        state = whole(address)
        upload = batch(address, "org/one", oid, len(data)).json()["objects"][0]["actions"]["upload"]
        parts = [url for key, url in upload["header"].items() if key != "chunk_size"]
        sent = [follow(url, "PUT", data[8192 * at : 8192 * (at + 1)]).status for at, url in enumerate(parts)]
        joined = follow(upload["href"], "POST", "{}").status

        assert {*sent[:-1]} == {507 if where == "a part" else 200}
        assert joined == (400 if where == "a part" else 507)
        assert unfinished(folder) == []
        assert whole(address) == state
    with serving(folder, part=8192) as address:
        assert commit(address, "org/one", large(address, "org/one", "p.bin", data)).status == 200
        assert content(address, "org/one", "p.bin").body == data
    assert unfinished(folder) == []


def broken():
    yield b"x" * 5_000_000
    raise BrokenPipeError


def test_an_upload_that_breaks_off_leaves_nothing(before, tmp_path):
    folder = shutil.copytree(before, tmp_path / "hub")
    known = sorted(folder.rglob("*"))
    with serving(folder) as address:
        upload = batch(address, "org/one", "ab" * 32, 9_000_000).json()["objects"][0]["actions"]["upload"]
        with pytest.raises(BrokenPipeError):
            follow(upload["href"], "PUT", broken(), Content_Length="9000000")
        assert follow(upload["href"], "PUT", b"x" * 10).status == 400

        until = time.monotonic() + 10
        while (left := [path for path in folder.rglob("*") if path.is_file() and path not in known]) and (
            time.monotonic() < until
        ):
            time.sleep(0.01)

    assert left == []


def test_bytes_that_nothing_uses_any_more_are_removed_a_day_later(before, tmp_path):
    folder = shutil.copytree(before, tmp_path / "hub")
    blobs = folder / ".hub" / "blobs"

    def stored(age):
        then = time.time() - age  # noqa: TID251  # files have the clock's time
        for path in [*blobs.glob("*/*"), *(folder / ".hub" / "parts").glob("*")]:
            os.utime(path, (then, then))
        with serving(folder, part=8192) as address:
            assert whole(address)
        return {path.name for path in blobs.glob("*/*")}

    with serving(folder, part=8192) as address:
        make(address)
        used = {path.name for path in blobs.glob("*/*")}
        large(address, "org/one", "never committed", DATA)
        oid = hashlib.sha256(DATA * 2).hexdigest()
        header = batch(address, "org/one", oid, len(DATA * 2)).json()["objects"][0]["actions"]["upload"]["header"]
        assert follow(header["1"], "PUT", DATA[:8192]).status == 200
    parts = folder / ".hub" / "parts" / oid

    assert stored(80_000) == used | {hashlib.sha256(DATA).hexdigest()}
    assert parts.exists()
    assert stored(90_000) == used
    assert not parts.exists()
    with serving(folder) as address:
        assert delete(address).status == 200
    assert stored(90_000) == {hashlib.sha256(ATTRIBUTES).hexdigest()}
