"""Sources: the libraries whose dense architectures a base may name, `SOURCE/ARCHITECTURE[.TAG]`.

To add one, write its row of SOURCES; what names, builds, compresses, saves and loads a base asks this table.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import timm
from timm.models import build_model_with_cfg, get_arch_pretrained_cfgs
from torch import nn

from zoo import models
from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.version import __version__


@dataclass(frozen=True)
class Source:
    """A library of dense architectures.

    Args:
        package: that holds them, as pip calls it.
        version: which is installed.
        listing: the Python that lists them.
        has: whether there is an architecture of a name.
        tags: architecture → names of its weights.
        create: architecture, tag or None, arguments → the model with the values of its own initialiser.
        refused: arguments of `create` that aren't part of an architecture, such as weights and files.
    """

    package: str
    version: str
    listing: str
    has: Callable[[str], bool]
    tags: Callable[[str], Collection[str]]
    create: Callable[..., nn.Module]
    refused: Collection[str] = ()


def _timms(architecture: str, tag: str | None, **args: Any) -> nn.Module:
    model: nn.Module = timm.create_model(f"{architecture}.{tag}" if tag else architecture, **args)
    return model


_FACTORY = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}

SOURCES: dict[str, Source] = {
    "timm": Source(
        package="timm",
        version=timm.__version__,
        listing="timm.list_models()",
        has=timm.is_model,
        tags=lambda architecture: {name.partition(".")[2] for name in get_arch_pretrained_cfgs(architecture)},
        create=_timms,
        refused=_FACTORY - {"kwargs"} | {"features_only", "pruned", "device", "dtype"},
    ),
    "zoo": Source(
        package="compressed-zoo",
        version=__version__,
        listing="zoo.models.ARCHITECTURES",
        has=models.ARCHITECTURES.__contains__,
        tags=lambda architecture: (),
        create=lambda architecture, tag, **args: models.ARCHITECTURES[architecture](**args),
    ),
}


def is_base_id(name: object) -> bool:
    """Whether a name is an architecture's id, and no entry's, folder's or repository's."""
    return isinstance(name, str) and Base(name).source in SOURCES


def source_of(base: Base) -> Source:
    """The row of `SOURCES` that an id names.

    Raises:
        StructureError: there is none, or the id isn't spelt like one.
    """
    name = base.id.partition("/")[2]
    if not is_base_id(base.id) or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        expected = " or ".join(f"{source}/<architecture>" for source in SOURCES)
        raise StructureError(f"base {base.id!r} isn't known, expected {expected}")
    return SOURCES[base.source]
