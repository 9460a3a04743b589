"""Cutting: an exported program with fewer channels. The numbers in it that count channels are written anew."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx import Node

from zoo.compression.channels.ids import Axes, Vector
from zoo.compression.channels.trace import argument, sizes

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Traced:
    """A program and the ids of all its values.

    Args:
        program: exported.
        paths: placeholder → path of the tensor that it stands for.
        axes: node → ids of its result, or of its results.
        roots: id → the id that it is one with [ids]; 0 where it is frozen.
    """

    program: ExportedProgram
    paths: Mapping[Node, str]
    axes: Mapping[Node, Any]
    roots: Tensor

    def of(self, node: Any) -> Axes:
        """Ids of a tensor."""
        value = self.axes.get(node)
        return value if value is not None else [None] * len(sizes(node.meta["val"]))

    def held(self) -> dict[str, Axes]:
        """Path of each parameter and buffer → its ids."""
        return {path: self.of(node) for node, path in self.paths.items()}


class Kept:
    """Which positions of every value stay.

    Args:
        traced: the program and its ids.
        gone: roots that are cut [k].
    """

    def __init__(self, traced: Traced, gone: Tensor) -> None:
        self.traced = traced
        self.stays = torch.ones(len(traced.roots), dtype=torch.bool)
        self.stays[gone] = False
        self.stays = self.stays[traced.roots]

    def mask(self, vector: Vector) -> Tensor | None:
        """Whether each position stays, None where all do."""
        if vector is None:
            return None
        mask = self.stays[vector]
        return None if bool(mask.all()) else mask

    def masks(self, axes: Axes) -> list[tuple[int, Tensor]]:
        """Dimension and mask wherever a tensor is cut."""
        return [(dim, mask) for dim, vector in enumerate(axes) if (mask := self.mask(vector)) is not None]

    def size(self, vector: Vector, size: Any) -> Any:
        """How long a dimension is afterwards."""
        return size if (mask := self.mask(vector)) is None else int(mask.sum())

    def compact(self, tensor: Tensor, axes: Axes) -> Tensor:
        """A tensor without what is cut."""
        for dim, mask in self.masks(axes):
            tensor = tensor.index_select(dim, mask.nonzero()[:, 0].to(tensor.device))
        return tensor

    def select(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Path → tensor of the narrowed model, of those of the dense one; uncut ones are the same objects."""
        held = self.traced.held()
        return {path: self.compact(t, held[path]) if path in held else t for path, t in tensors.items()}


def cut_program(kept: Kept) -> ExportedProgram:
    """Cut a program.

    Args:
        kept: what stays of it.

    Returns:
        A program for the tensors that `kept.select` returns; it shares those of the dense one, which nobody should run
        it with.
    """
    traced, new = kept.traced, fx.Graph()
    same: dict[Node, Node] = {}
    for node in traced.program.graph.nodes:
        if node.target == aten._assert_tensor_metadata.default:
            continue
        target, old_args, old_kwargs = rewritten(kept, node)
        args, kwargs = fx.map_arg(old_args, same.__getitem__), fx.map_arg(old_kwargs, same.__getitem__)
        same[node] = new.create_node(node.op, target, args, kwargs, node.name)
        same[node].meta = dict(node.meta)
    program = copy.copy(traced.program)
    program._graph_module = fx.GraphModule(traced.program.graph_module, new)
    return program


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""Target, arguments and keyword arguments of a node."""


def rewritten(kept: Kept, node: Node) -> Call:
    """A node's call once channels are gone."""
    rule = NUMBERS.get(node.target) if node.op == "call_function" else None
    return (rule and rule(kept, node)) or (node.target, node.args, dict(node.kwargs))


def _replaced(node: Node, position: int, name: str, value: Any) -> Call:
    if len(node.args) > position:
        return node.target, (*node.args[:position], value, *node.args[position + 1 :]), dict(node.kwargs)
    return node.target, node.args, {**node.kwargs, name: value}


def _lengths(kept: Kept, vectors: Axes, given: Sequence[Any], shape: Sequence[Any] = ()) -> list[Any]:
    """Sizes that a node asks for; one that is computed (batch times heads) is left to torch as -1."""
    lengths = [
        item if kept.mask(vector) is None or item == -1 else kept.size(vector, item) if isinstance(item, int) else -1
        for vector, item in zip(vectors, given, strict=True)
    ]
    if lengths.count(-1) > 1:
        lengths = [
            kept.size(vector, size) if item == -1 and isinstance(size, int) else length
            for vector, item, length, size in zip(vectors, given, lengths, shape, strict=True)
        ]
    return lengths


def _sized(position: int, name: str = "size") -> Callable[[Kept, Node], Call | None]:
    def rule(kept: Kept, node: Node) -> Call | None:
        given = list(argument(node, name, position, ()))
        return _replaced(node, position, name, _lengths(kept, kept.traced.of(node), given, node.meta["val"].shape))

    return rule


