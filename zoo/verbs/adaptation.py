"""Adaptation: another head, other input channels, or features instead of logits, for a model with its weights.

What is changed is also said in `zoo_entry`, so that an adapted model can be saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from msgspec import structs
from torch import nn

from zoo.errors import StructureError
from zoo.structure.describing import describe
from zoo.structure.description import DEFAULT_TASK, OTHER_TASK, attach_, config_of, configure_
from zoo.structure.graph.graph import GraphModel, Node
from zoo.structure.plan import Narrow, Plan, Width, apply_
from zoo.structure.sources import timm
from zoo.structure.tensors import tensors_of


def set_num_classes_(model: nn.Module, num_classes: int) -> None:
    """Give a model a head of so many classes; one that has as many keeps its own, as in timm.

    Args:
        model: from `load`, before anything else was changed.
        num_classes: of the new head, which is randomly initialised; 0 leaves the head out.

    Raises:
        StructureError: the number is negative, or the model has no `reset_classifier`.
    """
    if num_classes == getattr(model, "num_classes", None):
        return
    config, resets = config_of(model), callable(getattr(model, "reset_classifier", None))
    if num_classes < (0 if resets else 1) or not (resets or config.get("classifier")):
        expected = "0 or more, on a model with reset_classifier, or 1 or more where pretrained_cfg names its classifier"
        raise StructureError(f"num_classes={num_classes}: expected {expected}")
    classifier = config.get("classifier") or ()
    paths = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    inputs = {path: _inputs(_module(model, path)) for path in paths}
    if resets:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    else:
        _reset_(model, paths, num_classes)
    if num_classes:  # timm's new head reads the base's width
        apply_(model, Plan((Narrow({path: Width(inputs=kept) for path, kept in inputs.items() if kept}),)))
    config.pop("label_names", None)  # of the former head
    configure_(model, {**config, "num_classes": num_classes})
    plan = describe(model).plan
    edits = tuple(
        structs.replace(edit, **{name: _without(value, paths) for name, value in structs.asdict(edit).items()})
        for edit in plan.edits
    )
    head = Narrow({path: Width(inputs=kept) for path, kept in inputs.items() if kept and path in plan.paths()})
    plan = Plan((*edits, head) if num_classes and head.widths else edits)
    _redescribe_(model, plan, num_classes=num_classes)


def _reset_(model: nn.Module, paths: tuple[str, ...], num_classes: int) -> None:
    """New layers in the place of a classifier's, of a model that has no function for it."""
    for path in paths:
        old = _module(model, path)
        where: dict[str, Any] = {"device": next(old.parameters()).device, "dtype": next(old.parameters()).dtype}
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, num_classes, old.bias is not None, **where)
        elif isinstance(old, nn.Conv2d):
            same: dict[str, Any] = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
            new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, **same, **where)  # type: ignore[arg-type]
        else:
            raise StructureError(f"num_classes={num_classes}: {path} is a {type(old).__name__}, which isn't replaced")
        model.set_submodule(path, new)
    model.num_classes = num_classes  # type: ignore[assignment]


def _module(model: nn.Module, path: Any) -> nn.Module:
    try:
        return model.get_submodule(path)
    except (AttributeError, TypeError):
        raise StructureError(f"pretrained_cfg names {path!r}, which the model hasn't: save it again") from None


def _inputs(head: nn.Module) -> int | None:
    layer = next((module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)), None)
    return None if layer is None else layer.weight.shape[1]


def _without(paths: Any, left_out: tuple[str, ...]) -> Any:
    def outside(path: str) -> bool:
        return not any(f"{path}.".startswith(f"{head}.") for head in left_out)

    if isinstance(paths, tuple):
        return tuple(filter(outside, paths))
    return {path: value for path, value in paths.items() if outside(path)}


def _redescribe_(model: nn.Module, plan: Plan, **args: int) -> None:
    description = describe(model)
    if args.get("num_classes") and description.task == OTHER_TASK:  # it has a head again
        description = replace(description, task=DEFAULT_TASK)
    base, graph = description.base, description.graph
    if graph is not None:  # what it was once made from stays that
        nodes = tuple(structs.replace(node, attributes=_sized(node, model)) for node in graph.nodes)
        attach_(model, replace(description, graph=structs.replace(graph, nodes=nodes), plan=plan))
    elif base is not None:
        base = structs.replace(base, args={**base.args, **args})
        attach_(model, replace(description, base=base, plan=plan))


