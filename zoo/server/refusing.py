"""How refusals read: a status, a line in the body, and the headers by which clients know them."""

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from zoo.errors import StorageError
from zoo.printable import printable
from zoo.server.errors import Busy, Conflict, EntryNotFound, Refusal


async def refused(request: Request, error: Refusal) -> Response:
    """The answer to a request that is refused."""
    message = "".join(each if each.isascii() else "?" for each in printable(str(error)))
    headers = {"X-Error-Message": message} | ({"X-Error-Code": error.code} if error.code else {})
    if isinstance(error, EntryNotFound) and error.commit:
        headers["X-Repo-Commit"] = error.commit
    if isinstance(error, Busy):
        headers["Retry-After"] = "1"
    extra = {"url": error.url} if isinstance(error, Conflict) and error.url else {}
    return JSONResponse({"error": message, **extra}, error.status, headers)


async def full(request: Request, error: StorageError) -> Response:
    """The answer where the disk refuses."""
    message = error.strerror or "the disk refuses"
    return JSONResponse({"error": message}, 507, {"X-Error-Message": "the server's disk is full or refuses"})


async def gone(request: Request, error: ClientDisconnect) -> Response:
    """The answer that nobody reads."""
    return Response(status_code=400)
