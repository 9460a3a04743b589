"""Graph: a structure that stands alone, as a list of nodes over a closed table of operations.

It is what a checkpoint becomes that no timm model has the shape of. It is a value, reads and writes JSON, and runs as a
`torch.fx.GraphModule` of plain torch modules: it trains, compiles and exports as any other.
"""

import keyword
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, fx, nn

from zoo.errors import StructureError
from zoo.structure.base import MAX_ARGUMENT, Meta
from zoo.structure.ops import FUNCTIONS, MODULES, TENSORS

OPS = {**MODULES, **TENSORS, **FUNCTIONS}
GROWING = ("size", "output_size", "scale_factor", "shape")  # what may make a result larger than what it was made of
MAX_ELEMENTS = 10**8
MAX_DEPTH = 16  # words of a dotted name
MAX_NODES = 50_000  # the largest model of the catalog has some 1,500


@dataclass(frozen=True)
class Node:
    """One operation and what it reads.

    Args:
        name: unique in the graph; of a module op also the path of its module.
        op: a key of `MODULES` or `FUNCTIONS` in `zoo.structure.ops`.
        inputs: names of nodes before it, or of the graph's inputs.
        attributes: keyword arguments of the operation.
        module: of a module op, the earlier node whose module it uses too.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run.

    Args:
        inputs: names of what the model is given.
        nodes: the operations.
        outputs: names of what it returns; several are returned as a tuple.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The graph as a JSON object; what has its default is left out."""
        rows = [
            {key: value for key, value in asdict(node).items() if value not in ((), {}, None)} for node in self.nodes
        ]
        return {"inputs": list(self.inputs), "outputs": list(self.outputs), "nodes": rows}

    @classmethod
    def from_json(cls, data: Any, where: str = "graph") -> "Graph":
        """Read what `to_json` wrote.

        Raises:
            StructureError: a key, a type or a name isn't what it must be; the message names the node.
        """
        if not isinstance(data, dict) or set(data) != {"inputs", "outputs", "nodes"}:
            raise StructureError(f"{where} isn't an object of inputs, outputs and nodes")
        rows = data["nodes"]
        if not isinstance(rows, list) or len(rows) > MAX_NODES:
            raise StructureError(f"{where}.nodes isn't a list of at most {MAX_NODES} nodes")
        nodes = tuple(_node(row, f"{where}.nodes[{number}]") for number, row in enumerate(rows))
        graph = cls(_names(data["inputs"], f"{where}.inputs"), nodes, _names(data["outputs"], f"{where}.outputs"))
        check(graph, where)
        return graph


def check(graph: Graph, where: str = "graph") -> None:
    """Check that every operation is known and reads only what stands before it.

    Raises:
        StructureError: naming the node and what is wrong.
    """
    known, modules = set(graph.inputs), dict[str, str]()
    if len(known) != len(graph.inputs) or not all(map(_is_name, graph.inputs)):
        raise StructureError(f"{where}: inputs aren't words, each once")
    for node in graph.nodes:
        here = f"{where}: node {node.name!r}"
        op = OPS.get(node.op)
        if op is None:
            raise StructureError(
                f"{here} is a {node.op!r}, an operation this version doesn't know: pip install -U compressed-zoo"
            )
        if node.name in known or not _is_name(node.name):
            raise StructureError(f"{here}: the name is taken, or isn't one of dotted words")
        for name in node.inputs:
            if name not in known:
                raise StructureError(f"{here} reads {name!r}, which doesn't stand before it")
        for key, value in node.attributes.items():
            if key not in op.attributes:
                raise StructureError(
                    f"{here}: {node.op} has no attribute {key!r}, known are {', '.join(op.attributes)}"
                )
            _check_value(value, f"{here}.{key}")
            if key in GROWING and math.prod(_sizes(value)) > MAX_ELEMENTS:
                raise StructureError(f"{here}.{key} is {value}: more than {MAX_ELEMENTS:.0e} elements are refused")
        if node.op == "item" and type(node.attributes.get("index")) is not int:
            raise StructureError(f"{here}: an item needs its index")
        if node.module is not None and modules.get(node.module) != node.op:
            raise StructureError(f"{here} uses the module of {node.module!r}, which isn't a {node.op} before it")
        if node.op in MODULES and node.module is None:
            modules[node.name] = node.op
        known.add(node.name)
    for name in graph.outputs:
        if name not in known:
            raise StructureError(f"{where}: output {name!r} isn't a node")
    if not graph.inputs or not graph.outputs:
        raise StructureError(f"{where} has no input or no output")


