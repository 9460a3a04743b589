"""Exported: any model that torch.export takes, written down as a Graph.

A program of ATen operations becomes nodes one by one. Operations in place become their pure twins: whoever reads the
tensor afterwards reads the result, and what was a view of something is scattered back into it. Casts to the type of
the images become casts to the type of whatever images come, so that half precision stays half.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from zoo.errors import StructureError
from zoo.structure.graph.aten import ATEN, RECURRENT, SAME
from zoo.structure.graph.drops import DROPOUTS, drops_branches
from zoo.structure.graph.graph import OPS, Graph, Node, check_graph
from zoo.structure.graph.layers import layers
from zoo.structure.graph.ops import DTYPES
from zoo.structure.graph.program import (
    END,
    bound,
    dtype_of,
    in_place,
    is_whole,
    keys,
    live,
    may_share,
    module_class,
    module_path,
    operation,
    where,
)

_UNCHANGED = {"aten.contiguous", "aten.alias", "aten.lift_fresh_copy", "aten.lift_fresh", "aten.clone"}
_INTS: dict[Any, tuple[str, Callable[[int, int], int]]] = {
    operator.mul: ("int_mul", operator.mul),
    operator.add: ("int_add", operator.add),
    operator.sub: ("int_sub", operator.sub),
    operator.floordiv: ("int_floordiv", operator.floordiv),
    operator.mod: ("int_mod", operator.mod),
}
COMPUTED = {"aten.batch_norm": "training", "aten.instance_norm": "use_input_stats"}
"""Norms whose statistics may be computed → the argument that says so."""
_CASTS = {"aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten._to_copy"}
_MADE = {f"aten.{prefix}{name}": name for name in ("zeros", "ones", "full") for prefix in ("", "new_")}
_MADE |= {"aten.arange": "arange", "aten.arange.start": "arange"}
_RESHAPES = {"aten.view": "size", "aten.reshape": "shape", "aten._unsafe_view": "size", "aten.expand": "size"}


def lift(program: ExportedProgram, tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Write an exported program down as a graph.

    Args:
        program: what `export` gave; sizes in the arguments of its graph may have been rewritten since.
        tensors: path → parameter, buffer or constant, by the names in `program.graph_signature`; sizes are read from
            here and from arguments, never from what the program was traced with.

    Returns:
        The graph, and the tensors that its model is to be given.

    Raises:
        StructureError: an operation that graphs don't have, one whose effects in place can't be told, or a tensor that
            is missing.
    """
    lifting = _Lifting(program, tensors)
    for node in program.graph.nodes:
        lifting.visit(node)
    return lifting.finish()


