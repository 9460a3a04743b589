"""The page on this machine's own address, from memory."""

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePath
from urllib.parse import unquote, urlsplit

from zoo.errors import StorageError
from zoo.pages.browse.site import PAGE, TYPES

HOST = "127.0.0.1"
OURS = (HOST, "localhost")  # by another name a page from elsewhere could read it


def serve(files: Mapping[str, bytes], port: int, say: Callable[[str], object]) -> None:
    """Serve files until Ctrl-C.

    Args:
        files: path → bytes.
        port: of this machine; 0 takes any that is free.
        say: is called with the address once it can be opened.

    Raises:
        StorageError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/") or PAGE
            found = files.get(path) if self.headers.get("Host", "").rpartition(":")[0] in OURS else None
            body = b"not here\n" if found is None else found
            self.send_response(404 if found is None else 200)
            kind = TYPES[PurePath(path).suffix] if found is not None else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of what was asked."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise StorageError(error.errno, f"port {port} can't be used: {error.strerror}; --port 0 takes any") from None
    with server:
        say(f"http://{HOST}:{server.server_port}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
