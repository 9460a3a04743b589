"""What is wrong with a command can often be said before torch, timm and the data libraries are imported.

Nothing is allowed here: whatever these checks let pass, the verbs look at again, and closer.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from zoo import catalog
from zoo.catalog.data_names import HUB_ID, folder_named, limited
from zoo.catalog.entry import Base
from zoo.errors import RepositoryError, UnknownName


def check_base(name: str) -> None:
    """Check that there may be such a base.

    Raises:
        UnknownName: neither the catalog nor timm has one of that name.
        RepositoryError: there is no such folder.
    """
    base = Base(name)
    if base.source == "timm" and not _in_timm(base.architecture):
        raise UnknownName(f"base {name}: timm has no architecture {base.architecture!r}; timm.list_models() lists them")
    if base.source:
        return
    if "/" in name or name in (".", ".."):
        if not HUB_ID.fullmatch(name) and not Path(name).expanduser().is_dir():
            raise RepositoryError(f"no folder {Path(name)}: expected a model repository, or a name that zoo list shows")
    elif not (os.environ.get("ZOO_NAMESPACE") or Path(name, "config.json").is_file() or _in_timm(name)):
        catalog.info(name)


def check_data(spec: str) -> None:
    """Check that there may be such a data set.

    Raises:
        UnknownName, DataError: there is none, or no such folder.
    """
    folder_named(limited(spec)[0])


def _in_timm(architecture: str) -> bool:
    """Whether timm's files hold such a word: reading them all takes a tenth of what importing timm does."""
    spec = find_spec("timm")
    files = sorted(Path(str(spec.origin)).with_name("models").glob("*.py")) if spec else []
    word = re.compile(rf"\b{re.escape(architecture)}\b")
    return not files or any(word.search(file.read_text(encoding="utf-8")) for file in files)