def _sized(node: Node, model: nn.Module) -> Mapping[str, Any]:
    """A node's attributes, of a layer with the widths that it has now; of one that is factored with those it had."""
    layer = model.get_submodule(node.name) if node.op in _WIDTHS and node.module is None else None
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return node.attributes
    return {**node.attributes, **{name: getattr(layer, name) for name in _WIDTHS[node.op]}}


_WIDTHS = {"linear": ("in_features", "out_features"), "conv2d": ("in_channels", "out_channels")}


def set_in_chans_(model: nn.Module, in_chans: int) -> None:
    """Let a model read images of another number of channels.

    An image of equal channels gives the same response: W'[:, j] = W[:, j mod c], over how often that is repeated; with
    fewer channels than stored, W'[:, j] adds up the W[:, i] of i mod c' = j.

    Args:
        model: from `load`.
        in_chans: c', channels of the images.

    Raises:
        StructureError: the number isn't positive, or the model has no single first convolution.
    """
    config = config_of(model)
    if in_chans == config["input_size"][0]:
        return
    path = config.get("first_conv")
    if in_chans < 1 or not isinstance(path, str):
        raise StructureError(f"in_chans={in_chans}: expected 1 or more, on a model with one first convolution")
    conv = next(module for module in _module(model, path).modules() if isinstance(module, nn.Conv2d))
    stored = conv.in_channels
    repeats = torch.arange(in_chans, device=conv.weight.device) % stored
    weight = (
        torch.stack([conv.weight[:, j::in_chans].sum(1) for j in range(in_chans)], 1)
        if in_chans < stored
        else conv.weight[:, repeats] / repeats.bincount()[repeats].view(1, -1, 1, 1)
    )
    conv.weight, conv.in_channels = nn.Parameter(weight.detach()), in_chans
    size = (in_chans, *config["input_size"][1:])
    mean, std = (tuple(config[key][j % stored] for j in range(in_chans)) for key in ("mean", "std"))
    configure_(model, {**config, "input_size": size, "mean": mean, "std": std})
    _redescribe_(model, describe(model).plan, in_chans=in_chans)


def features(model: nn.Module, out_indices: Sequence[int] | None = None) -> nn.Module:
    """Wrap a model so that it returns its feature maps, one of each stage.

    Args:
        model: from `load`; its head is dropped.
        out_indices: of the stages whose maps are returned; None is all.

    Returns:
        Images → list of maps [B, C, H, W], with timm's `feature_info`, whose channels are those of the narrowed model.

    Raises:
        StructureError: timm offers no intermediate features of this architecture.
    """
    if isinstance(model, GraphModel):
        raise StructureError(
            f"features_only: {describe(model).name} is a graph, which gives what it was saved with and has no stages: "
            "save a module that returns the maps, or load what is a plan over a base of timm"
        )
    if not hasattr(model, "forward_intermediates"):
        raise StructureError(f"features_only: {type(model).__name__} has no forward_intermediates in this timm")
    getter = timm().models._features.FeatureGetterNet  # not among timm.models' exported names
    every = len(model.feature_info)  # type: ignore[arg-type]
    wrapped: Any = getter(model, out_indices=every if out_indices is None else out_indices)
    configure_(wrapped, config_of(model))
    attach_(wrapped, replace(describe(model), task=OTHER_TASK))
    weight = next(model.parameters())
    image = torch.empty(1, *config_of(model)["input_size"], device="meta", dtype=weight.dtype)
    on_meta = {name: value.detach().to("meta") for name, value in tensors_of(wrapped).items()}
    with torch.no_grad():  # the base's widths stand in timm's own list
        maps = torch.func.functional_call(wrapped.eval(), on_meta, (image,))
    for index, output in zip(wrapped.feature_info.out_indices, maps, strict=True):
        wrapped.feature_info.info[index]["num_chs"] = output.shape[1]
    return wrapped  # type: ignore[no-any-return]
