"""Sources: the libraries whose dense architectures a base may name, `SOURCE/ARCHITECTURE[.TAG]`.

To add one, write its row of SOURCES; what names, builds, compresses, saves and loads a base asks this table. A library
is imported when one of its models is asked for: graphs load without any.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.structure import torchvision_models
from zoo.version import __version__


@dataclass(frozen=True)
class Source:
    """A library of dense architectures.

    Args:
        package: that holds them, as pip calls it.
        version: which is installed.
        library: imports it.
        listing: the Python that lists them.
        has: whether there is an architecture of a name.
        tags: architecture → names of its weights.
        create: architecture, tag or None, arguments → the model with the values of its own initialiser.
        refused: gives the arguments of `create` that aren't part of an architecture, such as weights and files.
    """

    package: str
    version: str
    library: Callable[[], object]
    listing: str
    has: Callable[[str], bool]
    tags: Callable[[str], Collection[str]]
    create: Callable[..., nn.Module]
    refused: Callable[[], Collection[str]] = tuple


OURS = "compressed_zoo"
"""Where timm finds models that `zoo.timm` has put there."""


def timm() -> Any:
    """Import timm, which brings torchvision and torch._dynamo: whoever can do without calls this where it can't."""
    return importlib.import_module("timm")


def _architectures() -> Mapping[str, Callable[..., nn.Module]]:
    from zoo.models.architectures import ARCHITECTURES  # in timm's manners, and with some of its functions

    return ARCHITECTURES


def _timms(architecture: str, tag: str | None, **args: Any) -> nn.Module:
    model: nn.Module = timm().create_model(f"{architecture}.{tag}" if tag else architecture, **args)
    return model


def _timm_has(architecture: str) -> bool:
    models = timm().models  # among which `zoo.timm` puts ours, which are no bases
    return bool(models.is_model(architecture)) and not models.is_model_in_modules(architecture, (OURS,))


def _tags(architecture: str) -> Collection[str]:
    return {name.partition(".")[2] for name in timm().models.get_arch_pretrained_cfgs(architecture)}


@functools.cache
def _factorys() -> Collection[str]:
    factories = timm().create_model, timm().models.build_model_with_cfg
    names = {name for factory in factories for name in inspect.signature(factory).parameters}
    return names - {"kwargs"} | {"features_only", "pruned", "device", "dtype"}


SOURCES: dict[str, Source] = {
    "timm": Source(
        package="timm",
        version=importlib.metadata.version("timm"),
        library=timm,
        listing="timm.list_models()",
        has=_timm_has,
        tags=_tags,
        create=_timms,
        refused=_factorys,
    ),
    "torchvision": Source(
        package="torchvision",
        version=importlib.metadata.version("torchvision"),
        library=torchvision_models.library,
        listing="torchvision.models.list_models(torchvision.models)",
        has=lambda architecture: architecture in torchvision_models.names(),
        tags=lambda architecture: torchvision_models.weights(architecture).keys(),
        create=torchvision_models.create,
        refused=lambda: ("weights", "progress"),
    ),
    "zoo": Source(
        package="compressed-zoo",
        version=__version__,
        library=_architectures,
        listing="zoo.models.architectures.ARCHITECTURES",
        has=lambda architecture: architecture in _architectures(),
        tags=lambda architecture: (),
        create=lambda architecture, tag, **args: _architectures()[architecture](**args),
    ),
}


def is_base_id(name: object) -> bool:
    """Whether a name is an architecture's id, and no entry's, folder's or repository's."""
    return isinstance(name, str) and Base(name).source in SOURCES


def source_of(base: Base) -> Source:
    """The row of `SOURCES` that an id names, its library imported.

    Raises:
        StructureError: there is none, or the id isn't spelt like one.
    """
    name = base.id.partition("/")[2]
    if not is_base_id(base.id) or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        expected = " or ".join(f"{source}/<architecture>" for source in SOURCES)
        raise StructureError(f"base {base.id!r} isn't known, expected {expected}")
    SOURCES[base.source].library()
    return SOURCES[base.source]
