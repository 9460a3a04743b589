"""Compressed vision models for the Hugging Face Hub.

    >>> import zoo
    >>> model = zoo.load("digits_cnn_pruned_25")
    >>> model.training
    False

The verbs are imported when first used: `import zoo` alone imports neither torch nor huggingface_hub.
"""

import gc
import importlib
from typing import TYPE_CHECKING, Any

from zoo.version import __version__ as __version__

if TYPE_CHECKING:
    from zoo.catalog import info, names
    from zoo.catalog.entry import Base
    from zoo.measurement.macs import measure
    from zoo.verbs.benching import bench
    from zoo.verbs.building import build
    from zoo.verbs.changing import changes
    from zoo.verbs.compressing import compress
    from zoo.verbs.distilling import distil
    from zoo.verbs.evaluating import evaluate
    from zoo.verbs.exporting import export
    from zoo.verbs.loading import create, load, transform
    from zoo.verbs.picking import pick
    from zoo.verbs.predicting import predict
    from zoo.verbs.saving import convert, push, save
    from zoo.verbs.verification import verify

_ROOMS = {
    "zoo.verbs.benching": ("bench",),
    "zoo.verbs.building": ("build",),
    "zoo.catalog": ("info", "names"),
    "zoo.catalog.entry": ("Base",),
    "zoo.verbs.changing": ("changes",),
    "zoo.verbs.compressing": ("compress",),
    "zoo.verbs.distilling": ("distil",),
    "zoo.verbs.evaluating": ("evaluate",),
    "zoo.verbs.exporting": ("export",),
    "zoo.verbs.loading": ("create", "load", "transform"),
    "zoo.measurement.macs": ("measure",),
    "zoo.verbs.picking": ("pick",),
    "zoo.verbs.predicting": ("predict",),
    "zoo.verbs.saving": ("convert", "push", "save"),
    "zoo.verbs.verification": ("verify",),
}
_ROOM = {verb: room for room, verbs in _ROOMS.items() for verb in verbs}

__all__ = [
    "Base",
    "bench",
    "build",
    "changes",
    "compress",
    "convert",
    "create",
    "distil",
    "evaluate",
    "export",
    "info",
    "load",
    "measure",
    "names",
    "pick",
    "predict",
    "push",
    "save",
    "transform",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    collecting = gc.isenabled()
    gc.disable()  # half a million objects that torch and timm make stay: looking for garbage costs 0.6 s
    try:
        return getattr(importlib.import_module(_ROOM[name]), name)
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return __all__
