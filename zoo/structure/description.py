"""Description: what a model is, and what every model of ours carries of it.

A model says two things of itself, both where timm looks for them or leaves room: `pretrained_cfg`, timm's description
of its input and classes, and `zoo_entry`, the Description from which its structure can be rebuilt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from zoo.catalog.entry import Base
from zoo.declarations import BaseId, ModelName, validated
from zoo.errors import StructureError
from zoo.structure.base import check_fingerprint, skeleton
from zoo.structure.graph.graph import Graph, graph_module
from zoo.structure.plan import Plan, apply_

Structure = Literal["exact", "stand-in"]
DEFAULT_TASK = "image-classification"  # where nothing says otherwise, as in timm and earlier repositories
OTHER_TASK = "image-feature-extraction"  # of what gives anything but logits


@dataclass(frozen=True)
class Description:
    """What a model is: enough to rebuild its structure.

    Args:
        name: the model's.
        base: the dense architecture; of a graph what it was once made from, None where that isn't known here.
        plan: the edits over the base or the graph; empty for a dense model.
        graph: a structure that stands alone, in place of the base.
        recipe: how it was made, as plain data.
        structure: `stand-in` where the published widths aren't known yet, else `exact`.
        source: the folder that it was loaded from; empty for what this process made.
        task: what it is for, the Hub's pipeline tag.

    Raises:
        StructureError: the name or the base's id is none.
    """

    name: str
    base: Base | None
    plan: Plan = field(default_factory=Plan)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    structure: Structure = "exact"
    source: str = ""
    graph: Graph | None = None
    task: str = DEFAULT_TASK

    def __post_init__(self) -> None:
        validated(ModelName, self.name, "the model's name", StructureError)
        if self.graph is not None and self.base is not None:  # else it must be one that is known
            validated(BaseId, self.base.id, "the base's id", StructureError)


def config_of(model: nn.Module) -> dict[str, Any]:
    """A copy of timm's description of a model's input and classes; empty where it carries none."""
    return dict(getattr(model, "pretrained_cfg", None) or {})


def configure_(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Let a model carry this description of its input and classes."""
    model.pretrained_cfg = model.default_cfg = dict(config)  # type: ignore[assignment]


def description_of(model: nn.Module) -> Description | None:
    """The description that a model carries."""
    carried = getattr(model, "zoo_entry", None)
    return carried if isinstance(carried, Description) else None


def attach_(model: nn.Module, description: Description) -> None:
    """Let a model carry this description."""
    classes, task = getattr(model, "num_classes", None), config_of(model).get("task", DEFAULT_TASK)
    model.zoo_entry = of_classes(description, classes, task)  # type: ignore[assignment]


def of_classes(description: Description, classes: Any, task: str = DEFAULT_TASK) -> Description:
    """A description of a model with so many classes, of which one without any gives what stands before a head.

    Args:
        description: where it doesn't say what the model is for, it is for `task`.
        classes: how many there are.
        task: what the model's `pretrained_cfg` says that it is for.
    """
    if description.task == DEFAULT_TASK != task:
        return replace(description, task=task)
    if description.task == DEFAULT_TASK and type(classes) is int and classes == 0:
        return replace(description, task=OTHER_TASK)
    return description


def dense_skeleton(description: Description) -> nn.Module:
    """The base of a description on the meta device.

    Raises:
        UnknownName, StructureError: it can't be built.
    """
    if description.base is None:
        raise StructureError(f"{description.name} names neither a base nor a graph: it can't be rebuilt")
    return skeleton(description.base)


def skeleton_of(
    description: Description, saved: Mapping[str, str] | None = None, versions: Mapping[str, str] = MappingProxyType({})
) -> nn.Module:
    """The structure that a description gives, on the meta device.

    Args:
        description: of the model, which carries it.
        saved: the fingerprint of its base when it was saved; None compares nothing.
        versions: of the libraries then; the base's source is one of them.

    Raises:
        UnknownName, StructureError: it can't be built.
        FingerprintError: its source builds another base now.
    """
    model: nn.Module
    if description.graph is not None:
        model = apply_(graph_module(description.graph, description.name), description.plan)
    else:
        dense = dense_skeleton(description)
        if saved is not None and description.base is not None:
            check_fingerprint(description.base, dense, saved, versions.get(description.base.source, "unknown"))
        model = apply_(dense, description.plan)
    attach_(model, description)
    return model.eval()
