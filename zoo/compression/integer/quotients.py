"""Twins of what divides: quotients of two activations, means over windows that hang over, roots of sums of squares.

What is written otherwise is brought into these first: addcmul(b, w, x) = w·x + b; x / c = x·(1/c) of a constant c;
normalize(x) = x / max(‖x‖, ε).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from zoo.compression.integer.observing import Seen
from zoo.compression.integer.steps import Step
from zoo.compression.integer.writing import EXPECTED, Writing, limits, scale
from zoo.errors import StructureError
from zoo.structure.graph.graph import Graph, Node, graph_module

_DIVIDING = ("div", "aten.div.Tensor")
MAX_PRODUCTS = 2**22  # pixels before and after upsampling, whose shares are held
_PARTS = tuple(2**power for power in range(8))


def divided(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Write quotients, and what has them within, by the ops that have twins.

    Args:
        graph: of a model of floats.
        tensors: path → tensor of it.

    Returns:
        A graph that gives the same, and its tensors.

    Raises:
        StructureError: a constant that something is divided by is 0; the node is named.
    """
    held = dict(tensors)
    taken = {node.name for node in graph.nodes} | set(graph.inputs)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "aten.addcmul" and node.attributes.get("value", 1) == 1 and len(node.inputs) == 3:
            bias, *factors = node.inputs
            product = _fresh(f"{node.name}_product", taken)
            nodes += [Node(product, "mul", tuple(factors)), Node(node.name, "add", (product, bias))]
        elif node.op in _DIVIDING and isinstance(node.attributes.get("other"), int | float):
            _check_constant(node, node.attributes["other"])
            nodes.append(Node(node.name, "scale", node.inputs, {"other": 1 / node.attributes["other"]}))
        elif node.op in _DIVIDING and node.inputs[-1] in held and not node.attributes:
            _check_constant(node, float(held[node.inputs[-1]].abs().min()))
            value = held[node.inputs[-1]].reciprocal()
            constant = _fresh(f"{node.name}_reciprocal", taken)
            held[constant] = value
            nodes.append(Node(constant, "parameter", (), {"shape": list(value.shape)}))
            nodes.append(Node(node.name, "mul", (node.inputs[0], constant)))
        elif node.op in _DIVIDING:
            nodes.append(structs.replace(node, op="div"))
        elif node.op == "normalize":
            dim, eps = node.attributes.get("dim", 1), node.attributes.get("eps", 1e-12)
            root, least = (_fresh(f"{node.name}_{end}", taken) for end in ("norm", "least"))
            nodes.append(Node(root, "norm", node.inputs, {"dim": [dim], "keepdim": True}))
            nodes.append(Node(least, "aten.clamp_min", (root,), {"min": eps}))
            nodes.append(Node(node.name, "div", (*node.inputs, least)))
        else:
            nodes.append(node)
    return structs.replace(graph, nodes=tuple(nodes)), held


def check_divisors(graph: Graph, seen: Mapping[str, Seen]) -> None:
    """Check that what is divided by is above 0, as its twin takes it to be.

    Args:
        graph: of a model of floats.
        seen: what was seen of its nodes.

    Raises:
        StructureError: it isn't on the calibration images; the node is named.
    """
    for node in graph.nodes:
        if node.op == "div" and len(node.inputs) == 2 and (least := seen[node.inputs[1]].low) <= 0:
            raise StructureError(
                f"integer: node {node.name!r} divides by {node.inputs[1]!r}, of which the calibration images make "
                f"{least:.3g}: a quotient has a twin where all that it divides by is above 0"
            )


def _check_constant(node: Node, value: float) -> None:
    if not value:
        raise StructureError(f"integer: node {node.name!r} divides by a constant 0, of which nothing is a quotient")


def _fresh(name: str, taken: set[str]) -> str:
    name = name.replace(".", "_")
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _quotient(writing: Writing, first: Node, last: Node) -> None:
    if len(first.inputs) != 2 or first.attributes:
        raise StructureError(f"integer: node {first.name!r} ({first.op}) has no twin but of two tensors: {EXPECTED}")
    a, b, y = writing.read(first), writing.read(first, 1), writing.plan.steps[last.name]
    told = {"zeros": [a.zero, b.zero], **scale(a.step / (b.step * y.step))}
    writing.give(first, last, "qdiv", list(map(writing.of, first.inputs)), y, **told)


