"""Twins of what transformers compute: norms, softmax, products of two activations, means over tokens."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from zoo.compression.integer.layers import MAX_BIAS, exponents
from zoo.compression.integer.planning import SHARES
from zoo.compression.integer.writing import Writing, scale, stored
from zoo.errors import StructureError
from zoo.structure.graph.graph import Graph, Node
from zoo.structure.graph.tokens import EPS, FRACTION, ONE, WORD

FINEST = 40  # exponent of a norm's outputs


def opened(graph: Graph) -> Graph:
    """Write attention as the products and the softmax that it is, so that each is looked at.

    softmax(q·kᵀ/√d + mask)·v
    """
    taken = {node.name for node in graph.nodes} | set(graph.inputs)
    nodes: list[Node] = []

    def put(name: str, op: str, inputs: tuple[str, ...], **attributes: float) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        nodes.append(Node(name, op, inputs, attributes))
        return name

    for node in graph.nodes:
        if node.op != "attention" or node.attributes.get("scale", 1) is None:
            nodes.append(node)
            continue
        q, k, v, *mask = node.inputs
        if "scale" in node.attributes:
            turned = put(f"{node.name}_keys", "transpose", (k,), dim0=-2, dim1=-1)
            product = put(f"{node.name}_scores", "matmul", (q, turned))
            product = put(f"{node.name}_scaled", "scale", (product,), other=node.attributes["scale"])
        else:
            product = put(f"{node.name}_scores", "scores", (q, k))
        for each in mask:
            product = put(f"{node.name}_masked", "add", (product, each))
        shares = put(f"{node.name}_shares", "softmax", (product,), dim=-1)
        nodes.append(Node(node.name, "matmul", (shares, v)))
    return Graph(graph.inputs, tuple(nodes), graph.outputs, graph.keys)


def _norm(writing: Writing, first: Node, last: Node) -> None:
    x, y, told = writing.read(first), writing.plan.steps[last.name], first.attributes
    own = first.module or first.name
    weight, bias = writing.held.get(f"{own}.weight"), writing.held.get(f"{own}.bias")
    if first.op == "group_norm":
        channels, form = told["num_channels"], {"axis": 1, "groups": told["num_groups"]}
    else:
        shape = told["normalized_shape"]
        if not isinstance(shape, int) and len(shape) != 1:
            raise StructureError(f"integer: node {first.name!r} normalizes {shape} at once, which has no twin")
        channels = shape if isinstance(shape, int) else shape[0]
        form = {"axis": 1 if first.op == "layer_norm2d" else -1}
    form |= {} if first.op != "rms_norm" else {"centered": False}
    eps = told.get("eps", 1e-5)
    weight = torch.ones(channels, dtype=torch.float64) if weight is None else weight
    bias = torch.zeros(channels, dtype=torch.float64) if bias is None else bias
    unit = weight.abs() / y.step * 2.0**-FRACTION
    shift = torch.minimum(exponents(unit, WORD + 0.49, FINEST), exponents(bias.abs() / y.step, MAX_BIAS, FINEST))
    power = torch.ldexp(torch.ones_like(weight), shift)
    tensors = {
        "weight": (weight / y.step * 2.0**-FRACTION * power).round().to(torch.int16),
        "bias": (bias / y.step * power).round().to(torch.int32),
        "exponent": shift.to(torch.int8),
        "eps": torch.tensor(round((eps or 1e-6) / x.step**2 * 2**EPS)),
    }
    told = {"channels": channels, **form, "zero": x.zero}
    writing.give(first, last, "qnorm", [writing.of(first.inputs[0])], y, **told, tensors=tensors)


def _softmax(writing: Writing, first: Node, last: Node) -> None:
    x, y = writing.read(first), SHARES[not writing.plan.steps[last.name].word]
    units = torch.stack([torch.arange(256), 256 * torch.arange(256)]).double()
    table = (ONE * torch.exp(-units * x.step)).round().to(torch.int32)
    told = {"dim": first.attributes["dim"], "bits": 15 if y.word else 8}
    writing.emit(first.name, "qsoftmax", [writing.of(first.inputs[0])], told, table=table)
    writing.steps[first.name] = y


def _product(writing: Writing, first: Node, last: Node) -> None:
    a, y = writing.read(first), writing.plan.steps[last.name]
    left = writing.of(first.inputs[0])
    right, b = writing.bytes_of(first, 1)
    value = a.step * b.step / y.step
    if first.op == "scores":
        value /= math.sqrt(writing.shapes[first.inputs[0]][-1])
        turned = writing.fresh(f"{first.name}_keys")
        right = writing.emit(turned, "transpose", [right], {"dim0": -2, "dim1": -1})
    writing.give(first, last, "qmatmul", [left, right], y, zeros=[a.zero, b.zero], **scale(value))


def _sum(writing: Writing, first: Node, last: Node) -> None:
    x, y, shape = writing.read(first), writing.plan.steps[last.name], writing.shapes[first.inputs[0]]
    dim = first.attributes.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or range(len(shape)))
    if any(each % len(shape) == 0 for each in dims):
        raise StructureError(f"integer: node {first.name!r} averages over the images of a batch, which has no twin")
    count = math.prod(shape[each] for each in dims) if first.op == "mean" else 1
    told = {"dim": dims, "keepdim": bool(first.attributes.get("keepdim", False)), "zero": x.zero}
    writing.give(first, last, "qsum", [writing.of(first.inputs[0])], y, **told, **scale(x.step / count / y.step))


def _embedding(writing: Writing, first: Node, last: Node) -> None:
    y, weight = writing.plan.steps[last.name], writing.held[f"{first.module or first.name}.weight"]
    table: Tensor = stored(weight, y)
    sizes = {"num_embeddings": len(weight), "embedding_dim": weight.shape[1]}
    writing.emit(first.name, "qembedding", [writing.of(first.inputs[0])], sizes, weight=table)
    writing.steps[first.name] = y


TOKENS: Mapping[str, Callable[[Writing, Node, Node], None]] = {
    **dict.fromkeys(("layer_norm", "layer_norm2d", "group_norm", "rms_norm"), _norm),
    "softmax": _softmax,
    **dict.fromkeys(("matmul", "scores"), _product),
    **dict.fromkeys(("sum", "aten.sum.dim_IntList"), _sum),
    "embedding": _embedding,
}
