"""The folder that is served, and what it holds: repositories, commits, branches and tags.

    DIR/<namespace>/<name>/config.json …           a plain repository, as it lies there: read only (see `plain`)
    DIR/.hub/<kind>s/<namespace>/<name>/
        repository.json                            settings, branches and tags: commit hashes by name
        commits/<sha1 of the file>.json            parent, title, message, date and every file of that commit
    DIR/.hub/blobs/ab/abcdef…                      the files' bytes by sha256 (see `blobs`)
    DIR/.hub/parts/  trash/                        in the making; on its way out
    DIR/.hub/key  lock                             signs addresses of downloads; held by the one server of this folder

A repository is there as soon as, and as long as, it has its repository.json. This module reads; `changes` writes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from zoo.errors import RepositoryError
from zoo.files import read_json
from zoo.server import blobs, plain
from zoo.server.errors import RepoNotFound, RevisionNotFound
from zoo.server.log import say_once
from zoo.server.names import HASH, RepoId, repo_id
from zoo.server.values import Commit, File

MAX_COMMIT = 64 * 2**20  # bytes of a commit's file, which names every file of the repository


@dataclass(frozen=True)
class Repository:
    """A repository as it stands now.

    Args:
        name: its kind and id.
        folder: where it lies.
        created: when, in ISO format.
        private: only the owner may know of it.
        gated: auto or manual if its files are for the owner alone, else False.
        branches: commit hashes by name.
        tags: the same.
        tree: for a plain folder, its only commit.
    """

    name: RepoId
    folder: Path
    created: str
    private: bool = False
    gated: str | bool = False
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    tree: Commit | None = None


def find(root: Path, name: RepoId) -> Repository:
    """The repository of that name.

    Args:
        root: the server's own folder, DIR/.hub.
        name: its kind and id.

    Raises:
        RepoNotFound: there is none.
    """
    folder = home(root, name)
    try:
        return Repository(name, folder, **read_json(folder / "repository.json"))
    except RepositoryError:
        if (folder / "repository.json").exists():
            raise
    if name.kind == "model" and (tree := plain.commit(root.parent, name.id)):
        return Repository(name, root.parent / name.id, tree.date, branches={"main": tree.id}, tree=tree)
    raise RepoNotFound(f"no {name.kind} {name.id!r}")


def names(root: Path, kind: str) -> set[str]:
    """The ids of what the server holds of a kind."""
    stored = [path.parent.relative_to(root / f"{kind}s") for path in root.glob(f"{kind}s/*/*/repository.json")]
    return {path.as_posix() for path in stored}


def is_stored(root: Path, name: RepoId) -> bool:
    """Whether the server holds a repository of that name."""
    return (home(root, name) / "repository.json").exists()


def repositories(root: Path, kind: str) -> Iterator[Repository]:
    """Every repository of a kind, by name; one that is damaged is left out."""
    plains = plain.repository_names(root.parent) if kind == "model" else ()
    return named(root, kind, sorted({*names(root, kind), *plains}))


def named(root: Path, kind: str, ids: Iterable[str]) -> Iterator[Repository]:
    """The repositories of some names; one that is damaged is left out."""
    for name in ids:
        try:
            yield find(root, repo_id(kind, name))
        except RepoNotFound:  # it went away meanwhile
            continue
        except (RepositoryError, OSError, TypeError) as error:
            say_once(f"{kind} {name} is left out: {error}")


def resolved(repository: Repository, revision: str) -> Commit:
    """The commit that a branch, a tag or a full hash means.

    Raises:
        RevisionNotFound: it means none; short hashes never do.
    """
    known = repository.branches.get(revision) or repository.tags.get(revision) or revision
    if repository.tree and known == repository.tree.id:
        return repository.tree
    path = repository.folder / "commits" / f"{known}.json"
    if repository.tree or not HASH.fullmatch(known) or not path.is_file():
        raise RevisionNotFound(f"{repository.name.kind} {repository.name.id} has no revision {revision!r}")
    return _read(path)


@lru_cache(maxsize=32)  # each may hold a row for each of some 100,000 files
def _read(path: Path) -> Commit:
    data = read_json(path, MAX_COMMIT)
    files = {name: File(*each) for name, each in data.pop("files").items()}
    return Commit(path.stem, **data, files=files)


def history(repository: Repository, commit: Commit) -> Iterator[Commit]:
    """A commit and those before it, newest first."""
    yield commit
    while commit.parent:
        commit = resolved(repository, commit.parent)
        yield commit


def location(root: Path, repository: Repository, commit: Commit, path: str) -> Path:
    """Where the bytes of a commit's file lie."""
    return repository.folder / path if repository.tree else blobs.location(root, commit.files[path].sha256)


def home(root: Path, name: RepoId) -> Path:
    """Where a repository that the server made lies."""
    return root / f"{name.kind}s" / name.id
