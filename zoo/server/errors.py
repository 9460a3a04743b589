"""What the server refuses, each with the HTTP status and the `X-Error-Code` by which clients know it."""

from zoo.errors import ZooError


class Refusal(ZooError):
    """A request that is refused; the message is one line for whoever asked."""

    status = 500
    code: str | None = None


class BadRequest(Refusal):
    """The request says something that can't be."""

    status = 400


class Unauthorized(Refusal):
    """Nobody is signed in, or the token isn't the owner's."""

    status = 401


class GatedRepo(Refusal):
    """The repository is there, its files are for the owner alone."""

    status = 401
    code = "GatedRepo"


class Forbidden(Refusal):
    """Nobody may do that."""

    status = 403


class RepoNotFound(Refusal):
    """No such repository, or none that the asker may know of."""

    status = 404
    code = "RepoNotFound"


class HiddenRepo(RepoNotFound):
    """What someone who isn't signed in hears of a missing and of a private repository alike, as on the Hub."""

    status = 401


class RevisionNotFound(Refusal):
    """No such branch, tag or full commit hash."""

    status = 404
    code = "RevisionNotFound"


class EntryNotFound(Refusal):
    """No such file at that revision.

    Args:
        message: what is missing.
        commit: the commit that was looked at; clients remember that the file isn't in it.
    """

    status = 404
    code = "EntryNotFound"

    def __init__(self, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.commit = commit


class TimedOut(Refusal):
    """The client stopped sending."""

    status = 408


class Conflict(Refusal):
    """It exists already.

    Args:
        message: what exists.
        url: where it is.
    """

    status = 409

    def __init__(self, message: str, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class StaleParent(Refusal):
    """The branch has moved on since the parent that the commit names."""

    status = 412


class TooLarge(Refusal):
    """More bytes than the server takes."""

    status = 413


class NotSatisfiable(Refusal):
    """A range beyond the file's end."""

    status = 416


class Misdirected(Refusal):
    """The request is for another server."""

    status = 421


class Busy(Refusal):
    """There are as many requests at once as the server answers."""

    status = 503
