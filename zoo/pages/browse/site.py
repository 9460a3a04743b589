"""The files of the page, out of its rows, and a folder of them."""

import errno
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from zoo.atomic import refusals, replacing
from zoo.errors import StorageError, ZooError
from zoo.pages.browse.rows import Row
from zoo.printable import printable

HERE = Path(__file__).parent
PAGE = "index.html"
ASSETS = ("page.css", "page.js", "state.js", "grid.js", "plot.js", "panel.js")
VENDOR = ("tabulator.min.js", "tabulator.min.css", "tabulator.LICENSE", "chart.umd.min.js", "chart.LICENSE")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".LICENSE": "text/plain"}


def files(rows: Sequence[Row]) -> dict[str, bytes]:
    """Path → bytes of a page that any server, or a disk, can hold.

    Args:
        rows: of all models.

    Raises:
        ZooError: two of them have one name.
    """
    name, times = Counter(row.id for row in rows).most_common(1)[0] if rows else ("", 0)
    if times > 1:
        raise ZooError(f"{name} is named {times} times: name each folder once, and folders apart")
    told = msgspec.json.encode({"rows": [_printable(msgspec.to_builtins(row)) for row in rows]})
    page = (HERE / "page.html").read_bytes()
    found = {PAGE: page.replace(b"{{rows}}", told.replace(b"<", b"\\u003c"))}  # nothing in it ends its element
    found |= {name: (HERE / name).read_bytes() for name in ASSETS}
    return found | {f"vendor/{name}": (HERE / "vendor" / name).read_bytes() for name in VENDOR}


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the page to a folder, which appears whole, or takes a former page's place.

    Args:
        files: from `files`.
        folder: new, empty, or a page's.

    Raises:
        StorageError: something else lies there, or the disk is full or refuses.
    """
    with refusals(folder):
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*")] if folder.is_dir() else []
    if foreign := sorted({*there} - {*files, "vendor"}) or (folder.exists() and not folder.is_dir()):
        found = foreign[0] if isinstance(foreign, list) else "a file"
        raise StorageError(errno.EEXIST, f"{folder} isn't a page of zoo browse (found {found}): choose another folder")
    with replacing(folder) as new:
        for path, data in files.items():
            (new / path).parent.mkdir(exist_ok=True)
            (new / path).write_bytes(data)


def _printable(value: Any) -> Any:
    """The same without what is obeyed or unseen; a card's HTML is cut nowhere."""
    if isinstance(value, dict):
        return {printable(key): _printable(each) if key != "card" else each for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    return printable(value, 2_000) if isinstance(value, str) else value
