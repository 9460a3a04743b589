"""What clients send: bodies of bounded size, and uploads that flow to the disk while they arrive."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import parse_qs

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from starlette.requests import Request

from zoo.server.blobs import CHUNK
from zoo.server.errors import BadRequest, TimedOut, TooLarge

BODY = 8 << 20  # bytes of a JSON or form body
PATIENCE = 60.0  # seconds without a byte after which an upload is given up
T = TypeVar("T")


async def body(request: Request, limit: int = BODY) -> bytes:
    """A request's body.

    Raises:
        TooLarge: it is longer than the limit.
    """
    data = bytearray()
    with anyio.move_on_after(PATIENCE) as patience:
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise TooLarge(f"the body is longer than {limit} bytes")
    if patience.cancelled_caught:
        raise TimedOut(f"the body didn't arrive within {PATIENCE:g} seconds")
    return bytes(data)


async def json_body(request: Request) -> dict[str, Any]:
    """A request's body, which must be a JSON object."""
    return parsed(await body(request))


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
    data = await body(request)
    if "json" in request.headers.get("content-type", ""):
        return {key: as_list(value) for key, value in parsed(data).items()}
    return parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100_000)


def as_list(value: Any) -> list[str]:
    """One value or several, as texts."""
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def text_field(data: dict[str, Any], key: str, default: str | None = None) -> str:
    """A field of a JSON object that must be text.

    Raises:
        BadRequest: it is missing or isn't.
    """
    value = data.get(key, default)
    if not isinstance(value, str):
        raise BadRequest(f"{key}: expected text, found {value!r:.100}")
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
    stream = aiter(request.stream())

    async def following() -> bytes:
        data = bytearray()
        while len(data) < CHUNK:
            with anyio.move_on_after(PATIENCE) as patience:
                try:
                    data += await anext(stream)
                except StopAsyncIteration:
                    break
            if patience.cancelled_caught:
                raise TimedOut(f"no byte arrived for {PATIENCE:g} seconds")
        return bytes(data)

    def pieces() -> Iterator[bytes]:
        while data := from_thread.run(following):
            yield data

    return await to_thread.run_sync(work, pieces(), limiter=limiter)


def lines(pieces: Iterable[bytes], longest: int, limit: int) -> Iterator[bytes]:
    """The lines of a body.

    Raises:
        TooLarge: one is longer than `longest` bytes, or all together than `limit`.
    """
    rest, total = bytearray(), 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise TooLarge(f"the commit is longer than {limit} bytes: upload its files as LFS objects")
        rest += piece
        *whole, last = rest.split(b"\n")
        rest = bytearray(last)
        if max(map(len, [*whole, rest])) > longest:
            raise TooLarge(f"a line of the commit is longer than {longest} bytes: upload that file as an LFS object")
        yield from (bytes(line) for line in whole if line.strip())
    if rest.strip():
        yield bytes(rest)
