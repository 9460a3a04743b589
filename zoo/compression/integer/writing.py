"""Writing: a graph of whole numbers, while it is written node by node."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.compression.integer.layers import Rounding
from zoo.compression.integer.observing import Inputs
from zoo.compression.integer.planning import Planned
from zoo.compression.integer.steps import Step, ratio
from zoo.errors import StructureError
from zoo.structure.graph.graph import Graph, Node
from zoo.structure.graph.integer import BYTE
from zoo.structure.graph.tokens import WORD

EXPECTED = "expected layers, norms, pools, sums, products, concatenations and functions of one value"


@dataclass(frozen=True)
class Layer:
    """A layer of floats, and what it reads.

    Args:
        op: that stands for it in the scheme `exact`.
        weight: [O, ...], in double precision.
        bias: [O], in double precision.
        sizes: attributes of that op.
        source: the new name of what it reads.
        step: of the same.
    """

    op: str
    weight: Tensor
    bias: Tensor
    sizes: Mapping[str, Any]
    source: str
    step: Step


@dataclass(frozen=True)
class Scheme:
    """How whole numbers are chosen, and what is written otherwise than for other schemes.

    Args:
        choose: the step of a tensor, given what `steps.best` is.
        pixels: the step of images, given what `steps.spanning` is.
        weigh: writes a layer.
        write: op → what writes it.
        low: the least byte.
    """

    choose: Callable[..., Step]
    pixels: Callable[..., Step]
    weigh: Callable[["Writing", Node, Node, Layer], None]
    write: Mapping[str, Callable[["Writing", Node, Node], None]] = field(default_factory=dict)
    low: int = 0


@dataclass
class Writing:
    """The graph of whole numbers as far as it is written.

    Args:
        graph: of floats, folded.
        held: path → tensor of it, in double precision.
        plan: which steps its values have.
        inputs: of each layer.
        shapes: of its values for one image.
        how: weights are rounded.
        scheme: by which all is written.
        nodes: written so far.
        tensors: of these.
        steps: of the values so far, by their names in the graph of floats.
        names: of those that have another name in the new graph.
        narrowed: new names of the bytes of those that are words.
        taken: names of nodes, old and new.
        clamps: names of those that the op before them does.
    """

    graph: Graph
    held: Mapping[str, Tensor]
    plan: Planned
    inputs: Mapping[str, Inputs]
    shapes: Mapping[str, Sequence[int]]
    how: Rounding
    scheme: Scheme
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    narrowed: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(init=False)
    clamps: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.taken = {*self.graph.inputs, *(node.name for node in self.graph.nodes)}
        self.clamps = frozenset(clamp.name for clamp in self.plan.clamped.values())

    def emit(self, name: str, op: str, inputs: Sequence[str], attributes: Mapping[str, Any], **tensors: Tensor) -> str:
        """Write one node."""
        usual = {"zero": 0, "out_zero": 0, "low": 0, "high": BYTE}
        attributes = {key: value for key, value in attributes.items() if key not in usual or usual[key] != value}
        self.nodes.append(Node(name, op, tuple(inputs), attributes))
        self.taken.add(name)
        self.tensors |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        return name

    def fresh(self, name: str) -> str:
        """A name that no node has."""
        while name in self.taken:
            name += "_"
        return name

    def of(self, name: str) -> str:
        """The new name of a value."""
        return self.names.get(name, name)

    def at(self, name: str, step: Step) -> str:
        """The new name of a value, brought to a step where it has another: by a table, or what takes words too."""
        x = self.steps[name]
        if x == step:
            return self.of(name)
        fresh = self.fresh(f"{name.replace('.', '_')}_rescaled")
        if not (x.word or step.word):
            return self.emit(fresh, "qtable", [self.of(name)], {}, table=table_of(x, step, lambda values: values))
        told = {**scale(x.step / step.step), "zero": x.zero, **ends(step)}
        return self.emit(fresh, "qrescale", [self.of(name)], told)

    def bytes_of(self, node: Node, number: int = 0) -> tuple[str, Step]:
        """The new name and the step of a node's input, of which bytes are given where it is words."""
        step, name = self.read(node, number), node.inputs[number]
        if not step.word:
            return self.of(name), step
        if (planned := self.plan.narrow.get(name)) is None:
            raise StructureError(f"integer: node {node.name!r} ({node.op}) reads {name!r}, which are words: {EXPECTED}")
        if name not in self.narrowed:
            self.narrowed[name] = self.at(name, planned)
        return self.narrowed[name], planned

    def negative(self, node: Node, name: str, step: Step) -> tuple[str, Step]:
        """The new name and the step of bytes of the other sign, 255 - q, for a node that takes them off."""
        table = torch.arange(BYTE, -1, -1).to(torch.uint8)
        fresh = self.fresh(f"{node.name}_negative".replace(".", "_"))
        return self.emit(fresh, "qtable", [name], {}, table=table), Step(step.step, BYTE - step.zero)

    def read(self, node: Node, number: int = 0) -> Step:
        """The step of a node's input.

        Raises:
            StructureError: it isn't made of whole numbers.
        """
        name = node.inputs[number]
        if name not in self.steps:
            raise StructureError(f"integer: node {node.name!r} ({node.op}) reads {name!r}, which has no whole numbers")
        return self.steps[name]

    def give(self, first: Node, last: Node, op: str, inputs: Sequence[str], step: Step, **more: Any) -> None:
        """Write the op that gives a value, under the name of the node that was there before its clamp."""
        tensors = more.pop("tensors", {})
        self.emit(first.name, op, inputs, {**more, **self.range(last, step)}, **tensors)
        self.names[last.name], self.steps[last.name] = first.name, step

    def range(self, last: Node, step: Step) -> dict[str, int]:
        """What the op that gives a value is told of it."""
        low, high = limits(step, self.scheme.low)
        if last.name in self.clamps:
            least, most = _clamp(last)
            low = max(low, round(least / step.step) + step.zero) if math.isfinite(least) else low
            high = min(high, round(most / step.step) + step.zero) if math.isfinite(most) else high
        return {"out_zero": step.zero, "low": min(low, step.zero), "high": max(high, step.zero)}


