"""Graph: a structure that stands alone, as a list of nodes over a closed table of operations.

It is what a checkpoint becomes that no timm model has the shape of. It is a value, reads and writes JSON, and runs as a
`torch.fx.GraphModule` of plain torch modules: it trains, compiles and exports as any other.
"""

import copy
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Struct, json
from torch import Tensor, fx, nn

from zoo.declarations import Name, validated
from zoo.errors import StructureError, in_one_line
from zoo.structure.base import MAX_ARGUMENT, Meta, Plain
from zoo.structure.graph.aten import ATEN
from zoo.structure.graph.integer import INTEGER
from zoo.structure.graph.mrt import MRT
from zoo.structure.graph.ops import DTYPES, FUNCTIONS, SIZES, TENSORS
from zoo.structure.graph.ops import MODULES as FLOATS
from zoo.structure.graph.quotients import QUOTIENTS
from zoo.structure.graph.tokens import TOKENS

MODULES = {**FLOATS, **INTEGER, **TOKENS, **QUOTIENTS, **MRT}
CALLS = {**FUNCTIONS, **ATEN}
OPS = {**MODULES, **TENSORS, **CALLS}
MAX_PRODUCT = 1e28  # what shape arithmetic may reach, each size that it reads counted as MAX_ARGUMENT
INTS = {function.__name__: function for function in SIZES}
CARRIED = {"zoo_entry", "pretrained_cfg", "default_cfg", "num_classes"}  # attributes of every model of ours
MAX_WORDS = 16  # words of a dotted name
MAX_NODES = 10_000  # the largest model of the catalog has some 1,500

_Attribute: Any = Plain
for _ in range(3):  # lists within each other
    _Attribute = Plain | Annotated[list[_Attribute], msgspec.Meta(max_length=64)]


