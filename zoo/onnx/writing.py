"""Writing: an ONNX program node by node, and what must be known of a graph before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from zoo.errors import StructureError
from zoo.onnx.export import named
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.graph.integer import BYTE

if TYPE_CHECKING:
    from onnx import NodeProto

Shape = tuple[int, ...]  # of a value; -1 is the batch's


@dataclass
class Writing:
    """The program as far as it is written.

    Args:
        model: with its weights.
        shapes: name of a node → shape of what it gives, or of each part of that.
        words: names of nodes that give more than bytes.
        widths: name of a node → channels of its value here, where `zoo.onnx.padding` gives it more.
        nodes: written so far.
        constants: of these.
        names: name of a node → of its value here, or of each part of that.
        shares: names of softmaxes along the last axis.
    """

    model: nn.Module
    shapes: Mapping[str, Any]
    words: frozenset[str] = frozenset()
    widths: Mapping[str, int] = field(default_factory=dict)
    nodes: list["NodeProto"] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    shares: set[str] = field(default_factory=set)

    def emit(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Write one node, whose inputs are names or constants; gives the name of its value."""
        return self.emit_parts(1, op, *inputs, **attributes)[0]

    def emit_parts(self, parts: int, op: str, *inputs: Any, **attributes: Any) -> list[str]:
        """The same of a node that gives several values."""
        from onnx import helper

        name = f"{op}/{len(self.nodes)}"  # no node of a graph has a slash in its name
        read = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        given = [f"{name}/{part}" for part in range(parts)]
        self.nodes.append(helper.make_node(op, read, given, name, **attributes))
        return given

    def _constant(self, value: Any) -> str:
        name = f"constant/{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def module(self, node: Node) -> Any:
        """What a node runs."""
        return self.model.get_submodule(node.module or node.name)

    def shape(self, node: Node, number: int = 0) -> Shape:
        """The shape of what a node reads."""
        shape: Shape = self.shapes[node.inputs[number]]
        return shape

    def cast(self, value: str, dtype: Any) -> str:
        """Write a change of type."""
        from onnx import helper

        return self.emit("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def clipped(self, value: str, low: int, high: int) -> str:
        """Keep bytes within less than a byte has."""
        return value if (low, high) == (0, BYTE) else self.emit("Clip", value, np.uint8(low), np.uint8(high))


def shapes_of(graph: Graph, size: Shape) -> tuple[dict[str, Any], frozenset[str], list[str]]:
    """What must be known of the values of a graph.

    Returns:
        Name of a node → shape of what it gives, in which the size that follows the batch's is -1; names of those that
        give more than bytes; names of the outputs.
    """
    runs = [_Running(graph), _Running(graph)]
    with torch.no_grad():
        outputs = [run.run(torch.empty(2 + i, *size, dtype=torch.uint8, device="meta")) for i, run in enumerate(runs)]
    two, three = (run.seen for run in runs)
    words = frozenset(name for name, each in two.items() if isinstance(each, Tensor) and each.dtype != torch.uint8)
    return {name: _opened(two[name], three[name]) for name in two}, words, [*named(outputs[0])]


class _Running(fx.Interpreter):
    """Runs a graph without weights and keeps what each node gives."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph_module(graph))
        self.seen: dict[str, Any] = {}
        self.order = iter([*graph.inputs, *(node.name for node in graph.nodes)])

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if n.op != "output":
            self.seen[next(self.order)] = result
        return result


def _opened(two: Any, three: Any) -> Any:
    if isinstance(two, Tensor):
        return tuple(a if a == b else -1 for a, b in zip(two.shape, three.shape, strict=True))
    return [_opened(a, b) for a, b in zip(two, three, strict=True)] if isinstance(two, tuple | list) else None


def formless(node: Node) -> StructureError:
    """What is raised of a node that can't be written."""
    return StructureError(f"ONNX: node {node.name!r} is {node.op}, which has no form there that gives its bytes")
