"""Which requests mean this server.

A page whose name suddenly leads to this machine (DNS rebinding) may read what a browser gets from it, but its name
stands in the Host header: what is asked of another name than the server's own isn't answered.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from zoo.server.errors import Misdirected
from zoo.server.refusing import refused

LOCAL = {"localhost", "127.0.0.1", "::1"}


def addressed(application: ASGIApp, origins: Iterable[str]) -> ASGIApp:
    """An application that hears only what is asked of it by name.

    starlette's TrustedHostMiddleware knows a list of names, but not the address that a connection came in by.

    Args:
        application: what hears it.
        origins: scheme, host and port of each of its addresses.
    """
    names = LOCAL | {str(urlsplit(origin).hostname) for origin in origins}

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get("host", "")
        if _name(said) in names | {scope["server"][0]}:
            await application(scope, receive, send)
        else:
            error = Misdirected(f"this server isn't {said!r:.100}: ask for it by one of {sorted(names)}")
            await (await refused(Request(scope), error))(scope, receive, send)

    return checked


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
