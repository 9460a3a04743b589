"""One process for a folder, listening on two ports until it is told to stop."""

import contextlib
import fcntl
import ipaddress
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from zoo.errors import StorageError, ZooError
from zoo.server import changes
from zoo.server.app import OWN
from zoo.server.connections import ENDING, Connection, close_late, places, sharing
from zoo.server.log import LOG

QUEUE = 2048  # connections that wait to be accepted


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Keep other servers off a folder, and tidy up what the last one left; the lock dies with the process.

    Yields:
        The server's own part of the folder, which only its user can enter.

    Raises:
        ZooError: another server has it.
        StorageError: it can't be made or used.
    """
    root = folder / OWN
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(error.errno, f"{folder} can't be served: {error.strerror}") from error
    with os.fdopen(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ZooError(f"{folder} is being served by another process: stop it or choose another folder") from None
        changes.sweep(root)
        yield root


@contextlib.contextmanager
def ports(host: str, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Listen on a port, and on another that is free.

    Raises:
        StorageError: the port is taken, or the host isn't this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            api = stack.enter_context(socket.create_server((host, port), family=family, backlog=QUEUE))
            cdn = stack.enter_context(socket.create_server((host, 0), family=family, backlog=QUEUE))
        except (OSError, OverflowError) as error:
            number = error.errno if isinstance(error, OSError) else None
            raise StorageError(number, f"can't listen on {host}, port {port}: {error}; choose another port") from error
        for listener in (api, cdn):  # connections inherit it; asyncio sets it only where a socket names its protocol
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield api, cdn


def address(host: str, listener: socket.socket) -> str:
    """The address of a port as clients write it."""
    name = socket.gethostname() if host in ("", "0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


class Server(uvicorn.Server):
    """A server that accepts few connections at once, though many may wait for it; uvicorn has one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; uvicorn's part of the protocol."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(QUEUE)


def answer(application: ASGIApp, *listeners: socket.socket) -> None:
    """Answer connections until Ctrl-C; what is being sent then has some seconds to end."""

    async def every_second() -> None:
        close_late(server.server_state.connections)

    config = uvicorn.Config(
        sharing(application, lambda: server.server_state.connections),
        http=Connection,
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=LOG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        headers=[("Cross-Origin-Resource-Policy", "same-origin")],  # no page of another site shows what is here
        backlog=places() // 4,  # how many are accepted at once
        callback_notify=every_second,
        timeout_notify=1,
        timeout_graceful_shutdown=2 * math.ceil(ENDING),
    )
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=list(listeners))
