"""The second origin: bytes alone, out and in, at signed addresses. It knows no token and is sent none."""

from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.server import access, blobs, receiving, store
from zoo.server.errors import BadRequest, EntryNotFound
from zoo.server.hub import hub, name, parameter, revision
from zoo.server.names import SHA256
from zoo.server.sending import FileAnswer


def _permitted(request: Request) -> None:
    method = "GET" if request.method == "HEAD" else request.method
    access.permitted(hub(request).key, method, unquote(request.scope["path"]), request.url.query)


def download(request: Request) -> Response:
    """The bytes of a commit's file."""
    _permitted(request)
    root, path = hub(request).root, parameter(request, "path")
    repository = store.find(root, name(request))
    commit = revision(request, repository)
    if path not in commit.files:
        raise EntryNotFound(f"{repository.name.id} has no file {path!r} at {commit.id}", commit.id)
    file = commit.files[path]
    return FileAnswer(store.location(root, repository, commit, path), file.size, file.sha256, {})


async def upload(request: Request) -> Response:
    """An LFS object, whole."""
    _permitted(request)
    root, oid, size = hub(request).root, _oid(request), int(request.query_params["size"])
    await receiving.consumed(request, hub(request).uploads, lambda pieces: blobs.put(root, oid, size, pieces))
    return Response(headers={"ETag": f'"{oid}"'})


async def upload_part(request: Request) -> Response:
    """One part of an LFS object."""
    _permitted(request)
    root, oid, size = hub(request).root, _oid(request), int(request.query_params["size"])
    number = int(parameter(request, "number"))
    etag = await receiving.consumed(
        request, hub(request).uploads, lambda pieces: blobs.put_part(root, oid, number, size, pieces)
    )
    return Response(headers={"ETag": f'"{etag}"'})


async def join(request: Request) -> Response:
    """All parts have been sent: make the object of them."""
    _permitted(request)
    root, oid, size = hub(request).root, _oid(request), int(request.query_params["size"])
    count = int(request.query_params["parts"])
    await receiving.consumed(request, hub(request).uploads, lambda _: blobs.join(root, oid, size, count))
    return JSONResponse({})


def _oid(request: Request) -> str:
    oid = parameter(request, "oid")
    if not SHA256.fullmatch(oid):
        raise BadRequest("an object is named by its sha256")
    return oid