class Node(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation and what it reads.

    Args:
        name: unique in the graph; of a module op also the path of its module.
        op: a key of `MODULES` or `FUNCTIONS` in `zoo.structure.graph.ops`.
        inputs: names of nodes before it, or of the graph's inputs; the operation's first arguments.
        attributes: keyword arguments of the operation; in those of a function `"$1"` stands for the input 1, counted
            from 0, which isn't one of the first arguments then.
        module: of a module op, the earlier node whose module it uses too.
    """

    name: Name
    op: Name
    inputs: tuple[Name, ...] = ()
    attributes: Mapping[str, Any] = {}
    module: Name | None = None


class Graph(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Nodes in the order in which they run.

    Args:
        inputs: names of what the model is given.
        nodes: the operations.
        outputs: names of what it returns; several are returned as a tuple.
        keys: where it returns a dictionary, the key of each output.
    """

    inputs: tuple[Name, ...]
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(max_length=MAX_NODES)]
    outputs: tuple[Name, ...]
    keys: tuple[Name, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The graph as a JSON object; what has its default is left out."""
        data = json.decode(json.encode(self))
        return {key: data[key] for key in ("inputs", "outputs", "keys", "nodes") if key in data}

    @classmethod
    def from_json(cls, data: Any, where: str = "graph") -> "Graph":
        """Read what `to_json` wrote.

        Raises:
            StructureError: a key, a type or a name isn't what it must be; the message names the node.
        """
        graph: Graph = validated(cls, data, f"{where}:", StructureError)
        check_graph(graph, where)
        return graph


def check_graph(graph: Graph, where: str = "graph") -> None:
    """Check that every operation is known and reads only what stands before it.

    Raises:
        StructureError: naming the node and what is wrong.
    """
    told = {f"node {node.name!r}": node.attributes for node in graph.nodes}
    validated(dict[str, dict[str, _Attribute]], told, f"{where}:", StructureError)
    known, modules = set(graph.inputs), dict[str, str]()
    ints: dict[str, float] = {}  # what is a size, and how large it may be
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
            if key == "dtype" and value not in DTYPES:
                raise StructureError(f"{here}.dtype is {value!r}, expected one of {', '.join(DTYPES)}")
        if node.op in CALLS:
            _check_call(node, ints, here)
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
    if graph.keys is not None and not len(set(graph.keys)) == len(graph.keys) == len(graph.outputs):
        raise StructureError(f"{where}: keys aren't names of its {len(graph.outputs)} outputs, each once")
    if not all(key.isprintable() for key in graph.keys or ()):
        raise StructureError(f"{where}: keys have characters that can't be printed")


class GraphModel(fx.GraphModule):
    """What runs a graph; a copy carries what the model does, of which torch's own keeps nothing."""

    def __deepcopy__(self, memo: Any) -> fx.GraphModule:
        copied = super().__deepcopy__(memo)
        for name in CARRIED & vars(self).keys():
            setattr(copied, name, copy.copy(vars(self)[name]))
        return copied

    def __reduce__(self) -> Any:
        made, (held, imports) = super().__reduce__()
        carried = {name: held.pop(name) for name in CARRIED & held.keys()}
        return _unpickled, (made, held, imports), carried


def _unpickled(made: Callable[..., fx.GraphModule], held: dict[str, Any], imports: str) -> GraphModel:
    plain = made(held, imports)
    return GraphModel(plain, plain.graph, type(plain).__name__)


def graph_module(graph: Graph, name: str = "Graph") -> GraphModel:
    """Build the model that a graph describes, on the meta device.

    Args:
        graph: the structure.
        name: of the class that `print(model)` shows.

    Returns:
        A module in eval mode; its weights have shapes and no values.

    Raises:
        StructureError: a node can't be built, or asks for something absurd.
    """
    check_graph(graph, name)
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
                keywords = {key: _argument(key, value, inputs) for key, value in node.attributes.items()}
                named = set(_references(node.attributes))
                first = tuple(each for i, each in enumerate(inputs) if i not in named)
                values[node.name] = program.call_function(CALLS[node.op].call, first, keywords)
    outputs: Any = tuple(values[each] for each in graph.outputs)
    if graph.keys is not None:
        outputs = dict(zip(graph.keys, outputs, strict=True))
    program.output(outputs[0] if len(graph.outputs) == 1 and graph.keys is None else outputs)
    program.lint()
    return GraphModel(root, program, name if name.isidentifier() else "Graph").eval()


def _argument(key: str, value: Any, inputs: Sequence[Any]) -> Any:
    """What an attribute stands for: an input, a dtype, an infinity, or itself."""
    if isinstance(value, list | tuple):
        return [_argument(key, item, inputs) for item in value]
    if isinstance(value, str) and value.startswith("$"):
        return inputs[int(value[1:])]
    if key == "dtype":
        return DTYPES[value]
    return float(value) if value in ("inf", "-inf") else value


def _references(value: Any) -> Iterator[int]:
    """Which inputs an attribute names."""
    if isinstance(value, str) and value.startswith("$"):
        if not (value[1:].isascii() and value[1:].isdecimal()):
            raise ValueError(value)
        yield int(value[1:])
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _references(item)


def _check_call(node: Node, ints: dict[str, float], here: str) -> None:
    """Check what a function is given: tensors where it takes tensors, sizes that are bounded elsewhere."""
    try:
        named = set(_references(node.attributes))
    except ValueError:
        raise StructureError(f"{here}: an attribute names an input otherwise than $0, $1, ...") from None
    if named and not max(named) < len(node.inputs):
        raise StructureError(f"{here} has {len(node.inputs)} inputs, an attribute names ${max(named)}")
    op = CALLS[node.op]
    first = [name for i, name in enumerate(node.inputs) if i not in named]
    if op.tensors and tuple(op.attributes[: len(first)]) != op.tensors[: len(first)]:
        raise StructureError(f"{here}: {len(first)} inputs come first, {node.op} takes tensors as {op.tensors}")
    for key, value in node.attributes.items():
        sizes = [node.inputs[i] for i in _references(value)]
        if key not in op.tensors and any(name not in ints for name in sizes):
            raise StructureError(f"{here}.{key} names an input that isn't a size")
    if node.op == "size":
        ints[node.name] = MAX_ARGUMENT
    elif node.op in INTS:
        ints[node.name] = _int(node, first, ints, here)
    elif not op.tensors and node.op not in ("reshape", "expand") and any(name in ints for name in first):
        raise StructureError(f"{here}: a size comes first, {node.op} takes tensors there")


def _int(node: Node, first: Sequence[str], ints: Mapping[str, float], here: str) -> float:
    """Bound the result of shape arithmetic by the bounds of what goes in."""
    given = [*first, *(node.attributes[key] for key in ("a", "b") if key in node.attributes)]
    sides = []
    for value in given:
        name = node.inputs[int(value[1:])] if isinstance(value, str) and value.startswith("$") else value
        if type(name) is not int and name not in ints:
            raise StructureError(f"{here}: {node.op} of what isn't a size")
        sides.append(float(abs(name)) if isinstance(name, int) else ints[name])
    if len(sides) != 2:
        raise StructureError(f"{here}: {node.op} takes two sizes, found {len(sides)}")
    a, b = sides
    if node.op in ("int_floordiv", "int_mod") and type(given[-1]) is int and not b:
        raise StructureError(f"{here}: {node.op} by 0")
    bound = {"int_mul": a * b, "int_floordiv": a}.get(node.op, a + b)
    if bound > MAX_PRODUCT:
        raise StructureError(f"{here}: a size of more than {MAX_PRODUCT:.0e} is refused")
    return bound


def _made(node: Node) -> nn.Module | Tensor:
    with in_one_line(f"node {node.name!r}: no {node.op} of {dict(node.attributes)}"):
        made: nn.Module | Tensor = OPS[node.op].call(**node.attributes)
    return made


def _add(root: nn.Module, path: str, item: nn.Module | Tensor) -> None:
    """Give a module or tensor its place, with plain modules for what stands above it."""
    *parents, last = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if not isinstance(root, nn.Module):
        raise StructureError(f"node {path!r}: a module has something of that name already")
    stand_in = root._modules.get(last)
    if type(stand_in) is nn.Module and isinstance(item, nn.Module):  # something below it came first
        for name, child in (*stand_in._modules.items(), *stand_in._parameters.items(), *stand_in._buffers.items()):
            if child is not None:
                _add(item, name, child)
        del root._modules[last]
    if hasattr(root, last):
        raise StructureError(f"node {path!r}: a module has something of that name already")
    if isinstance(item, Tensor) and not isinstance(item, nn.Parameter):
        root.register_buffer(last, item)
    else:
        setattr(root, last, item)


def _is_name(name: str) -> bool:
    """Whether a name is a path of words that Python lets attributes have, or that modules in a dictionary are called.

    fx writes the others into its source in quotes, so they have letters, digits, `_` and `-` alone.
    """
    parts = name.split(".")
    return len(parts) <= MAX_WORDS and all(
        (part.isidentifier() or re.fullmatch(r"[0-9A-Za-z_-]+", part)) and not keyword.iskeyword(part) for part in parts
    )
