"""`changes`: what became of each layer of a model, and why the others stay."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.catalog.changes import Changes
from zoo.catalog.entry import Entry
from zoo.catalog.methods import available
from zoo.compression import algorithm
from zoo.measurement.macs import input_size, like_images, unchanged
from zoo.structure.changed import compared
from zoo.structure.describing import describe, described
from zoo.verbs.beginning import Say, beside, seen_as
from zoo.verbs.building import plan
from zoo.verbs.compressing import declarations
from zoo.verbs.loading import load, pretrained
from zoo.verbs.recipes import plain

FREE, LEARNT = "it may change, but needn't here", "training will tell"


def changes(dense: nn.Module, smaller: nn.Module) -> Changes:
    """Tell what became of each layer of a model.

    Args:
        dense: what `compress` was given; weights don't matter.
        smaller: what it returned, or what was saved and loaded of it; a plan or a graph.

    Returns:
        Shapes, ranks, macs and params of each layer, before and after, and why the others stay: as the method that
        made `smaller` says, which looks at `dense` once more, for some seconds.

    Raises:
        StructureError: the two have no layer in common.

    >>> import zoo
    >>> found = changes(zoo.create("digits_cnn"), zoo.create("digits_cnn_pruned_25"))
    >>> [layer.stays for layer in found.layers][-1]
    'an output of the model'
    """
    dense = described(dense, example=input_size(smaller))[0]
    whole = _whole(dense, describe(smaller).recipe)
    return compared(dense, smaller, whole or {}, "" if whole is None else FREE)


def changes_of(entry: Entry, folder: Path, say: Say) -> Changes:
    """Compress as a recipe says, train nothing, and tell what became of each layer; arguments are those of `plan`.

    Returns:
        The changes; of a method that learns its plan by training those layers alone that it can't change.
    """
    file, _ = plan(entry, folder, say=say)
    assert entry.base is not None  # else there was no plan
    dense = seen_as(entry, pretrained(entry.base))
    if file is None:
        return compared(dense, dense, _whole(dense, plain(entry.recipe)) or {}, LEARNT)
    return changes(dense, load(beside(folder) / "start"))


def _whole(dense: nn.Module, recipe: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Layer → why the method of a recipe can't change it; None where that isn't known."""
    method = recipe.get("method")
    if method not in available():
        return None
    whole, how = algorithm(method).whole, declarations(method, recipe.get("options", {}))[0]
    if whole is None:
        return None
    with unchanged(dense):
        return whole(dense, torch.zeros(2, *input_size(dense), dtype=like_images(dense).dtype), how)
