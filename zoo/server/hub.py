"""What every handler starts from: the served folder's settings, and the repository that a request is about."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from anyio import CapacityLimiter
from starlette.requests import Request

from zoo.server import access, store
from zoo.server.connections import PLACES
from zoo.server.errors import Forbidden, RepoNotFound
from zoo.server.names import RepoId, repo_id
from zoo.server.store import Repository
from zoo.server.values import Commit

OWNER = "owner"  # the only user's name, and the namespace of repositories created without one


@dataclass(frozen=True)
class Hub:
    """A folder that is served.

    Args:
        root: the server's own part of it, DIR/.hub.
        token: the owner's; None makes everyone the owner.
        origin: scheme, host and port of the API.
        cdn: the same of the CDN.
        key: signs addresses on the CDN.
        part: bytes of a part; larger objects are uploaded in several.
        largest: bytes of the largest object that is taken.
        uploads: how many uploads are written at once: as many as there may be, for each may wait for its client.
        bodies: how many bodies are read at once, once they are there; each may hold some 100 MB.
    """

    root: Path
    token: str | None
    origin: str
    cdn: str
    key: bytes
    part: int = 512 << 20
    largest: int = 50 << 30
    uploads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PLACES))
    bodies: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))


def hub(request: Request) -> Hub:
    """The folder that a request is answered from."""
    return cast(Hub, request.app.state.hub)


def parameter(request: Request, key: str) -> str:
    """A part of the request's path; paths are matched as they were sent, so that an encoded / doesn't divide."""
    return unquote(request.path_params[key])


def owner(request: Request) -> bool:
    """Whether the owner asks."""
    return access.is_owner(request.headers.get("authorization"), hub(request).token)


def changing(request: Request) -> None:
    """Check that the request may change something; pages of other sites, which a browser would let try, may not.

    Raises:
        Unauthorized: it isn't the owner's.
        Forbidden: it comes from a page of another site.
    """
    if request.headers.get("origin", hub(request).origin) != hub(request).origin:
        raise Forbidden("a page of another site may change nothing here")
    access.authorize_write(owner(request))


def name(request: Request) -> RepoId:
    """The repository's name in the request's path."""
    return repo_id(request.path_params.get("kind", "model"), parameter(request, "repo"))


def seen(request: Request) -> Repository:
    """The repository of the request's path, if whoever asks may know of it.

    Raises:
        RepoNotFound: there is none, or they may not.
    """
    return _found(request)


def readable(request: Request) -> Repository:
    """The repository of the request's path, if whoever asks may have its files.

    Raises:
        RepoNotFound: there is none, or they may not know of it.
        GatedRepo: they may know of it, no more.
    """
    repository = _found(request)
    access.authorize_read(repository, owner(request))
    return repository


def changeable(request: Request) -> RepoId:
    """The name of the repository of the request's path, if whoever asks may change it.

    Raises:
        RepoNotFound: there is none, or they may not know of it.
        Unauthorized: they may not.
    """
    repository = _found(request)
    changing(request)
    return repository.name


def _found(request: Request) -> Repository:
    asking = owner(request)
    try:
        repository = store.find(hub(request).root, name(request))
    except RepoNotFound:
        if asking:
            raise
        raise access.hidden() from None
    access.authorize_view(repository, asking)
    return repository


def revision(request: Request, repository: Repository) -> Commit:
    """The commit that the request's path names; main if it names none."""
    return store.resolved(repository, unquote(request.path_params.get("rev", "main")))


def url(hub: Hub, name: RepoId) -> str:
    """Where a repository is."""
    return f"{hub.origin}/{name.path}"


def cdn_path(name: RepoId, commit: Commit, path: str) -> str:
    """Where a file is on the CDN, unencoded and without its signature."""
    return f"/{name.kind}s/{name.id}/{commit.id}/{path}"