class _Lifting:
    """One pass over the exported graph: nodes written so far, and what each fx node is worth by now."""

    def __init__(self, program: ExportedProgram, tensors: Mapping[str, Tensor]) -> None:
        self.nodes, self.inputs, self.outputs = list[Node](), list[str](), list[str]()
        self.keys: tuple[str, ...] | None = None
        self.returned = program.call_spec.out_spec
        self.tensors, self.kept = tensors, dict[str, dict[str, Tensor]]()  # of each node that has some
        self.values: dict[fx.Node, str | int] = {}  # the name of a graph's node, or a size
        self.ints, self.drops = set[str](), dict[tuple[str, float], str]()
        self.order = {node: number for number, node in enumerate(program.graph.nodes)}
        self.same: dict[fx.Node, fx.Node] = {}  # result in place → the tensor that it is
        self.aliases: dict[fx.Node, set[fx.Node]] = {}  # what shares memory
        self.paths, self.parameters = dict[fx.Node, str](), set[str]()
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        first: dict[int, str] = {}
        for node in program.graph.find_nodes(op="placeholder"):
            if specs[node.name].kind == InputKind.USER_INPUT:
                continue
            path = specs[node.name].target or ""
            if node.users and path not in tensors:
                raise StructureError(f"the exported program reads {path}: expected it among the tensors, found none")
            self.paths[node] = first.setdefault(id(tensors.get(path, path)), path)
            if specs[node.name].kind == InputKind.PARAMETER:
                self.parameters.add(path)
        images = next(node for node in program.graph.find_nodes(op="placeholder") if node not in self.paths)
        self.dtype = images.meta["val"].dtype
        self.live = live(program.graph)
        self.layers = layers(program.graph, self.paths, tensors)
        self.taken = {*self.paths.values(), *(layer.path for layer in self.layers.values())}
        for path in list(self.taken):
            self.taken |= {path[: dot.start()] for dot in re.finditer(r"\.", path)}

    def visit(self, node: fx.Node) -> None:
        """Write one node of the program."""
        if node.op == "placeholder":
            self.aliases[node] = {node}
            if node not in self.paths:
                self.inputs.append(self._name(re.sub(r"\W", "_", node.name)))
                self.values[node] = self.inputs[-1]
        elif node.op == "call_function":
            self._call(node, operation(node))
        elif node.op == "output":
            outputs = pytree.tree_leaves(node.args)
            self.outputs = [str(self._read(each)) for each in outputs if each is not None]
            self.keys = keys(pytree.tree_unflatten(outputs, self.returned))
        elif node.users:
            raise StructureError(f"{node.name}: a {node.op} of an exported program can't be written as a graph")

    def finish(self) -> tuple[Graph, dict[str, Tensor]]:
        """Leave out what no output needs."""
        needed, nodes = set(self.outputs), list[Node]()
        for node in reversed(self.nodes):
            if node.name in needed:
                needed |= {*node.inputs, node.module or node.name}
                nodes.append(node)
        graph = Graph(tuple(self.inputs), tuple(reversed(nodes)), tuple(self.outputs), self.keys)
        check_graph(graph)
        return graph, {path: tensor for node in graph.nodes for path, tensor in self.kept.get(node.name, {}).items()}

    def _call(self, node: fx.Node, key: str) -> None:
        if node not in self.live:
            return
        args = bound(node)
        if not in_place(node):
            self.aliases[node] = {node}
            for other in may_share(node, key):
                self._join(node, other)
            self.values[node] = self._value(node, key, args)
            return
        pure = re.sub(r"_(?=\.|$)", "", key, count=1)
        target = self._same(node.all_input_nodes[0])
        if pure == "aten.copy":
            value: str | int = self._emit(node, "aten.expand_as", [args["src"], target], {})
        else:
            value = self._value(node, pure, args)
        self.same[node] = target
        self._write(node, target, value, key)

    def _write(self, node: fx.Node, target: fx.Node, value: str | int, key: str) -> None:
        """Let a tensor be worth a new value from here on, and what it is a part of too."""
        whole = {target}
        self.values[target] = value
        while (of := operation(target)) in ("aten.slice.Tensor", "aten.select.int"):
            args = bound(target)
            base = self._same(args.pop("self"))
            if not is_whole(of, args):
                scatter = "aten.slice_scatter" if of == "aten.slice.Tensor" else "aten.select_scatter"
                value = self._emit(node, scatter, [base, value], args)
            self.values[base], target = value, base
            whole.add(base)
        for other in self.aliases[target]:
            later = other not in whole and other not in self.same
            if other in self.paths or (later and any(self.order[user] > self.order[node] for user in other.users)):
                held = self.paths.get(other)
                changed = f"the state {held}, which a graph doesn't keep" if held else "what else is read of a tensor"
                raise StructureError(f"{where(node)}: {key} changes {changed}: let it make a new one")

    def _join(self, node: fx.Node, other: fx.Node) -> None:
        joined = self.aliases[node] | self.aliases[self._same(other)]
        for each in joined:
            self.aliases[each] = joined

    def _same(self, node: fx.Node) -> fx.Node:
        return self.same.get(node, node)

    def _value(self, node: fx.Node, key: str, args: dict[str, Any]) -> str | int:
        """What a pure operation is worth."""
        if node.target is operator.getitem:
            return self._emit(node, "item", [node.args[0]], {"index": node.args[1]})
        if node.target in _INTS:
            return self._arithmetic(node)
        idle = key in DROPOUTS and not args["train"]
        if key in _UNCHANGED or (idle and args["p"] == 0) or is_whole(key, args):
            return self._read(next(iter(args.values())))
        if idle:
            return self._dropout(node, key, args)
        if key in _CASTS:
            return self._cast(node, args["self"], args.get("dtype"))
        if key == "aten.type_as":
            return self._emit(node, "cast", [args["self"], args["other"]], {})
        if key in _MADE:
            like, kind = args.pop("self", self.inputs[0]), node.meta["val"].dtype
            if kind != self.dtype or _MADE[key] == "arange":
                args["dtype"] = kind
            else:
                args.pop("dtype", None)
            return self._emit(node, _MADE[key], [like], args)
        if key in _RESHAPES:
            return self._reshape(node, args, _RESHAPES[key], "expand" if key == "aten.expand" else "reshape")
        if key == "aten.cat":
            return self._emit(node, "concat", args["tensors"], {"dim": args.get("dim", 0)})
        if node in self.layers:
            return self._layer(node)
        return self._function(node, key, args)

    def _function(self, node: fx.Node, key: str, args: dict[str, Any]) -> str:
        """Write an operation of the table, as an op that graphs had before where one does the same."""
        if key in COMPUTED:
            if args.get("running_mean") is not None or not args[COMPUTED[key]]:
                raise StructureError(f"{where(node)}: {key} with computed statistics can't be written as a graph")
            args = {name: args[name] for name in ("input", "weight", "bias", "eps") if name in args}
        if key in RECURRENT and not args.pop("dropout"):
            del args["train"]
        if args.get("dtype") == self.dtype and dtype_of(next(iter(args.values()))).is_floating_point:
            del args["dtype"]
        first = list[Any]()
        for value in args.values():
            if not isinstance(value, fx.Node) or self._read(value) in self.ints or isinstance(self._read(value), int):
                break
            first.append(value)
        rest = dict(list(args.items())[len(first) :])
        for op in SAME.get(key, ()):
            if rest.keys() <= set(OPS[op].attributes):
                return self._emit(node, op, first, rest)
        known = ATEN.get(key)
        if known is None:
            raise StructureError(f"{where(node)}: {key}: an operation that a graph doesn't know")
        if unknown := rest.keys() - set(known.attributes):
            raise StructureError(f"{where(node)}: {key} with {min(unknown)}: an argument that a graph doesn't know")
        count = next((i for i, name in enumerate(args) if i >= len(first) or name != known.attributes[i]), len(first))
        rest = dict(list(args.items())[count:])
        return self._emit(node, key, first[:count], rest)

    def _arithmetic(self, node: fx.Node) -> str | int:
        op, compute = _INTS[node.target]
        a, b = (self._read(each) for each in node.args)
        if isinstance(a, int) and isinstance(b, int):
            return compute(a, b)
        if isinstance(a, int):
            return self._emit(node, op, [], {"a": a, "b": node.args[1]})
        return self._emit(node, op, [a] if isinstance(b, int) else [a, b], {"b": b} if isinstance(b, int) else {})

    def _cast(self, node: fx.Node, x: fx.Node, kind: torch.dtype | None) -> str | int:
        if kind is None:
            return self._read(x)
        if kind == self.dtype:
            return self._emit(node, "cast", [x, self.inputs[0]], {})
        return self._emit(node, "cast", [x], {"dtype": kind})

    def _reshape(self, node: fx.Node, args: dict[str, Any], key: str, op: str) -> str:
        sizes = [self._read(each) if isinstance(each, fx.Node) else each for each in args[key]]
        inputs = [each for each in sizes if isinstance(each, str)]
        if op == "reshape" and len(inputs) == 1 and -1 not in sizes:
            return self._emit(node, op, [args["self"]], {"shape": [-1 if isinstance(s, str) else s for s in sizes]})
        shape = _Words("input" if isinstance(each, str) else each for each in sizes)
        return self._emit(node, op, [args["self"], *inputs], {"shape": shape})

    def _dropout(self, node: fx.Node, key: str, args: dict[str, Any]) -> str:
        x, path = next(iter(args.values())), module_path(node)
        op = "drop_path" if drops_branches(module_class(node)) else DROPOUTS[key]
        first = self.drops.get((path, args["p"]))
        if first is None and path and path not in self.taken:
            self.drops[path, args["p"]] = name = self._name(path)
            return self._emit(node, op, [x], {"p": args["p"]}, name=name)
        if first is None:
            return self._emit(node, op, [x], {"p": args["p"]})
        return self._emit(node, op, [x], {}, module=first)

    def _layer(self, node: fx.Node) -> str:
        layer = self.layers[node]
        if layer.path in self.kept:
            return self._emit(node, layer.op, [layer.input], {}, module=layer.path)
        self.kept[layer.path] = {f"{layer.path}.{name}": tensor for name, tensor in layer.tensors.items()}
        return self._emit(node, layer.op, [layer.input], layer.attributes, name=layer.path)

    def _emit(
        self,
        node: fx.Node,
        op: str,
        first: Sequence[Any],
        attributes: Mapping[str, Any],
        name: str | None = None,
        module: str | None = None,
    ) -> str:
        inputs = [str(self._read(each)) for each in first]
        plain = {key: self._plain(value, inputs) for key, value in attributes.items() if value != END}
        if name is None:
            name = self._name(".".join(filter(None, (module_path(node), op.removeprefix("aten.").partition(".")[0]))))
        if op == "size" or op.startswith("int_"):
            self.ints.add(name)
        self.nodes.append(Node(name, op, tuple(inputs), plain, module))
        return name

    def _plain(self, value: Any, inputs: list[str]) -> Any:
        """An attribute as plain data; a node in it becomes a further input, `"$1"`."""
        if isinstance(value, fx.Node):
            operand = self._read(value)
            if isinstance(operand, int):
                return operand
            inputs.append(operand)
            return f"${len(inputs) - 1}"
        if isinstance(value, _Words):
            return list(value)
        if isinstance(value, list | tuple):
            return [self._plain(each, inputs) for each in value]
        if isinstance(value, torch.dtype):
            word = str(value).removeprefix("torch.")
            if word not in DTYPES:
                raise StructureError(f"{value} isn't a type that a graph knows, known are {', '.join(DTYPES)}")
            return word
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    def _read(self, value: Any) -> str | int:
        """The name of what an fx node is worth by now; a parameter or constant is written where it is first read."""
        if not isinstance(value, fx.Node):
            return value  # type: ignore[no-any-return]  # a name or a size already
        value = self._same(value)
        if value in self.values:
            return self.values[value]
        path = self.paths[value]
        if path not in self.kept:
            tensor = self.tensors[path]
            shape: dict[str, Any] = {"shape": list(tensor.shape)}
            if path in self.parameters:
                self.nodes.append(Node(path, "parameter", (), shape))
            else:
                self.nodes.append(Node(path, "buffer", (), {**shape, "dtype": self._plain(tensor.dtype, [])}))
            self.kept[path] = {path: tensor}
        return path

    def _name(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


class _Words(list[Any]):
    """A shape whose words are no names of nodes."""
