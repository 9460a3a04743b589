"""Connections: how many there may be, how long each may keep one waiting, and what the head of a request may be.

    its turn                      ends with                 closed after
    to send a head                the whole head            HEAD seconds, however it drips
    to send a body                its last byte             see `receiving`
    to take what was written      what it takes             TAKING seconds for half a MB

uvicorn's own settings don't reach that far: its limit of concurrency counts idle sockets, keeps them and answers 503 to
all, its limit of time begins after a first answer and ends with the next byte, its limit of a head isn't one for what
arrives at once. When places are short, whoever has kept us waiting longest goes; for new connections, it is one without
a request, of the address that has most of them.
"""

import asyncio
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import h11
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoo.server.errors import Busy
from zoo.server.refusing import refused

HEAD = 15.0  # seconds from a connection or an answer to the end of the next head
TAKING = 60.0  # seconds in which what was written must be taken
PLACES = 256  # connections, where the limit of descriptors permits as many
GRACE = 0.25  # seconds in which a new connection isn't closed for another one
PATIENT = 2.0  # the same for a request
ENDING = 2.5  # seconds that what is in progress has when the server is told to end
LEAST = 60_000  # bytes of a body that count as going on
LONGEST = 1 << 14  # bytes of a head
LINES = 100  # in a head
_END = re.compile(rb"\n\r?\n")


def places() -> int:
    """How many connections there may be: of four descriptors, one is for each, and one for its file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return PLACES if soft == resource.RLIM_INFINITY else max(min(PLACES, soft // 4), 8)


class Reader(h11.Connection):
    """Requests whose heads are bounded before they are parsed, and whose bodies say how long they are.

    A body in chunks of one byte would cost a parser's step, some 20 us, for each.
    """

    refused: str | None = None

    def next_event(self) -> Any:
        """What came; h11's part of the protocol."""
        if self.their_state is h11.IDLE:
            arrived, _ = self.trailing_data
            end = _END.search(arrived, 0, LONGEST)
            if arrived.count(b"\n", 0, end.end() if end else LONGEST) > LINES or (not end and len(arrived) > LONGEST):
                self._refuse(f"a head has at most {LINES} lines and {LONGEST} bytes")
        event = super().next_event()
        if isinstance(event, h11.Request) and any(name == b"transfer-encoding" for name, _ in event.headers):
            self._refuse("a body must come with a Content-Length, not in chunks")
        return event

    def _refuse(self, why: str) -> None:
        self.refused = why
        raise h11.RemoteProtocolError(why)


class Connection(H11Protocol):
    """One connection, and since when it keeps us waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It is there; asyncio's part of the protocol, as are the next ones."""
        super().connection_made(transport)
        self.conn: Reader = Reader(h11.SERVER, LONGEST)
        self.since = self.loop.time()
        self.arrived = 0
        self.dropped = False
        self.address = self.client[0] if self.client else ""
        _make_room(self, self.connections)

    def data_received(self, data: bytes) -> None:
        """Something came: of what can't follow what was there, nothing is said."""
        was_idle, self.arrived = self.idle, self.arrived + len(data)
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # uvicorn would answer, but is in the midst of another answer
            self.drop()
        if (was_idle and not self.idle) or (not was_idle and self.arrived > LEAST):
            self._went_on()

    def send_400_response(self, msg: str) -> None:
        """Say why a request can't be read, and close."""
        super().send_400_response(self.conn.refused or msg)

    def on_response_complete(self) -> None:
        """An answer has been written."""
        self._went_on()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Much has been written that wasn't taken yet."""
        super().pause_writing()
        self._went_on()

    def resume_writing(self) -> None:
        """Most of it has been taken."""
        super().resume_writing()
        self._went_on()

    def _went_on(self) -> None:
        self.since, self.arrived = self.loop.time(), 0

    @property
    def idle(self) -> bool:
        """Whether it has no request in progress."""
        return self.cycle is None or self.cycle.response_complete

    def waited(self) -> float:
        """For how many seconds we have been waiting for it: for a head, a body, or until it takes what was written."""
        receiving = not self.idle and self.cycle.more_body and not self.flow.read_paused
        return self.loop.time() - self.since if self.idle or receiving or self.flow.write_paused else 0.0

    def late(self) -> bool:
        """Whether it has kept us waiting for too long; `receiving` sees to bodies."""
        unread = self.transport.get_write_buffer_size() > 0
        return (self.idle or unread) and self.waited() > (TAKING if unread else HEAD)

    def shutdown(self) -> None:
        """The server ends: what is in progress has so many seconds to end too."""
        super().shutdown()
        self.loop.call_later(ENDING, self.drop)

    def drop(self) -> None:
        """Close it, whatever is still to be sent."""
        self.dropped = True
        self.transport.abort()


def _make_room(new: Connection, connections: Iterable[Any]) -> None:
    """Close an idle connection if a new one is more than there are places."""
    there, most = [each for each in connections if not each.dropped], places()
    if len(there) <= most:
        return
    crowd = Counter(each.address for each in there)
    idle = [each for each in there if each.idle and each.waited() > GRACE]
    if idle:
        max(idle, key=lambda each: (crowd[each.address], each.waited())).drop()
    elif len(there) > most + most // 4:
        new.drop()


def close_late(connections: Iterable[Any]) -> None:
    """Close the connections that have kept us waiting for too long."""
    for each in [each for each in connections if each.late()]:
        each.drop()


def sharing(application: ASGIApp, connections: Callable[[], Iterable[Any]]) -> ASGIApp:
    """An application that answers so many requests at once as there are places, half of them for one address.

    For one more, the request is given up that keeps us waiting longest; if all is our own work, it is refused.
    """
    running: Counter[str] = Counter()

    async def shared(scope: Scope, receive: Receive, send: Send) -> None:
        address, most = scope["client"][0] if scope["client"] else "", places()
        if (alone := 2 * running[address] >= most) or running.total() >= most:
            waiting = [each for each in connections() if not (each.idle or each.dropped) and each.waited() > PATIENT]
            waiting = [each for each in waiting if each.address == address or not alone]
            if not waiting:
                error = Busy("too many requests at once: ask again")
                await (await refused(Request(scope), error))(scope, receive, send)
                return
            max(waiting, key=lambda each: each.waited()).drop()
        running[address] += 1
        try:
            await application(scope, receive, send)
        finally:
            running[address] -= 1
            if not running[address]:
                del running[address]

    return shared
