"""What the Hub's client raises, in one line each, with the next step."""

import contextlib
import errno
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zoo.errors import HubError, StorageError, UnknownName, ZooError, first_line

_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]  # of the client that huggingface_hub is built on
_LOCAL = "local_files_only is set: leave it out"


@contextlib.contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """The client's exceptions in one line each, with the next step. The order is that of their inheritance."""
    where = constants.ENDPOINT
    try:
        yield
    except ZooError:
        raise
    except OfflineModeIsEnabled:
        raise HubError(f"{repo} isn't in the cache and HF_HUB_OFFLINE is set: unset it to fetch") from None
    except GatedRepoError:
        raise HubError(f"{repo} is gated: ask for access on {where}/{repo}, then: hf auth login") from None
    except RepositoryNotFoundError:
        raise UnknownName(
            f"no repository {repo} on {where}, or it is private: check the name, or log in: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise UnknownName(
            f"{repo} has no revision {revision!r}: {where}/{repo}/commits/main lists its commits and tags"
        ) from None
    except LocalEntryNotFoundError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, OfflineModeIsEnabled):
            wish = "HF_HUB_OFFLINE is set: unset it" if cause or constants.HF_HUB_OFFLINE else _LOCAL
            raise HubError(f"{repo} isn't in the cache and {wish} to fetch") from None
        if isinstance(cause, HfHubHTTPError):
            raise HubError(refused(repo, cause)) from None
        raise HubError(unreachable(cause)) from None
    except HFValidationError:
        raise UnknownName(f"{repo!r} can't be a repository's name: expected org/name") from None
    except HfHubHTTPError as error:
        raise HubError(refused(repo, error)) from None
    except _HTTPError as error:
        raise HubError(unreachable(error)) from None
    except OSError as error:
        if error.errno is None:  # the client's own: a file of another size than announced
            raise HubError(unreachable(error)) from None
        if error.errno != errno.ENOSPC:
            raise
        place = error.filename or "the cache"
        full = (
            f"{place} can't be written: the disk is full; nothing was left behind, free space or choose another place"
        )
        raise StorageError(errno.ENOSPC, full) from None


def unreachable(error: BaseException) -> str:
    """That no answer came, and why."""
    return f"{constants.ENDPOINT} can't be reached ({first_line(error)}): check the network and HF_ENDPOINT"


def refused(repo: str, error: HfHubHTTPError) -> str:
    """What the endpoint answered, and what to do about it."""
    status = error.response.status_code
    told = (error.server_message or error.response.reason_phrase).strip()  # not the signed address
    said = (told.splitlines() or ["without a reason"])[0]
    next_step = {
        401: "log in: hf auth login",
        403: "the token may not do that: hf auth login with one that may write there",
        412: "somebody else published meanwhile: push again",
        413: "it is too large for this endpoint",
        429: "too many requests: wait a while",
    }.get(status, "try again later" if status >= 500 else "mend what it names")
    return f"{constants.ENDPOINT} answers {status} for {repo} ({said}): {next_step}"