def build(graph: Graph, name: str = "Graph") -> fx.GraphModule:
    """Build the model that a graph describes, on the meta device.

    Args:
        graph: the structure.
        name: of the class that `print(model)` shows.

    Returns:
        A module in eval mode; its weights have shapes and no values.

    Raises:
        StructureError: a node can't be built, or asks for something absurd.
    """
    check(graph, name)
    root, program = nn.Module(), fx.Graph()
    # What a file says never becomes code: fx writes the names of inputs into the source that it compiles.
    values: dict[str, Any] = {each: program.placeholder(f"x{i or ''}") for i, each in enumerate(graph.inputs)}
    with Meta():
        for node in graph.nodes:
            inputs = tuple(values[each] for each in node.inputs)
            if node.op in MODULES:
                if node.module is None:
                    _add(root, node.name, _made(node))
                values[node.name] = program.call_module(node.module or node.name, inputs)
            elif node.op in TENSORS:
                _add(root, node.name, _made(node))
                values[node.name] = program.get_attr(node.name)
            elif node.op == "item":
                values[node.name] = program.call_function(FUNCTIONS["item"].call, (*inputs, node.attributes["index"]))
            else:
                values[node.name] = program.call_function(FUNCTIONS[node.op].call, inputs, dict(node.attributes))
    outputs = tuple(values[each] for each in graph.outputs)
    program.output(outputs[0] if len(outputs) == 1 else outputs)
    program.lint()
    return fx.GraphModule(root, program, name if name.isidentifier() else "Graph").eval()


def _made(node: Node) -> nn.Module | Tensor:
    try:
        made: nn.Module | Tensor = OPS[node.op].call(**node.attributes)
    except StructureError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StructureError(f"node {node.name!r}: no {node.op} of {dict(node.attributes)}: {reason}") from error
    return made


def _add(root: nn.Module, path: str, item: nn.Module | Tensor) -> None:
    """Give a module or tensor its place, with plain modules for what stands above it."""
    *parents, last = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if not isinstance(root, nn.Module) or hasattr(root, last):
        raise StructureError(f"node {path!r}: a module has something of that name already")
    if isinstance(item, Tensor) and not isinstance(item, nn.Parameter):
        root.register_buffer(last, item)
    else:
        setattr(root, last, item)


def _node(row: Any, where: str) -> Node:
    known = {each.name for each in fields(Node)}
    if not isinstance(row, dict) or not {"name", "op"} <= row.keys() <= known:
        raise StructureError(f"{where} isn't an object of {', '.join(sorted(known))}")
    attributes, module = row.get("attributes", {}), row.get("module")
    if not isinstance(attributes, dict) or not isinstance(module, str | None):
        raise StructureError(f"{where}: attributes isn't an object, or module isn't a name")
    if not isinstance(row["name"], str) or not isinstance(row["op"], str):
        raise StructureError(f"{where}: name and op must be text")
    return Node(row["name"], row["op"], _names(row.get("inputs", []), f"{where}.inputs"), attributes, module)


def _is_name(name: str) -> bool:
    """Whether a name is a path of words that Python lets attributes have."""
    parts = name.split(".")
    return len(parts) <= MAX_DEPTH and all(part.isidentifier() and not keyword.iskeyword(part) for part in parts)


def _sizes(value: Any) -> list[float]:
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, int | float) and item > 1]


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise StructureError(f"{where} isn't a list of names")
    return tuple(value)


def _check_value(value: Any, where: str, depth: int = 0) -> None:
    if isinstance(value, list | tuple) and depth < 3 and len(value) <= 64:
        for item in value:
            _check_value(item, where, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= MAX_ARGUMENT:
            raise StructureError(f"{where} is {value}, at most {MAX_ARGUMENT} is accepted")
    elif not isinstance(value, bool | str | None):
        raise StructureError(f"{where} is a {type(value).__name__}, expected plain data")
