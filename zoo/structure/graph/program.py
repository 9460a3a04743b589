"""Program: what the nodes of an exported program say of themselves."""

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from zoo.errors import StructureError
from zoo.structure.graph.aten import PLACEMENT
from zoo.structure.graph.drops import DROPOUTS

END = 2**63 - 1  # how a slice says "to the end"


def operation(node: fx.Node) -> str:
    """The name of an ATen operation, without the word for its default form; of others whatever they are called."""
    return str(node.target).removesuffix(".default")


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names of its schema, without those that have their default or say where."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    default = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    return {
        name: given[name]
        for name in names
        if name in given and name not in PLACEMENT and not (name in default and _equal(given[name], default[name]))
    }


def _equal(a: Any, b: Any) -> bool:
    return not isinstance(a, fx.Node) and (list(a) if isinstance(a, tuple) else a) == b and type(a) is type(b)


def in_place(node: fx.Node) -> bool:
    """Whether an operation writes to its first argument."""
    return operation(node).partition(".")[2].partition(".")[0].endswith("_")


def live(graph: fx.Graph) -> set[fx.Node]:
    """What the output or an operation in place depends on: not the assertions, nor sizes that only they read."""
    nodes = set[fx.Node]()
    for node in reversed(graph.nodes):
        if node.op == "output" or in_place(node) or not nodes.isdisjoint(node.users):
            nodes.add(node)
    return nodes


def module_path(node: fx.Node) -> str:
    """The module of the model that an operation was called in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    told = isinstance(path, str) and re.fullmatch(r"[\w.]*", path) and not path.startswith("_empty_nn_module_stack")
    return path if told else ""


def where(node: fx.Node) -> str:
    """What a message calls an operation: the module that it was called in, or the node where none is known."""
    return module_path(node) or module_class(node) or node.name


def module_class(node: fx.Node) -> str:
    """The class of that module, by its name alone."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(getattr(stack[-1][1], "__name__", stack[-1][1])).rpartition(".")[2] if stack else ""


def keys(returned: Any) -> tuple[str, ...] | None:
    """The keys of what a model returns, None where it is no dictionary; values that are None are left out.

    Raises:
        StructureError: it isn't a tensor, or tensors in a tuple, a list or a dictionary.
    """
    held = returned.values() if isinstance(returned, Mapping) else returned
    held = held if isinstance(held, Iterable) and not isinstance(held, fx.Node) else [held]
    for each in held:
        if each is not None and not isinstance(each, fx.Node):
            raise StructureError(
                f"the model returns a {type(each).__name__} within its outputs, expected tensors: return them side by "
                f"side"
            )
    if not isinstance(returned, Mapping):
        return None
    if others := [key for key in returned if not isinstance(key, str)]:
        raise StructureError(f"the model returns a dictionary with the key {others[0]!r}, expected words")
    return tuple(key for key, each in returned.items() if each is not None)


def dtype_of(value: Any) -> torch.dtype:
    """The type that a value had when it was traced."""
    result = value.meta.get("val") if isinstance(value, fx.Node) else None
    return result.dtype if isinstance(result, Tensor) else torch.int64


def is_whole(key: str, args: Mapping[str, Any]) -> bool:
    """Whether a slice is of everything."""
    plain = not args.get("start") and args.get("end") in (None, END) and args.get("step", 1) == 1
    return key == "aten.slice.Tensor" and plain


def may_share(node: fx.Node, key: str) -> list[fx.Node]:
    """The tensors that a result may be a view of."""
    if node.target is operator.getitem or key in (*DROPOUTS, "aten.type_as", "aten.meshgrid.indexing"):
        return list(node.all_input_nodes)
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    pairs = zip(schema.arguments, node.args, strict=False)
    return [value for argument, value in pairs if argument.alias_info is not None and isinstance(value, fx.Node)]
