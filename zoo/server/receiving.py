"""What clients send: bodies of bounded size, and uploads that flow to the disk while they arrive."""

import contextlib
import json
import reprlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO, Any, TypeVar, cast
from urllib.parse import parse_qs

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from starlette.requests import ClientDisconnect, Request

from zoo.errors import StorageError
from zoo.server.connections import LEAST
from zoo.server.errors import BadRequest, TimedOut, TooLarge
from zoo.server.hub import hub, owner

BODY = 8 << 20  # bytes of a JSON or form body of the owner's
STRANGERS = 1 << 18  # of anyone else's
MEMORY = 1 << 16  # bytes of a body that aren't on the disk while the rest arrives
PATIENCE = 60.0  # seconds in which at least LEAST bytes must arrive
PIECE = 1 << 18  # bytes handed on at once
FIELDS = 10_000  # of a form
T = TypeVar("T")


@contextlib.asynccontextmanager
async def received(request: Request, limit: int) -> AsyncIterator[IO[bytes]]:
    """A request's body, once all of it is there: until then it takes neither memory nor a thread.

    Args:
        request: whose body.
        limit: its bytes at most.

    Yields:
        The body as a file, from its start.

    Raises:
        TooLarge: it is longer than the limit.
        TimedOut: the client stopped sending.
        StorageError: the disk is full or refuses.
    """
    _announced(request, limit)
    with tempfile.SpooledTemporaryFile(MEMORY, dir=str(hub(request).root)) as file:
        async for data in _pieces(request):
            if file.tell() + len(data) > limit:
                raise TooLarge(f"the body is longer than {limit} bytes")
            await to_thread.run_sync(_write, file, data)
        file.seek(0)
        yield cast(IO[bytes], file)


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise StorageError(error.errno, "the disk refuses what is sent") from error


def _announced(request: Request, limit: int) -> None:
    said = request.headers.get("content-length", "0")
    if not said.isdigit() or len(said) > 18 or int(said) > limit:
        raise TooLarge(f"the body is longer than {limit} bytes")


async def json_body(request: Request) -> dict[str, Any]:
    """A request's body, which must be a JSON object."""
    async with _small(request) as file:
        return await to_thread.run_sync(lambda: parsed(file.read()), limiter=hub(request).bodies)


def _small(request: Request) -> contextlib.AbstractAsyncContextManager[IO[bytes]]:
    return received(request, BODY if owner(request) else STRANGERS)


def parsed(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BadRequest: it isn't one.
    """
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise BadRequest("the body isn't JSON") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body is a {type(value).__name__}, expected an object")
    return value


async def form(request: Request) -> dict[str, list[str]]:
    """A request's form fields, or the same as JSON."""
    as_json = "json" in request.headers.get("content-type", "")
    async with _small(request) as file:
        return await to_thread.run_sync(_fields, file, as_json, limiter=hub(request).bodies)


def _fields(file: IO[bytes], as_json: bool) -> dict[str, list[str]]:
    if as_json:
        return {key: as_list(value) for key, value in parsed(file.read()).items()}
    try:
        return parse_qs(file.read().decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS)
    except ValueError:
        raise TooLarge(f"the form has more than {FIELDS} fields") from None


def as_list(value: Any) -> list[str]:
    """One value or several, as texts."""
    return [each if isinstance(each, str) else short(each) for each in (value if isinstance(value, list) else [value])]


def short(value: Any) -> str:
    """A value as a message shows it, however deep or long it is."""
    return reprlib.repr(value)


def text_field(data: dict[str, Any], key: str, default: str | None = None) -> str:
    """A field of a JSON object that must be text.

    Raises:
        BadRequest: it is missing or isn't.
    """
    value = data.get(key, default)
    if not isinstance(value, str):
        raise BadRequest(f"{key}: expected text, found {short(value)}")
    return value


async def consumed(request: Request, limiter: CapacityLimiter, work: Callable[[Iterator[bytes]], T]) -> T:
    """Hand a request's body to a function in a thread, piece by piece, never faster than it takes them.

    Args:
        request: whose body flows.
        limiter: how many such threads there may be at once.
        work: takes the pieces.

    Returns:
        What the function returned.

    Raises:
        TimedOut: the client stopped sending.
    """
    stream = _pieces(request)

    def pieces() -> Iterator[bytes]:
        while data := from_thread.run(anext, stream, b""):
            yield data

    return await to_thread.run_sync(work, pieces(), limiter=limiter)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """A body in pieces of some size, however small those are in which it arrives.

    Raises:
        ClientDisconnect: the client has gone.
        TimedOut: too little arrived in time.
    """
    more = True
    while more:
        data = bytearray()
        with anyio.move_on_after(PATIENCE):
            while more and len(data) < PIECE:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                data += message.get("body", b"")
                more = message.get("more_body", False)
        if more and len(data) < LEAST:
            raise TimedOut(f"fewer than {LEAST} bytes arrived in {PATIENCE:g} seconds")
        if data:
            yield bytes(data)


def lines(file: IO[bytes], longest: int) -> Iterator[bytes]:
    """The lines of a body, but empty ones.

    Raises:
        TooLarge: one is longer than `longest` bytes.
    """
    while line := file.readline(longest + 2):
        if len(line.rstrip(b"\n")) > longest:
            raise TooLarge(f"a line of the commit is longer than {longest} bytes: upload that file as an LFS object")
        if line.strip():
            yield line
