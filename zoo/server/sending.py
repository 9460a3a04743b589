"""Files as answers: whole or one range, read piece by piece, so that memory doesn't grow with their size."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from zoo.server.errors import EntryNotFound, NotSatisfiable

PIECE = 1 << 19  # bytes read and sent at once
READERS = CapacityLimiter(16)  # threads that read, whatever those do that answer the API
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def wanted(header: str | None, size: int) -> tuple[int, int] | None:
    """What a Range header asks for, as first byte and the one after the last; None means everything.

    Several ranges and what isn't a range of bytes are answered with everything, as the standard permits.

    Raises:
        NotSatisfiable: the range begins beyond the end.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if not match or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise NotSatisfiable(f"the range {header} is beyond the file's {size} bytes")
    return start, stop


class FileAnswer(Response):
    """A file, or the range of it that the request asks for.

    Args:
        path: where it lies.
        size: its bytes; a file that has another size by now is refused.
        etag: its hash.
        headers: what else to say.
    """

    def __init__(self, path: Path, size: int, etag: str, headers: dict[str, str]) -> None:
        self.path, self.size, self.etag = path, size, f'"{etag}"'
        self.extra = {
            **headers,
            "ETag": self.etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "X-Content-Type-Options": "nosniff",
        }
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; starlette's part of the protocol."""
        asked = Headers(scope=scope)
        if asked.get("if-none-match") == self.etag:
            await Response(status_code=304, headers=self.extra)(scope, receive, send)
            return
        range_header = asked.get("range") if asked.get("if-range", self.etag) == self.etag else None
        try:
            part = wanted(range_header, self.size)
        except NotSatisfiable:
            headers = {**self.extra, "Content-Range": f"bytes */{self.size}"}
            await Response(status_code=416, headers=headers)(scope, receive, send)
            return
        start, stop = part or (0, self.size)
        headers = {**self.extra, "Content-Length": str(stop - start)}
        if part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{self.size}"
        file = await to_thread.run_sync(_opened, self.path, self.size, limiter=READERS)
        with file:
            raw = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
            await send({"type": "http.response.start", "status": 206 if part else 200, "headers": raw})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_stop_if_gone, receive, tasks.cancel_scope)
                await _send_pieces(send, file, stop if scope["method"] == "HEAD" else start, stop)
                tasks.cancel_scope.cancel()


async def _send_pieces(send: Send, file: BinaryIO, position: int, stop: int) -> None:
    while position < stop:
        data = await to_thread.run_sync(os.pread, file.fileno(), min(PIECE, stop - position), position, limiter=READERS)
        if not data:  # it became shorter: the connection ends before what was announced
            return
        position += len(data)
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _stop_if_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()  # what is sent to a client that has gone is thrown away, as fast as the disk gives it


def _opened(path: Path, size: int) -> BinaryIO:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # of what has become a pipe nothing is awaited
    try:
        file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    except OSError:
        raise EntryNotFound(f"{path.name} can't be read") from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        file.close()
        raise EntryNotFound(f"{path.name} has changed: ask for the repository again")
    return file
