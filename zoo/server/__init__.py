"""A local Hugging Face Hub over a folder: what `zoo serve` runs.

Clients of the Hub work with it unmodified: HF_ENDPOINT=http://127.0.0.1:8080 HF_HUB_DISABLE_XET=1.

    app             addresses → functions              cdn            bytes out and in, at signed addresses
    routes_read     listings, trees, files             hub            what every function starts from
    routes_repos    repositories, branches, tags       access         who may what; signatures
    routes_write    LFS objects, commits               sending        files, ranges
    pages           what a browser sees
    listening       two ports, one process             receiving      bodies, uploads
    connections     how many, how long, how large      naming         which server is meant
    info, metadata  repositories as JSON               listings       all of them, in order
    names           what may be called how
    errors          what is refused                    refusing, log  how it reads, and how what the server says does
    store, changes, blobs, plain, values               what is on the disk: read, written; bytes; foreign folders; terms

A stranger who reaches it, a page in a browser, a client without a token, a model that was fetched, may neither read
what isn't theirs nor keep others from being answered: `connections` bounds what each may hold and how long, `receiving`
what is sent, `metadata` and `plain` what lies in the folder.
"""

from collections.abc import Callable
from pathlib import Path

from zoo.errors import ZooError, require


def serve(
    folder: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> None:
    """Serve a folder until Ctrl-C.

    Args:
        folder: where repositories are and will be; made if it isn't there.
        host: the address to listen on; beyond this machine only with a token.
        port: of the API; 0 takes any that is free. The CDN takes another free one.
        token: whoever sends it is the owner; without one everyone is.
        say: is called with the API's address once it listens.

    Raises:
        MissingExtra: starlette or uvicorn isn't installed.
        StorageError: the folder can't be used, or the port is taken.
        ZooError: others could reach the server and there is no token, or another server has the folder.
    """
    for module in ("starlette", "uvicorn"):
        require(module, "serve")
    from zoo.server import listening
    from zoo.server.app import app

    if token == "":
        raise ZooError("the token is empty: whoever sent none would own everything; pass one, or none at all")
    if token is None and not listening.is_loopback(host):
        raise ZooError(f"{host} can be reached from other machines, which could write here: pass a token")
    folder = Path(folder).absolute()
    with listening.locked(folder), listening.ports(host, port) as (api, cdn):
        origin, second = (listening.address(host, socket) for socket in (api, cdn))
        application = app(folder, token=token, origin=origin, cdn=second)
        say(origin)
        listening.answer(application, api, cdn)
