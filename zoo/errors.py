"""Every error that this package raises on purpose.

    ZooError
    ├── UnknownName      (LookupError)  no model, method or data set of that name
    ├── MissingExtra     (ImportError)  an optional package isn't installed
    ├── CatalogError     (ValueError)   a catalog file has an unknown key or a wrong value
    ├── RepositoryError  (ValueError)   a repository's folder or config.json is missing something or malformed
    ├── StructureError   (ValueError)   a base, plan or edit can't be built
    │   └── FingerprintError            the installed timm builds another base than the one saved
    ├── CheckpointError  (ValueError)   another project's checkpoint is damaged, dangerous or not understood
    ├── WeightsError     (ValueError)   a tensor is missing, extra, misshapen, or the file is damaged
    ├── BudgetError      (ValueError)   a budget that the model can't meet
    ├── HubError         (OSError)      an endpoint can't be reached, or refuses
    ├── ClusterError     (OSError)      no Ray cluster is there, or it refuses
    ├── DataError        (ValueError)   a data set or image that can't be used
    └── StorageError     (OSError)      the disk refused

A message is one line: what, where, expected, found, and what to do next; `str(error)` is printable, whoever wrote a
part of it.
"""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from zoo.printable import MAX_LINE, printable


class ZooError(Exception):
    """Whatever went wrong, in one line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UnknownName(ZooError, LookupError):
    """No model, method or data set of that name."""


class MissingExtra(ZooError, ImportError):
    """An optional package isn't installed."""


class CatalogError(ZooError, ValueError):
    """A catalog file has an unknown key or a wrong value."""


class RepositoryError(ZooError, ValueError):
    """A repository's folder or config.json is missing something or malformed."""


class StructureError(ZooError, ValueError):
    """A base, plan or edit can't be built."""


class FingerprintError(StructureError):
    """The installed timm builds another base than the one saved."""


class CheckpointError(ZooError, ValueError):
    """Another project's checkpoint is damaged, dangerous or not understood."""


class WeightsError(ZooError, ValueError):
    """A tensor is missing, extra, misshapen, or the file is damaged."""


class BudgetError(ZooError, ValueError):
    """A budget that the model can't meet."""


class HubError(ZooError, OSError):
    """An endpoint can't be reached, or refuses."""


class ClusterError(ZooError, OSError):
    """No Ray cluster is there, or it refuses."""


class DataError(ZooError, ValueError):
    """A data set or image that can't be used."""

    def __init__(self, message: str) -> None:
        # Of an error in a worker, torch's loader makes one of the whole traceback, which ends in the message.
        super().__init__(message.rpartition("zoo.errors.DataError: ")[2].rstrip("\n"))


class StorageError(ZooError, OSError):
    """The disk refused."""

    def __str__(self) -> str:  # OSError's own would put the number of the error before the message
        return printable(str(self.args[-1]))


FOREIGN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, OSError, RuntimeError, StopIteration, TypeError, ValueError),
)
"""What torch and timm raise upon what they can't do."""


def first_line(error: BaseException) -> str:
    """What a foreign error says first, without its full stop; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class Foreign(Exception):
    """What a library raised, as the cause of an error of ours: printable in a traceback too."""


def as_cause(error: BaseException) -> BaseException:
    """The cause that an error of ours is raised from."""
    if isinstance(error, ZooError):
        return error
    return Foreign(printable(f"{type(error).__name__}: {error}", MAX_LINE)).with_traceback(error.__traceback__)


@contextlib.contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Tell what torch or timm refuse in the block.

    Args:
        what: can't be done.

    Raises:
        StructureError: what, and why.
    """
    try:
        yield
    except ZooError:
        raise
    except FOREIGN as error:
        raise StructureError(f"{what}: {first_line(error)}") from as_cause(error)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: its import name.
        extra: the extra of this distribution that installs it.

    Returns:
        The imported module.

    Raises:
        MissingExtra: it isn't installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtra(f"{module} isn't installed; it comes with: pip install 'compressed-zoo[{extra}]'") from None
