"""Layered: which operations of an exported program are layers with weights of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from zoo.structure.graph.program import bound, operation

_WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "aten.batch_norm": {name: name for name in ("weight", "bias", "running_mean", "running_var")},
    "aten.rms_norm": {"weight": "weight"},
    "aten.prelu": {"weight": "weight"},
    "aten.embedding": {"weight": "weight"},
    **{
        f"aten.{name}": {"weight": "weight", "bias": "bias"}
        for name in (
            "conv1d",
            "conv2d",
            "conv2d.padding",
            "conv_transpose2d.input",
            "linear",
            "layer_norm",
            "group_norm",
        )
    },
}
"""Which arguments of an operation are a layer's weights, and what the layer calls them."""
_CONV = {"stride": ([1], [1, 1]), "padding": ([0], [0, 0]), "dilation": ([1], [1, 1]), "groups": (1,), "bias": (True,)}
_NORM = {"eps": (1e-5,), "bias": (True,)}
_DEFAULTS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    **{op: {**_CONV, "output_padding": ([0, 0],)} for op in ("conv1d", "conv2d", "conv_transpose2d")},
    **{op: {"eps": (1e-5,), "momentum": (0.1,), "affine": (True,)} for op in ("batch_norm1d", "batch_norm2d")},
    "layer_norm": _NORM,
    "group_norm": _NORM,
    "linear": {"bias": (True,)},
}


@dataclass(frozen=True)
class Layer:
    """A module op that an operation can be written as.

    Args:
        path: of the module that holds the weights.
        op: a key of `MODULES`.
        attributes: what the module is made with.
        tensors: its own, by their names in the module.
        input: what it is called with.
    """

    path: str
    op: str
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    input: fx.Node


def layers(graph: fx.Graph, paths: Mapping[fx.Node, str], tensors: Mapping[str, Tensor]) -> dict[fx.Node, Layer]:
    """Find the operations that a module can stand for.

    Args:
        graph: of the exported program.
        paths: placeholder → path of its tensor; equal where two names are one tensor.
        tensors: path → value.

    Returns:
        Operation → layer. Weights that anything else reads too belong to no layer.
    """
    by_node: dict[fx.Node, Layer] = {}
    for node in graph.nodes:
        if node.op == "call_function" and (layer := _layer(node, paths, tensors)) is not None:
            by_node[node] = layer
    forms: dict[str, set[str]] = {}
    foreign: set[str] = set()
    for placeholder, path in paths.items():
        for user in placeholder.users:
            layer = by_node.get(user)
            if layer is None or not path.startswith(f"{layer.path}."):
                foreign.add(path)
            else:
                forms.setdefault(layer.path, set()).add(f"{layer.op} {sorted(layer.attributes.items())}")
    return {
        node: layer
        for node, layer in by_node.items()
        if len(forms[layer.path]) == 1 and not any(f"{layer.path}.{name}" in foreign for name in layer.tensors)
    }


def _layer(node: fx.Node, paths: Mapping[fx.Node, str], tensors: Mapping[str, Tensor]) -> Layer | None:
    key, args = operation(node), bound(node)
    names = _WEIGHTS.get(key)
    if names is None or any(isinstance(each, fx.Node) and each not in paths for each in map(args.get, names)):
        return None
    held = {names[name]: paths[args[name]] for name in names if args.get(name) is not None}
    parents = {path.rpartition(".")[0] for path in held.values()}
    if len(parents) != 1 or any(path.rpartition(".")[2] != name for name, path in held.items()):
        return None
    (path,) = parents
    own = {name: tensors[of] for name, of in held.items()}
    described = _describe(key, node, args, own)
    if described is None or not path:
        return None
    if "running_mean" in own:
        count = tensors.get(f"{path}.num_batches_tracked")
        own["num_batches_tracked"] = own["running_mean"].new_zeros((), dtype=torch.int64) if count is None else count
    op, attributes = described
    default = _DEFAULTS.get(op, {})
    attributes = {name: value for name, value in attributes.items() if value not in default.get(name, ())}
    source = args["indices" if key == "aten.embedding" else "self" if key == "aten.prelu" else "input"]
    return Layer(path, op, attributes, own, source) if isinstance(source, fx.Node) else None


def _describe(
    key: str, node: fx.Node, args: dict[str, Any], own: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any]] | None:
    """The op and its attributes, from the shapes of the weights and what the call says."""
    weight, bias = own.get("weight"), "bias" in own
    if key == "aten.batch_norm":
        ndim = args["input"].meta["val"].ndim
        if args.get("training") or "running_mean" not in own or "running_var" not in own or (weight is None) == bias:
            return None
        features = own["running_mean"].shape[0]
        kept = {"eps": args["eps"], "momentum": args["momentum"], "affine": weight is not None}
        op = {2: "batch_norm1d", 3: "batch_norm1d", 4: "batch_norm2d"}.get(ndim)
        return (op, {"num_features": features, **kept}) if op else None
    if weight is None:
        return None
    shape = list(weight.shape)
    match key:
        case "aten.linear" if len(shape) == 2:
            return "linear", {"in_features": shape[1], "out_features": shape[0], "bias": bias}
        case "aten.layer_norm":
            return "layer_norm", {"normalized_shape": shape, "eps": args.get("eps", 1e-5), "bias": bias}
        case "aten.rms_norm" if "eps" in args:
            return "rms_norm", {"normalized_shape": shape, "eps": args["eps"]}
        case "aten.group_norm":
            eps = args.get("eps", 1e-5)
            return "group_norm", {"num_groups": args["num_groups"], "num_channels": shape[0], "eps": eps, "bias": bias}
        case "aten.prelu":
            return "prelu", {"num_parameters": shape[0]}
        case "aten.embedding" if len(shape) == 2:
            return "embedding", {"num_embeddings": shape[0], "embedding_dim": shape[1]}
        case "aten.conv1d" | "aten.conv2d" | "aten.conv2d.padding" | "aten.conv_transpose2d.input":
            op, groups = key.split(".")[1], args.get("groups", 1)
            ends = (shape[0], shape[1] * groups) if op == "conv_transpose2d" else (shape[1] * groups, shape[0])
            names = ("stride", "padding", "dilation", "output_padding")
            calls = {name: _plain(args[name]) for name in names if name in args}
            sizes = {"in_channels": ends[0], "out_channels": ends[1], "kernel_size": shape[2:]}
            return op, {**sizes, **calls, "groups": groups, "bias": bias}
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
