"""What conversion leaves as it goes through a checkpoint's vertices: nodes and their tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zoo.errors import StructureError
from zoo.hub.foreign.unpickle import Record
from zoo.structure.graph.graph import Node


@dataclass(frozen=True)
class Shape:
    """A vertex whose value is the shape of another's."""

    of: str


Value = str | Shape | tuple[str, ...]
"""What a vertex is worth: a node's name, the shape of one, or several nodes (a model with several outputs)."""


@dataclass
class Writer:
    """Nodes in the order in which they run, and the tensors that they own.

    Args:
        nodes: written so far.
        tensors: path → value.
        modules: which node has which record's weights, for those that several vertices share.
        vertices: read so far, those of graphs within vertices too.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[int, str] = field(default_factory=dict)
    vertices: int = 0

    def function(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Write a function node; returns its name."""
        self.nodes.append(Node(name, op, inputs, attributes))
        return name

    def module(self, op: str, name: str, record: Record, *inputs: str, **attributes: Any) -> str:
        """Write a module node with the weights of a record, or with those that an earlier node has of it."""
        shared = self.modules.setdefault(id(record), name)
        if shared != name:
            self.nodes.append(Node(name, op, inputs, {}, shared))
            return name
        self.nodes.append(Node(name, op, inputs, attributes))
        for key, tensor in weights(record).items():
            self.tensors[f"{name}.{key}"] = tensor
        return name

    def parameter(self, name: str, value: Tensor) -> str:
        """Write a parameter node."""
        self.nodes.append(Node(name, "parameter", (), {"shape": list(value.shape)}))
        self.tensors[name] = value
        return name

    def buffer(self, name: str, value: Tensor) -> str:
        """Write a constant node."""
        dtype = str(value.dtype).removeprefix("torch.")
        self.nodes.append(Node(name, "buffer", (), {"shape": list(value.shape), "dtype": dtype}))
        self.tensors[name] = value
        return name


def weights(record: Record) -> dict[str, Tensor]:
    """The tensors that a module holds itself."""
    held: Mapping[str, Any] = {**record.state.get("_parameters", {}), **record.state.get("_buffers", {})}
    return {key: value for key, value in held.items() if isinstance(value, Tensor)}


def attribute(record: Record, name: str, kind: type | tuple[type, ...]) -> Any:
    """An attribute of a module, of the type that it must have.

    Raises:
        StructureError: it is missing or of another type.
    """
    value = record.state.get(name)
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(each.__name__ for each in kinds)
        raise StructureError(f"{record.name}: {name} is {value!r:.60}, expected {expected}")
    return value


def required_tensor(record: Record, name: str) -> Tensor:
    """A tensor that a module must hold.

    Raises:
        StructureError: it holds none of that name.
    """
    tensor = weights(record).get(name)
    if tensor is None:
        raise StructureError(f"{record.name} has no tensor {name!r}")
    return tensor


def child(record: Record, name: str) -> Record:
    """A module within a module.

    Raises:
        StructureError: there is none of that name.
    """
    module = record.state.get("_modules", {}).get(name)
    if not isinstance(module, Record):
        raise StructureError(f"{record.name} has no module {name!r}")
    return module


def two_ints(value: Any, where: str) -> list[int]:
    """Two whole numbers, as torch takes them: one for both, or each.

    Raises:
        StructureError: it is neither.
    """
    both = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(both) != 2 or not all(type(item) is int for item in both):
        raise StructureError(f"{where} is {value!r:.60}, expected one whole number or two")
    return both
