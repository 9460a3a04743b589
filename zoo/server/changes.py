"""Changes to the folder that is served, each made whole by one rename.

A commit's files and the commit itself are on the disk before the rename of `repository.json` that makes it the
branch's: a server killed between any two steps leaves the old commit or the new one. What such a step left behind is
swept up before the next start.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zoo.atomic import writing
from zoo.errors import RepositoryError
from zoo.files import read_json, write_json
from zoo.server import blobs, listings
from zoo.server.errors import BadRequest, Conflict, Forbidden, RepoNotFound, RevisionNotFound, StaleParent, TooLarge
from zoo.server.log import say_once
from zoo.server.names import KINDS, RepoId, ref
from zoo.server.store import MAX_COMMIT, Repository, find, home, resolved
from zoo.server.values import ATTRIBUTES, Change, Commit, File, changed, git_oid

REFS = 3000  # branches of a repository, and tags
_one = threading.Lock()  # change at a time


def create(root: Path, name: RepoId, private: bool) -> Repository:
    """Make a repository whose first commit holds .gitattributes, as the Hub's do.

    Raises:
        Conflict: there is one of that name.
    """
    with _one:
        with contextlib.suppress(RepoNotFound):
            find(root, name)
            raise Conflict(f"{name.kind} {name.id} exists already")
        sha256 = blobs.keep(root, ATTRIBUTES)
        files = {".gitattributes": File(git_oid(ATTRIBUTES), len(ATTRIBUTES), sha256, False)}
        folder = home(root, name)
        first = _write(folder, Commit("", None, "initial commit", "", _now(), files))
        return _put(root, Repository(name, folder, first.date, private, branches={"main": first.id}))


def delete(root: Path, name: RepoId) -> None:
    """Remove a repository; bytes that nothing else uses go a day later."""
    with _one:
        folder = _stored(root, name).folder
        trash = root / "trash"
        trash.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=trash))
        os.rename(folder, aside / "repository")
        listings.forget(root, name)
    shutil.rmtree(aside, ignore_errors=True)


def move(root: Path, name: RepoId, to: RepoId) -> None:
    """Give a repository another name.

    Raises:
        Conflict: there is one of the new name.
    """
    with _one:
        folder = _stored(root, name).folder
        with contextlib.suppress(RepoNotFound):
            find(root, to)
            raise Conflict(f"{to.kind} {to.id} exists already")
        target = home(root, to)
        shutil.rmtree(target, ignore_errors=True)  # what an interrupted creation left
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)
        for each in (name, to):
            listings.forget(root, each)


def configure(root: Path, name: RepoId, **settings: Any) -> None:
    """Change whether a repository is private or gated."""
    with _one:
        _put(root, replace(_stored(root, name), **settings))


def commit(
    root: Path,
    name: RepoId,
    branch: str,
    changes: list[Change],
    title: str,
    message: str = "",
    parent: str | None = None,
) -> Commit:
    """Add a commit to a branch.

    Args:
        root: the server's own folder.
        name: the repository.
        branch: which branch.
        changes: what is added and deleted, in order.
        title: the first line of the message.
        message: the rest.
        parent: the commit, or its first seven digits at least, that must be the branch's head.

    Returns:
        The branch's new head.

    Raises:
        RevisionNotFound: there is no such branch.
        StaleParent: the branch has moved on.
        EntryNotFound: what shall be deleted isn't there.
        BadRequest: a file would be a folder too.
    """
    with _one:
        repository = _stored(root, name)
        if branch not in repository.branches:
            raise RevisionNotFound(f"{name.kind} {name.id} has no branch {branch!r}")
        head = resolved(repository, repository.branches[branch])
        if parent and not (len(parent) >= 7 and head.id.startswith(parent)):
            raise StaleParent(f"the parent is to be {parent}, {branch} is at {head.id}: fetch it and commit again")
        new = Commit("", head.id, title, message, _now(), changed(head, changes))
        new = _write(repository.folder, new)
        _put(root, replace(repository, branches={**repository.branches, branch: new.id}))
        return new


def add_ref(root: Path, name: RepoId, kind: str, new: str, revision: str) -> None:
    """Make a branch or a tag.

    Args:
        root: the server's own folder.
        name: the repository.
        kind: branches or tags.
        new: what it shall be called.
        revision: where it shall point.

    Raises:
        Conflict: there is one.
        TooLarge: there are too many.
    """
    with _one:
        repository = _stored(root, name)
        refs: Mapping[str, str] = getattr(repository, kind)
        commit = resolved(repository, revision)
        if ref(new) in refs:
            raise Conflict(f"{name.kind} {name.id}: {new!r} is among its {kind} already")
        if len(refs) >= REFS:
            raise TooLarge(f"{name.kind} {name.id} has {REFS} {kind}: remove some")
        _put(root, _with(repository, kind, {**refs, new: commit.id}))


def remove_ref(root: Path, name: RepoId, kind: str, old: str) -> None:
    """Remove a branch or a tag; main stays."""
    with _one:
        repository = _stored(root, name)
        refs: Mapping[str, str] = getattr(repository, kind)
        if old not in refs:
            raise RevisionNotFound(f"{name.kind} {name.id} has no {old!r} among its {kind}")
        if kind == "branches" and old == "main":
            raise Forbidden("the branch main can't be deleted")
        _put(root, _with(repository, kind, {each: to for each, to in refs.items() if each != old}))


def sweep(root: Path) -> None:
    """Remove what interrupted work left. To be called before serving: nothing else may be writing."""
    shutil.rmtree(root / "trash", ignore_errors=True)
    used: set[str] = set()
    for kind in KINDS:
        for path in root.glob(f"{kind}s/*/*/**/.*.json.*"):
            path.unlink(missing_ok=True)
        for path in root.glob(f"{kind}s/*/*/commits/*.json"):
            try:
                used.update(each[2] for each in read_json(path, MAX_COMMIT)["files"].values())
            except RepositoryError as error:  # one damaged commit doesn't keep the server from beginning
                say_once(f"bytes that nothing uses aren't removed, as it isn't known what does: {error}")
                return
    blobs.sweep(root, used)


def _stored(root: Path, name: RepoId) -> Repository:
    repository = find(root, name)
    if repository.tree:
        raise Forbidden(f"{name.id} is a plain folder, which is served as it lies: change its files there")
    return repository


def _with(repository: Repository, kind: str, refs: Mapping[str, str]) -> Repository:
    return replace(repository, branches=refs) if kind == "branches" else replace(repository, tags=refs)


def _put(root: Path, repository: Repository) -> Repository:
    kept = {key: getattr(repository, key) for key in ("created", "private", "gated", "branches", "tags")}
    write_json(repository.folder / "repository.json", kept)
    listings.forget(root, repository.name)
    return repository


def _write(folder: Path, new: Commit) -> Commit:
    files = {path: [file.oid, file.size, file.sha256, file.lfs] for path, file in sorted(new.files.items())}
    kept = {"parent": new.parent, "title": new.title, "message": new.message, "date": new.date, "files": files}
    try:
        data = json.dumps(kept, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("title and message of a commit must be text") from None
    if len(data) > MAX_COMMIT:
        raise TooLarge(f"a commit of {len(new.files)} files is more than one can be read back")
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    with writing(folder / "commits" / f"{sha1}.json") as file:
        file.write(data)
    return replace(new, id=sha1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
