"""Repositories, files and commits in the Hub's JSON."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.server import metadata
from zoo.server.store import Repository, history, location, resolved
from zoo.server.values import Commit, File, parents, pointer

Json = dict[str, Any]
LOOKED_AT = 200_000  # files of all commits, for the last that changed one
BRIEF = {"id", "author", "private", "gated", "downloads", "likes", "tags", "pipeline_tag", "library_name", "createdAt"}
BRIEF |= {"lastModified", "sdk"}
LISTED = {"author", "private", "gated", "lastModified", "createdAt", "downloads", "likes", "trendingScore"}
LISTED |= {"tags", "pipeline_tag"}


def summary(root: Path, repository: Repository, commit: Commit) -> Json:
    """What is known of a repository without hashing its files.

    Args:
        root: the server's own folder.
        repository: which.
        commit: at which state.
    """
    kind, files = repository.name.kind, commit.files
    card = metadata.card(location(root, repository, commit, "README.md")) if "README.md" in files else {}
    data: Json = {
        "id": repository.name.id,
        "author": repository.name.author,
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": repository.created,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "trendingScore": 0,
        "tags": metadata.tags(card, iter(files)),
        "cardData": card,
        "siblings": [{"rfilename": path} for path in files],
    }
    if kind == "model":
        data["pipeline_tag"] = next(iter(metadata.strings(card.get("pipeline_tag"))), None)
        data["library_name"] = next(iter(metadata.strings(card.get("library_name"))), None)
        data["model-index"] = card.get("model-index")
        if "model.safetensors" in files:
            counts = metadata.parameter_counts(location(root, repository, commit, "model.safetensors"))
            data["safetensors"] = counts and {"parameters": counts, "total": sum(counts.values())}
    if kind == "space":
        data["sdk"] = card.get("sdk")
    return data


def listed(root: Path, repository: Repository) -> Json:
    """What a listing looks for and sorts by.

    Args:
        root: the server's own folder.
        repository: which.
    """
    return picked(summary(root, repository, resolved(repository, "main")), LISTED)


def siblings(commit: Commit) -> list[Json]:
    """Every file with its size and hashes."""
    return [_sibling(path, file) for path, file in commit.files.items()]


def _sibling(path: str, file: File) -> Json:
    lfs = _lfs(file)
    data: Json = {"rfilename": path, "size": file.size, "blobId": file.oid}
    return {**data, "lfs": {"sha256": lfs["oid"], **lfs}} if lfs else data


def _lfs(file: File) -> Json | None:
    size = len(pointer(file.sha256, file.size))
    return {"oid": file.sha256, "size": file.size, "pointerSize": size} if file.lfs else None


def picked(data: Json, fields: Iterable[str]) -> Json:
    """Some fields of a summary; the id is always among them."""
    wanted = {"id", *fields}
    return {key: value for key, value in data.items() if key in wanted}


def tree(commit: Commit, folder: str = "", recursive: bool = False) -> list[Json]:
    """The files and folders below a folder, by path; empty if there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    folders = _folders(commit.files)
    paths = sorted(path for path in [*commit.files, *folders] if path.startswith(prefix))
    if not recursive:
        paths = [path for path in paths if "/" not in path[len(prefix) :]]
    return [_entry(commit, folders, path) for path in paths]


def path_entries(commit: Commit, paths: Iterable[str]) -> list[Json]:
    """The files and folders among some paths that are there."""
    folders = _folders(commit.files)
    return [_entry(commit, folders, path) for path in paths if path in commit.files or path in folders]


def _entry(commit: Commit, folders: Mapping[str, str], path: str) -> Json:
    if path in folders:
        return {"type": "directory", "path": path, "size": 0, "oid": folders[path]}
    file = commit.files[path]
    data: Json = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    return {**data, "lfs": _lfs(file)} if file.lfs else data


def _folders(files: Mapping[str, File]) -> dict[str, str]:
    """Every folder, with a hash of all below it."""
    digests: dict[str, Any] = {}
    for path, file in sorted(files.items()):
        for folder in parents(path):
            digest = digests.setdefault(folder, hashlib.sha1(usedforsecurity=False))
            digest.update(f"{path}\0{file.oid}\n".encode())
    return {folder: digest.hexdigest() for folder, digest in digests.items()}


def with_last_commits(repository: Repository, commit: Commit, rows: list[Json]) -> list[Json]:
    """The rows of a tree, each with the commit that last changed it; None if that is more than LOOKED_AT files away."""
    states = {row["path"]: row["oid"] for row in rows}
    last: dict[str, Commit] = {}
    newer, looked_at = commit, 0
    for older in history(repository, commit):
        if not states or (looked_at := looked_at + len(older.files)) > LOOKED_AT:
            break
        now = {row["path"]: row["oid"] for row in path_entries(older, states)}
        for path in [path for path, oid in states.items() if now.get(path) != oid]:
            last[path] = newer
            del states[path]
        newer = older
    else:
        last.update(dict.fromkeys(states, newer))
    brief = {path: {"id": each.id, "title": each.title, "date": each.date} for path, each in last.items()}
    return [{**row, "lastCommit": brief.get(row["path"])} for row in rows]


def commit_row(commit: Commit, author: str) -> Json:
    """A commit."""
    return {
        "id": commit.id,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": author}],
        "date": commit.date,
    }


def refs(repository: Repository) -> Json:
    """Branches and tags."""
    rows = {
        kind: [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": at} for name, at in sorted(commits.items())
        ]
        for kind, folder, commits in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
    }
    return {**rows, "converts": [], "pullRequests": []}


def asked_for(query: Mapping[str, list[str]]) -> Callable[[Json], bool]:
    """Whether a repository is among those that a listing's query asks for: every condition holds."""
    first = {key: values[0] for key, values in query.items()}
    filters, words = set(query.get("filter", [])), set(first.get("search", "").lower().split())

    def holds(data: Json) -> bool:
        return (
            filters <= set(data["tags"])
            and first.get("author", data["author"]) == data["author"]
            and first.get("pipeline_tag", data.get("pipeline_tag")) == data.get("pipeline_tag")
            and all(word in data["id"].lower() for word in words)
            and ("gated" not in first or (first["gated"].lower() == "true") == bool(data["gated"]))
        )

    return holds