def _reshape_as(kept: Kept, node: Node) -> Call | None:
    own, others = (list(map(kept.mask, kept.traced.of(each))) for each in (node, cast(Node, node.args[1])))
    if all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(own, others, strict=True)):
        return None  # what it is shaped as is cut alike, so sizes may stay open
    out = node.meta["val"].shape
    given = [-1 if isinstance(size, torch.SymInt) else int(size) for size in out]
    return aten.reshape.default, (node.args[0], _lengths(kept, kept.traced.of(node), given, out)), {}


def _unflatten(kept: Kept, node: Node) -> Call:
    dim, given = int(argument(node, "dim", 1, 0)), list(argument(node, "sizes", 2, ()))
    axes = kept.traced.of(node)
    dim %= len(axes) - len(given) + 1
    return _replaced(node, 2, "sizes", _lengths(kept, axes[dim : dim + len(given)], given))


def _repeat(kept: Kept, node: Node) -> Call:
    x, repeats = cast(Any, node.args)
    given = [1] * (len(kept.traced.of(node)) - len(repeats)) + list(repeats)
    shape = [1] * (len(given) - len(sizes(x.meta["val"]))) + sizes(x.meta["val"])
    spread = [vector if size == 1 else None for vector, size in zip(kept.traced.of(node), shape, strict=True)]
    return _replaced(node, 1, "repeats", _lengths(kept, spread, given))


def _split(kept: Kept, node: Node) -> Call | None:
    dim = int(argument(node, "dim", 2, 0))
    outs, pieces = node.meta["val"], kept.traced.axes[node]
    computed = all(isinstance(out.shape[dim], torch.SymInt) for out in outs)
    if computed or all(kept.mask(axes[dim]) is None for axes in pieces):
        return None
    lengths = [kept.size(axes[dim], int(out.shape[dim])) for axes, out in zip(pieces, outs, strict=True)]
    return aten.split_with_sizes.default, (node.args[0], lengths, dim), {}


def _slice(kept: Kept, node: Node) -> Call | None:
    x, dim = node.args[0], int(argument(node, "dim", 1, 0))
    mask = kept.mask(kept.traced.of(x)[dim])
    if mask is None:
        return None
    start, end, _ = slice(argument(node, "start", 2, None), argument(node, "end", 3, None)).indices(len(mask))
    return node.target, (x, dim, int(mask[:start].sum()), int(mask[:end].sum())), {}


def _narrow(kept: Kept, node: Node) -> Call | None:
    x, dim, start, length = cast(Any, node.args)
    mask = kept.mask(kept.traced.of(x)[dim])
    if mask is None:
        return None
    return node.target, (x, dim, int(mask[:start].sum()), int(mask[start : start + length].sum())), {}


def _select(kept: Kept, node: Node) -> Call | None:
    x, dim, index = cast(Any, node.args)
    mask = kept.mask(kept.traced.of(x)[dim])
    return None if mask is None else (node.target, (x, dim, int(mask[: index % len(mask)].sum())), {})


def _layer_norm(kept: Kept, node: Node) -> Call:
    given = cast(Any, node.args)[1]
    return _replaced(node, 1, "normalized_shape", _lengths(kept, kept.traced.of(node)[-len(given) :], given))


def _groups(position: int, name: str) -> Callable[[Kept, Node], Call | None]:
    """Whole groups go, or the same channels of each."""

    def rule(kept: Kept, node: Node) -> Call | None:
        groups, mask = int(argument(node, name, position, 1)), kept.mask(kept.traced.of(node)[1])
        if groups == 1 or mask is None:
            return None
        return _replaced(node, position, name, int(mask.view(groups, -1).any(1).sum()))

    return rule


def _attention(kept: Kept, node: Node) -> Call | None:
    """Without a scale of its own an attention divides by the root of the width that is left."""
    q, *_ = cast(Any, node.args)
    if node.kwargs.get("scale") is not None or kept.mask(kept.traced.of(q)[-1]) is None:
        return None
    return node.target, node.args, {**node.kwargs, "scale": sizes(q.meta["val"])[-1] ** -0.5}


NUMBERS: Mapping[Any, Callable[[Kept, Node], Call | None]] = {
    aten.view.default: _sized(1),
    aten.reshape.default: _sized(1, "shape"),
    aten._unsafe_view.default: _sized(1),
    aten.expand.default: _sized(1),
    aten.full.default: _sized(0),
    aten.zeros.default: _sized(0),
    aten.ones.default: _sized(0),
    aten.new_zeros.default: _sized(1),
    aten.new_ones.default: _sized(1),
    aten.new_full.default: _sized(1),
    aten.reshape_as.default: _reshape_as,
    aten.unflatten.int: _unflatten,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _groups(1, "num_groups"),
    aten.conv1d.default: _groups(6, "groups"),
    aten.conv2d.default: _groups(6, "groups"),
    aten.conv2d.padding: _groups(6, "groups"),
    aten.scaled_dot_product_attention.default: _attention,
}
"""Operations with numbers that count channels → how these are written anew."""
