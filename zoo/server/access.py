"""Who may see, read and write what; and addresses on the CDN that carry their permission with them.

There is one owner: whoever sends the token, or everyone if the server was started without one.

    asks for              public   gated            private
    that it exists        anyone   anyone           the owner
    its files             anyone   the owner        the owner
    a change              the owner

The CDN sees no token: the address of a file or upload is signed with a key that never leaves the server's folder, for
one method, path and time.
"""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from zoo.atomic import writing
from zoo.server.errors import Forbidden, GatedRepo, HiddenRepo, Unauthorized
from zoo.server.store import Repository

LIFETIME = 3600  # seconds for which an address may be used


def is_owner(authorization: str | None, token: str | None) -> bool:
    """Whether a request's Authorization header is the owner's.

    Raises:
        Unauthorized: it holds another token.
    """
    if token is None:
        return True
    if authorization is None:
        return False
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Unauthorized("Invalid credentials in Authorization header")
    return True


def authorize_view(repository: Repository, owner: bool) -> None:
    """Check that someone may know of a repository.

    Raises:
        HiddenRepo: they may not; it reads as if there were none.
    """
    if repository.private and not owner:
        raise hidden()


def hidden() -> HiddenRepo:
    """What someone who isn't signed in hears of a private and of a missing repository."""
    return HiddenRepo("Repository not found")


def authorize_read(repository: Repository, owner: bool) -> None:
    """Check that someone may have a repository's files.

    Raises:
        HiddenRepo: they may not know of it.
        GatedRepo: they may know of it, no more.
    """
    authorize_view(repository, owner)
    if repository.gated and not owner:
        raise GatedRepo(f"Access to {repository.name.kind} {repository.name.id} is restricted: send the owner's token")


def authorize_write(owner: bool) -> None:
    """Check that someone may change things.

    Raises:
        Unauthorized: they may not.
    """
    if not owner:
        raise Unauthorized("a change needs the owner's token")


def key(root: Path) -> bytes:
    """The server's signing key, made once and kept in its folder, which only its user can enter."""
    path = root / "key"
    if not path.exists():
        with writing(path) as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()


def signed(key: bytes, method: str, path: str, **query: str | int) -> str:
    """The path and query of an address that permits one method on it for a while.

    Args:
        key: the server's.
        method: GET (and HEAD), PUT or POST.
        path: as it reads unencoded; clients encode it each in their way.
        query: what the handler shall find in it.
    """
    asked = urlencode({**query, "expires": int(_now()) + LIFETIME})
    return f"{quote(path)}?{asked}&signature={_signature(key, method, path, asked)}"


def permitted(key: bytes, method: str, path: str, query: str) -> None:
    """Check the signature of an address.

    Raises:
        Forbidden: it isn't ours, is for another method or path, or is too old.
    """
    asked, _, signature = query.rpartition("&signature=")
    if not hmac.compare_digest(_signature(key, method, path, asked).encode(), signature.encode()):
        raise Forbidden("the address isn't signed by this server for this request")
    if int(asked.rpartition("expires=")[2]) < _now():
        raise Forbidden("the address has expired: ask for it again")


def _now() -> float:
    return time.time()  # noqa: TID251  # addresses outlive the process, whose other clock doesn't


def _signature(key: bytes, method: str, path: str, asked: str) -> str:
    said = "\n".join((method, path, asked)).encode("utf-8", "surrogatepass")
    return hmac.new(key, said, hashlib.sha256).hexdigest()
