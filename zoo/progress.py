"""How far a long computation has come, and in how many seconds it ends: a bar on a terminal, nothing elsewhere."""

from collections.abc import Iterable
from typing import Any, TypeVar

from zoo.errors import require
from zoo.printable import printable

T = TypeVar("T")


def shown(steps: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterable[T]:
    """The same steps, one after the other.

    Args:
        steps: what is gone through.
        what: is done.
        total: how many there are; None asks them.
        unit: what each is.
    """
    passed: Iterable[T] = bar(what, total, unit, steps=steps)
    return passed


def bar(
    what: str, total: int | None = None, unit: str = "it", *, steps: Any = None, done: int = 0, hidden: bool = False
) -> Any:
    """A bar of tqdm that is gone when it ends; `shown` where something is gone through.

    Args:
        what: is done.
        total: how many steps there are.
        unit: what each is.
        steps: what is gone through.
        done: how many steps were done before.
        hidden: show none, as of all processes but one.
    """
    tqdm = require("tqdm", "eval").tqdm
    looks = {"desc": printable(what, 60), "unit": unit, "leave": False, "dynamic_ncols": True}
    disable = True if hidden else None  # None: where stderr is no terminal
    return tqdm(steps, total=total, initial=done, disable=disable, **looks)
