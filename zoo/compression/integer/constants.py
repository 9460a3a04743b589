"""Constants: what a graph computes from its weights alone is computed once, so that standardized weights are weights.

A convolution or a linear layer that was called with such weights becomes a layer of its own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from zoo.structure.graph.graph import MODULES, Graph, Node, graph_module
from zoo.structure.graph.ops import SIZES, TENSORS
from zoo.structure.tensors import assign_

_OF_SIZES = {"size", *(each.__name__ for each in SIZES)}


def settled(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Compute what depends on no image.

    Args:
        graph: of a model of floats.
        tensors: path → tensor of it.

    Returns:
        A graph that gives the same, and its tensors.
    """
    held = {path: t.detach().cpu().double() if t.is_floating_point() else t for path, t in tensors.items()}
    fixed = {node.name for node in graph.nodes if node.op in TENSORS}
    computed: list[Node] = []
    for node in graph.nodes:
        if node.inputs and fixed.issuperset(node.inputs) and node.op not in MODULES and node.op not in _OF_SIZES:
            fixed.add(node.name)
            computed.append(node)
    if computed:
        graph, held = _settled(graph, held, fixed, {node.name for node in computed})
    nodes = [_layer(node, fixed, held) for node in graph.nodes]
    return structs.replace(graph, nodes=tuple(nodes)), held


def _settled(
    graph: Graph, held: dict[str, Tensor], fixed: set[str], computed: set[str]
) -> tuple[Graph, dict[str, Tensor]]:
    own = [node for node in graph.nodes if node.name in fixed]
    read = {name for node in graph.nodes if node.name not in fixed for name in node.inputs} | {*graph.outputs}
    wanted = tuple(node.name for node in own if node.name in computed & read)
    alone = graph_module(Graph(("x",), tuple(own), wanted))
    paths = {node.name for node in own if node.op in TENSORS}
    assign_(alone, {path: held[path] for path in paths}, "what depends on no image")
    with torch.no_grad():
        values: Any = alone(torch.zeros(()))
    found = dict(zip(wanted, values if len(wanted) > 1 else [values], strict=True))
    nodes = []
    for node in graph.nodes:
        if node.name in found:
            value = found[node.name]
            told: dict[str, Any] = {"shape": list(value.shape)}
            if not value.is_floating_point():
                told["dtype"] = str(value.dtype).removeprefix("torch.")
            nodes.append(Node(node.name, "parameter" if value.is_floating_point() else "buffer", (), told))
        elif node.name not in computed:
            nodes.append(node)
    return structs.replace(graph, nodes=tuple(nodes)), held | found


def _layer(node: Node, fixed: set[str], held: dict[str, Tensor]) -> Node:
    """A convolution or linear layer of constant weights, as a layer; their names are `weight` and `bias` below its."""
    op, constants = node.op.removeprefix("aten.").removesuffix(".padding"), node.inputs[1:]
    if op not in ("conv2d", "linear") or op == node.op or not constants or not fixed.issuperset(constants):
        return node
    told = {key: value for key, value in node.attributes.items() if key not in ("weight", "bias")}
    if len(told) < len(node.attributes) and any(node.attributes[key] for key in node.attributes.keys() - told.keys()):
        return node
    weight, groups = held[constants[0]], told.get("groups", 1)
    held[f"{node.name}.weight"] = weight
    if len(constants) > 1:
        held[f"{node.name}.bias"] = held[constants[1]]
    bias = {} if len(constants) > 1 else {"bias": False}
    if op == "linear":
        sizes: dict[str, Any] = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    else:
        sizes = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0]}
        sizes["kernel_size"] = list(weight.shape[2:])
    return Node(node.name, op, node.inputs[:1], {**sizes, **told, **bias})