def _root(writing: Writing, first: Node, last: Node) -> None:
    x, y, told = writing.read(first), writing.plan.steps[last.name], first.attributes
    rank, dim = len(writing.shapes[first.inputs[0]]), told.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
    if told.get("ord", 2) != 2 or any(each % rank == 0 for each in dims):
        raise StructureError(f"integer: node {first.name!r} is a norm of {dict(told)}, which has no twin: {EXPECTED}")
    form = {"dim": dims, "keepdim": bool(told.get("keepdim", False)), "zero": x.zero}
    writing.give(first, last, "qroot", [writing.of(first.inputs[0])], y, **form, **scale(x.step / y.step))


def mean_over_windows(writing: Writing, first: Node, last: Node, form: Mapping[str, Any]) -> None:
    """Write a pool whose windows hang over what counts."""
    x, y = writing.read(first), writing.plan.steps[last.name]
    told = {**form, "zero": x.zero, **scale(x.step / y.step)}
    writing.give(first, last, "qmean_pool2d", [writing.of(first.inputs[0])], y, **told)


def mixed(writing: Writing, first: Node, last: Node) -> None:
    """Write upsampling by lines between pixels: a product with the share that each has of each.

    Raises:
        StructureError: the shares aren't whole parts of 2^7, or are too many.
    """
    shape = writing.shapes[first.inputs[0]]
    _, channels, height, width = shape
    out = writing.shapes[first.name][2:]
    pixels = height * width
    if pixels * out[0] * out[1] > MAX_PRODUCTS:
        raise StructureError(f"integer: node {first.name!r} upsamples {height} x {width}, too many pixels for a twin")
    units = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, height, width)
    alone = graph_module(Graph(("x",), (Node("y", first.op, ("x",), first.attributes),), ("y",)))
    shares = alone(units).view(pixels, -1)
    parts = next((p for p in _PARTS if torch.equal((shares * p).round(), shares * p)), None)
    if parts is None or float(shares.min()) < 0:
        raise StructureError(f"integer: node {first.name!r} upsamples by shares that no byte holds: it has no twin")
    x, y = writing.read(first), writing.plan.steps[last.name]
    flat, table, product = (writing.fresh(f"{first.name}_{end}".replace(".", "_")) for end in ("flat", "shares", "sum"))
    writing.emit(flat, "flatten", [writing.of(first.inputs[0])], {"start_dim": 2})
    writing.emit(table, "buffer", [], {"shape": list(shares.shape), "dtype": "uint8"})
    writing.tensors[table] = (shares * parts).to(torch.uint8)
    told = {"zeros": [x.zero, 0], **scale(x.step / parts / y.step), **writing.range(last, y)}
    writing.emit(product, "qmatmul", [flat, table], told)
    writing.emit(first.name, "reshape", [product], {"shape": ["batch", channels, *out]})
    writing.names[last.name], writing.steps[last.name] = first.name, y


def of_words(writing: Writing, first: Node, y: Step) -> bool:
    """Write what scales, shifts or clamps, where it reads or gives words; whether it does."""
    told, x = first.attributes, writing.read(first)
    factor = told["other"] if first.op == "scale" else 1.0
    added = told["other"] if first.op in ("shift", "aten.add.Scalar") else 0.0
    low, high = limits(y)
    if (least := told.get("min")) is not None:
        low = max(low, round(least / y.step) + y.zero)
    if (most := told.get("max")) is not None:
        high = min(high, round(most / y.step) + y.zero)
    middle = y.zero + round(added / y.step)
    if not (x.word or y.word) or factor <= 0 or not low <= middle <= high:
        return False
    form = {**scale(x.step * factor / y.step), "zero": x.zero, "out_zero": middle, "low": low, "high": high}
    writing.names[first.name] = writing.emit(first.name, "qrescale", [writing.of(first.inputs[0])], form)
    writing.steps[first.name] = y
    return True


QUOTIENTS: Mapping[str, Callable[[Writing, Node, Node], None]] = {"div": _quotient, "norm": _root}