def limits(step: Step, least: int = 0) -> tuple[int, int]:
    """The least and the largest of words, or of bytes from `least` on."""
    return (-WORD, WORD) if step.word else (least, BYTE)


def ends(step: Step) -> dict[str, int]:
    """What an op that gives values of a step is told of it."""
    low, high = limits(step)
    return {"out_zero": step.zero, "low": low, "high": high}


def scale(value: float) -> dict[str, int]:
    """What an op that multiplies is told of a ratio."""
    multiplier, exponent = ratio(value)
    return {"multiplier": multiplier, "exponent": exponent}


def table_of(x: Step, y: Step, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The bytes that a function gives for each byte [256]."""
    return stored(function((torch.arange(256, dtype=torch.float64) - x.zero) * x.step), y)


def stored(values: Tensor, step: Step) -> Tensor:
    """Values as bytes or words."""
    whole = ((values.nan_to_num() / step.step).round() + step.zero).clamp(*limits(step))
    return whole.to(torch.int16 if step.word else torch.uint8)


def _clamp(node: Node) -> tuple[float, float]:
    """The ends of a clamp."""
    if node.op in ("relu6", "aten.relu6"):
        return 0.0, 6.0
    if node.op == "relu":
        return 0.0, math.inf
    names = ("min_val", "max_val") if node.op == "aten.hardtanh" else ("min", "max")
    usual = (-1.0, 1.0) if node.op == "aten.hardtanh" else (-math.inf, math.inf)
    low, high = (node.attributes.get(name, default) for name, default in zip(names, usual, strict=True))
    return float(-math.inf if low is None else low), float(math.inf if high is None else high)
