"""What a repository, a revision and a file may be called: the one place that keeps every path within the folder."""

import re
from dataclasses import dataclass

from zoo.server.errors import BadRequest, RepoNotFound

DEPTH = 32  # folders within each other
KINDS = ("model", "dataset", "space")
RESERVED = {"api", "datasets", "models", "spaces"}  # first segments of the server's own paths
VERBS = {
    "revision",
    "refs",
    "tree",
    "commits",
    "paths-info",
    "settings",
    "preupload",
    "commit",
    "branch",
    "tag",
    "resolve",
}
HASH = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_SEGMENT = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_REF = re.compile(r"(?!.*(?:\.\.|//|@\{|/\.))(?!refs/)[^\x00-\x20\x7f~^:?*\[\\/.](?:[^\x00-\x20\x7f~^:?*\[\\]{0,250})")


@dataclass(frozen=True)
class RepoId:
    """The name of a repository.

    Args:
        kind: model, dataset or space.
        id: namespace/name, or a name alone for a folder that lies directly under the root.
    """

    kind: str
    id: str

    @property
    def author(self) -> str | None:
        """The namespace."""
        return self.id.rpartition("/")[0] or None

    @property
    def path(self) -> str:
        """Where it stands under the server's origin: models at the top, the others under their kind."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"


def repo_id(kind: str, name: str) -> RepoId:
    """Check a repository's name.

    Raises:
        RepoNotFound: no repository can be called that.
    """
    segments = name.split("/")
    if kind not in KINDS or len(segments) > 2 or not all(map(_segment, segments)) or segments[0] in RESERVED:
        raise RepoNotFound(f"no {kind} can be called {name!r}")
    return RepoId(kind, name)


def _segment(text: str) -> bool:
    return bool(_SEGMENT.fullmatch(text)) and not text.endswith(".git")


def new_repo_id(kind: str, name: str) -> RepoId:
    """Check the name of a repository that is to be made: namespace/name, neither a word of the server's own paths.

    Raises:
        BadRequest: no repository can be called that.
    """
    try:
        repo = repo_id(kind, name)
    except RepoNotFound as error:
        raise BadRequest(str(error)) from None
    if repo.author is None or repo.id.rpartition("/")[2] in VERBS:
        raise BadRequest(f"a {kind} can't be called {name!r}: expected namespace/name, name none of {sorted(VERBS)}")
    return repo


def ref(name: str) -> str:
    """Check the name of a new branch or tag by git's rules; one that looks like a commit hash would hide commits.

    Raises:
        BadRequest: it can't be called that.
    """
    if not _REF.fullmatch(name) or not name.isprintable() or name.endswith(("/", ".", ".lock")) or HASH.fullmatch(name):
        raise BadRequest(f"neither branch nor tag can be called {name!r}")
    return name


def file_path(path: str) -> str:
    """Check the path of a file within a repository: relative, / between plain names, nothing that climbs.

    Raises:
        BadRequest: it can't be a file's path.
    """
    parts = path.split("/")
    if (
        len(path.encode("utf-8", "surrogatepass")) > 1024
        or len(parts) > DEPTH
        or any(
            part in ("", ".", "..") or part.lower() == ".git" or len(part.encode("utf-8", "replace")) > 255
            for part in parts
        )
        or any(ord(character) < 32 or character in "\\\x7f" or 0xD800 <= ord(character) < 0xE000 for character in path)
    ):
        raise BadRequest(f"no file can be called {path!r}")
    return path
