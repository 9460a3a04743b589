"""Folding: a graph without what vanishes in eval mode: batch norms into the layers before them, dropout into nothing.

bn(conv(x)) = (γ/√(σ² + ε))·conv(x) + β - γ·μ/√(σ² + ε), of each channel; so are scales of channels, γ·linear(x)
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import structs
from torch import Tensor

from zoo.structure.graph.graph import Graph, Node

LAYERS = ("conv2d", "conv1d", "linear")
NORMS = ("batch_norm2d", "batch_norm1d")
LIKE = ("aten.reshape_as", "aten.expand_as", "aten.view_as")  # what reads nothing but the shape of the second
IDLE = ("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "drop_path", "aten.detach", "cast")


@dataclass(frozen=True)
class Affine:
    """Scale and shift of each channel [C], in double precision."""

    scale: Tensor
    shift: Tensor


def folded(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Fold a graph.

    Args:
        graph: of a model of floats.
        tensors: path → tensor of it.

    Returns:
        A graph that gives the same in eval mode, and its tensors, those of layers in double precision.
    """
    held = {path: t.detach().cpu().double() if t.is_floating_point() else t for path, t in tensors.items()}
    reads = Counter([name for node in graph.nodes for name in _read(node)] + [*graph.outputs])
    shares = {node.module for node in graph.nodes if node.module} | {n.name for n in graph.nodes if n.module}
    renamed: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        node = structs.replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        before = _before(node, nodes, reads)
        alone = before is not None and reads[before.name] == 1 and not {before.name, node.name} & shares
        if node.op in IDLE:
            renamed[node.name] = node.inputs[0]
            reads[node.inputs[0]] += reads[node.name] - 1
        elif before is not None and alone and (norm := _norm(node, before, held)) is not None:
            nodes[before.name] = structs.replace(before, attributes=_biased(before))
            _fold_(held, before.name, norm)
            renamed[node.name] = last = next(name for name in node.inputs if name in nodes and nodes[name].inputs)
            reads[last] = reads[node.name]
        else:
            nodes[node.name] = node
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    wanted = {*outputs, *(name for node in nodes.values() for name in node.inputs)}
    nodes = {name: node for name, node in nodes.items() if node.inputs or name in wanted}
    kept = {path: held[path] for path in held if path.rpartition(".")[0] in nodes or path in nodes}
    return structs.replace(graph, nodes=tuple(nodes.values()), outputs=outputs), kept


def _read(node: Node) -> tuple[str, ...]:
    return node.inputs[:1] if node.op in LIKE else node.inputs


def _before(node: Node, nodes: Mapping[str, Node], reads: Counter[str]) -> Node | None:
    """The layer that a norm or a scale follows, or what is before any other node."""
    found = [nodes[name] for name in node.inputs if name in nodes and nodes[name].inputs]
    if len(found) != 1:
        return None
    (before,) = found
    if before.op == "flatten" and before.attributes == {"end_dim": 1} and reads[before.name] == 1:
        layer = nodes.get(before.inputs[0])
        return layer if layer is not None and layer.op == "linear" else before
    return before


def _norm(node: Node, layer: Node, held: Mapping[str, Tensor]) -> Affine | None:
    """What a batch norm, or a product with one number for each channel, does to a layer before it."""
    if layer.op not in LAYERS:
        return None
    if node.op in NORMS:
        return affine(node, held)
    scale = next((held[name] for name in node.inputs if name in held), None)
    if node.op != "mul" or scale is None or layer.name not in node.inputs:
        return None
    channels = layer.attributes.get("out_features") or layer.attributes["out_channels"]
    axis = {"linear": -1, "conv1d": -2, "conv2d": -3}[layer.op]
    if scale.ndim < -axis or scale.shape[axis] != channels or scale.numel() != channels:
        return None
    return Affine(scale.flatten(), scale.new_zeros(channels))


def affine(node: Node, tensors: Mapping[str, Tensor]) -> Affine:
    """What a batch norm does in eval mode."""
    own = {name: tensors.get(f"{node.name}.{name}") for name in ("weight", "bias", "running_mean", "running_var")}
    mean, variance = own["running_mean"], own["running_var"]
    assert mean is not None
    assert variance is not None
    scale = (variance + node.attributes.get("eps", 1e-5)).rsqrt()
    scale = scale if own["weight"] is None else scale * own["weight"]
    shift = -mean * scale
    return Affine(scale, shift if own["bias"] is None else shift + own["bias"])


def _biased(node: Node) -> dict[str, object]:
    return {key: value for key, value in node.attributes.items() if key != "bias"}


def _fold_(tensors: dict[str, Tensor], path: str, norm: Affine) -> None:
    weight, bias = tensors[f"{path}.weight"], tensors.get(f"{path}.bias")
    tensors[f"{path}.weight"] = weight * norm.scale.view(-1, *[1] * (weight.ndim - 1))
    tensors[f"{path}.bias"] = norm.shift if bias is None else bias * norm.scale + norm.shift
