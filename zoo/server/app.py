"""The server as an ASGI application: which address is answered by which function, and how refusals read."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from zoo.errors import StorageError
from zoo.server import access, cdn, listings, pages, refusing, routes_read, routes_repos, routes_write
from zoo.server.errors import Refusal
from zoo.server.hub import Hub
from zoo.server.names import KINDS
from zoo.server.naming import addressed

Handler = Callable[[Request], Response] | Callable[[Request], Awaitable[Response]]
OWN = ".hub"  # the server's part of the folder that it serves


class Repo(Convertor[str]):
    """One or two segments of a path: a repository's id."""

    regex = "[^/]+(?:/[^/]+)?"

    def convert(self, value: str) -> str:
        """From the path."""
        return value

    def to_string(self, value: str) -> str:
        """To the path."""
        return value


class Kind(Convertor[str]):
    """The plural that stands in paths for a kind of repository."""

    regex = "|".join(f"{kind}s" for kind in KINDS)

    def convert(self, value: str) -> str:
        """From the path."""
        return value.removesuffix("s")

    def to_string(self, value: str) -> str:
        """To the path."""
        return f"{value}s"


register_url_convertor("repo", Repo())
register_url_convertor("kind", Kind())

REPO = "/api/{kind:kind}/{repo:repo}"
API: Sequence[tuple[str, str, Handler]] = (
    ("GET", "/api/whoami-v2", routes_repos.whoami),
    ("POST", "/api/validate-yaml", routes_repos.validate_yaml),
    ("POST", "/api/repos/create", routes_repos.create),
    ("DELETE", "/api/repos/delete", routes_repos.delete),
    ("POST", "/api/repos/move", routes_repos.move),
    ("GET", "/api/{kind:kind}", routes_read.listing),
    ("PUT", f"{REPO}/settings", routes_repos.settings),
    ("POST", f"{REPO}/branch/{{ref}}", routes_repos.add_branch),
    ("DELETE", f"{REPO}/branch/{{ref}}", routes_repos.remove_branch),
    ("POST", f"{REPO}/tag/{{ref}}", routes_repos.add_tag),
    ("DELETE", f"{REPO}/tag/{{ref}}", routes_repos.remove_tag),
    ("POST", f"{REPO}/preupload/{{rev}}", routes_write.preupload),
    ("POST", f"{REPO}/commit/{{rev}}", routes_write.commit),
    ("GET", f"{REPO}/refs", routes_read.refs),
    ("GET", f"{REPO}/commits/{{rev}}", routes_read.commits),
    ("GET", f"{REPO}/tree/{{rev}}", routes_read.tree),
    ("GET", f"{REPO}/tree/{{rev}}/{{path:path}}", routes_read.tree),
    ("POST", f"{REPO}/paths-info/{{rev}}", routes_read.paths_info),
    ("GET", f"{REPO}/revision/{{rev}}", routes_read.repository),
    ("GET", REPO, routes_read.repository),
    *(
        ("POST", f"{prefix}/{{repo:repo}}.git/info/lfs/{path}", handler)
        for prefix in ("/{kind:kind}", "")
        for path, handler in (("objects/batch", routes_write.lfs_batch), ("verify", routes_write.lfs_verify))
    ),
    ("GET", "/{kind:kind}/{repo:repo}/resolve/{rev}/{path:path}", routes_read.resolve),
    ("GET", "/{repo:repo}/resolve/{rev}/{path:path}", routes_read.resolve),
    ("GET", "/", pages.home),
    ("GET", "/{kind:kind}/{repo:repo}", pages.repository),
    ("GET", "/{repo:repo}", pages.repository),
)
CDN: Sequence[tuple[str, str, Handler]] = (
    ("PUT", "/uploads/{oid}", cdn.upload),
    ("PUT", "/uploads/{oid}/{number}", cdn.upload_part),
    ("POST", "/uploads/{oid}", cdn.join),
    ("GET", "/{kind:kind}/{repo:repo}/{rev}/{path:path}", cdn.download),
)


def app(folder: Path, *, token: str | None = None, origin: str, cdn: str, **limits: Any) -> ASGIApp:
    """The server of a folder.

    Why two origins: clients take a file's hash and size from the last answer they get on the API's own origin, and
    follow redirects that stay on it; only a redirect to another one leaves them with the API's answer. It also keeps
    their token away from where the bytes are.

    Args:
        folder: what is served.
        token: the owner's; None makes everyone the owner.
        origin: scheme, host and port of the API.
        cdn: the same of the CDN; another port.
        limits: `Hub`'s part, largest.

    Returns:
        An ASGI application for both: the port that a connection came in by decides.
    """
    root = folder / OWN
    listings.begin(root)
    hub = Hub(root, token, origin, cdn, access.key(root), **limits)
    apps = {urlsplit(origin).port: _application(hub, API), urlsplit(cdn).port: _application(hub, CDN)}

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        await apps[scope["server"][1]]({**scope, "path": scope["raw_path"].decode("latin-1")}, receive, send)

    return addressed(either, (origin, cdn))


def _application(hub: Hub, table: Sequence[tuple[str, str, Handler]]) -> Starlette:
    routes = [Route(path, handler, methods=[method]) for method, path, handler in table]
    handlers: dict[Any, Any] = {Refusal: refusing.refused, StorageError: refusing.full, ClientDisconnect: refusing.gone}
    application = Starlette(routes=routes, exception_handlers=handlers)
    application.router.redirect_slashes = False
    application.state.hub = hub
    return application
