"""Views: reshapes, permutations, slices and their like carry ids along.

The operation itself is run on the ids, once for each dimension that has some; then it is read off along which dimension
of the result they differ.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from zoo.compression.channels.ids import Axes, NotUnderstood, Vector
from zoo.compression.channels.pointwise import meet
from zoo.compression.channels.trace import Walk, argument

aten = torch.ops.aten


def movement(walk: Walk, node: Node) -> Any:
    """Let the operation itself move the ids."""
    x = walk.tensors(node)[0]
    if node.target == aten.reshape_as.default:
        return _reshaped(walk, node, x)
    rest = [each for each in walk.tensors(node) if each is not x]
    for each in rest:
        walk.freeze(each, f"{walk.name(node)} by it")
    results: list[Axes] = [[None] * out.ndim for out in _results(node)]
    target = _MOVES.get(node.target, node.target)
    for dim, vector in enumerate(walk.axes(x)):
        if vector is None:
            continue
        moved = _moved(walk, node, target, x, dim, vector)
        if moved is None:
            walk.ids.freeze(vector, f"{walk.name(node)} along it")
            continue
        for axes, ids in zip(results, moved, strict=True):
            _place(walk, node, axes, ids)
    return results if isinstance(node.meta["val"], list | tuple) else results[0]


def _reshaped(walk: Walk, node: Node, x: Node) -> Axes:
    axes: Axes = [None] * len(walk.shape(node))
    for dim, vector in enumerate(walk.axes(x)):
        if vector is not None:
            shape = [-1 if d == dim else 1 for d in range(len(walk.shape(x)))]
            _place(walk, node, axes, vector.view(shape).expand(walk.shape(x)).reshape(walk.shape(node)))
    return axes


def _results(node: Node) -> list[Tensor]:
    value = node.meta["val"]
    return list(value) if isinstance(value, list | tuple) else [value]


def _moved(walk: Walk, node: Node, target: Any, x: Node, dim: int, vector: Tensor) -> list[Tensor] | None:
    shape = walk.shape(x)
    ids = vector.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)

    def concrete(each: Any) -> Any:
        if each is x:
            return ids
        value = each.meta["val"] if isinstance(each, Node) else each
        if isinstance(value, Tensor):
            return walk.constant(each)
        return value.node.hint if isinstance(value, torch.SymInt) else value

    along = _ALONG.get(node.target)
    if along is not None and along(node, dim, len(shape)):
        return None
    try:
        args, kwargs = pytree.tree_map(concrete, (node.args, node.kwargs))
        moved = target(*args, **kwargs)
    except (NotUnderstood, RuntimeError):  # torch has no such operation on whole numbers
        return None
    return list(moved) if isinstance(moved, list | tuple) else [moved]


def _place(walk: Walk, node: Node, axes: Axes, ids: Tensor) -> None:
    """Read off along which dimension of a result ids differ."""
    for dim, (size, stride) in enumerate(zip(ids.shape, ids.stride(), strict=True)):
        if size > 1 and (stride == 0 or torch.equal(ids, ids.narrow(dim, 0, 1).expand_as(ids))):
            ids = ids.narrow(dim, 0, 1)
    varying = [dim for dim, size in enumerate(ids.shape) if size > 1]
    if not varying:
        walk.ids.freeze(ids.flatten(), f"{walk.name(node)} takes one of them")
        return
    keep = varying[0]
    if len(varying) > 1:
        # of (q k v) x heads x width the heads stay; where they turn out frozen, another
        order = [varying[-2], *sorted(set(varying) - {varying[-2]}, key=lambda d: -ids.shape[d])]
        keep = order[min(walk.choices.get(node.name, 0), len(order) - 1)]
        rows = ids.movedim(keep, 0).flatten(1)
        walk.ids.join(rows[:, :1].expand_as(rows).flatten(), rows.flatten(), "")
        walk.splits.append((node.name, rows[:, 0], len(order)))
        vector = rows[:, 0]
    else:
        vector = ids.flatten()
    if axes[keep] is not None:
        walk.ids.freeze(vector, f"{walk.name(node)} puts it into one dimension with another")
    else:
        axes[keep] = vector


def concatenate(walk: Walk, node: Node) -> Axes:
    """The joined dimension lies end to end; the others are cut together, but for what is empty."""
    inputs = cast(Any, node.args)[0]
    given = [x for x in inputs if 0 not in walk.shape(x)] or inputs
    rank = len(walk.shape(given[0]))
    at = int(argument(node, "dim", 1, 0)) % rank
    axes: Axes = []
    for dim in range(rank):
        if dim == at:
            pieces = [(walk.axes(x)[dim], walk.shape(x)[dim]) for x in given]
            lying = torch.cat([torch.zeros(n, dtype=torch.long) if v is None else v for v, n in pieces])
            axes.append(lying if bool(lying.any()) else None)
        else:
            axes.append(_all(walk, [walk.axes(x)[dim] for x in given], walk.shape(given[0])[dim], walk.name(node)))
    return axes


def _all(walk: Walk, vectors: Sequence[Vector], size: int, name: str) -> Vector:
    vector = vectors[0]
    for other in vectors[1:]:
        vector = walk.ids.join(vector, other, f"{name} with something that can't be cut") if size > 1 else None
    return vector


def stack(walk: Walk, node: Node) -> Axes:
    """A new dimension; the others are cut together."""
    given = cast(Any, node.args)[0]
    rank = len(walk.shape(given[0]))
    axes = [
        _all(walk, [walk.axes(x)[dim] for x in given], walk.shape(given[0])[dim], walk.name(node))
        for dim in range(rank)
    ]
    axes.insert(int(argument(node, "dim", 1, 0)) % (rank + 1), None)
    return axes


def spread(walk: Walk, node: Node) -> Axes:
    """Dimensions that are made by repeating one value can be any size."""
    x, *like = walk.tensors(node)
    axes = _spread(walk, node, walk.axes(x), walk.shape(x))
    if like:
        meet(walk, [(axes, walk.shape(node)), (walk.axes(like[0]), walk.shape(like[0]))], walk.name(node))
    return axes


def fold(walk: Walk, node: Node) -> Axes:
    """Patches laid over one another: all positions of a channel's kernel go with it."""
    (batch, vector, *_), kernel = walk.axes(node.args[0]), argument(node, "kernel_size", 2, ())
    if vector is not None:
        rows = vector.view(-1, prod(kernel))
        walk.ids.join(rows.flatten(), rows[:, :1].expand_as(rows).flatten(), "")
        vector = rows[:, 0]
    return [batch, vector, None, None]


def created(walk: Walk, node: Node) -> Axes:
    """A tensor of one value can be any size."""
    return _spread(walk, node, [], [])


def _spread(walk: Walk, node: Node, axes: Axes, shape: Sequence[int]) -> Axes:
    out = node.meta["val"].shape
    missing = len(out) - len(shape)
    return [
        axes[d - missing]
        if d >= missing and shape[d - missing] != 1
        else (walk.ids.fresh(size) if isinstance(size, int) else None)
        for d, size in enumerate(out)
    ]


def repeat(walk: Walk, node: Node) -> Any:
    """What has one value can be repeated any number of times."""
    x = walk.tensors(node)[0]
    shape, out = walk.shape(x), node.meta["val"].shape
    missing = len(out) - len(shape)
    grows = [d for d, size in enumerate(out) if size != ([1] * missing + list(shape))[d]]
    if all(d < missing or shape[d - missing] == 1 for d in grows):
        return spread(walk, node)
    return movement(walk, node)


def pad(walk: Walk, node: Node) -> Axes:
    """Zeros beside channels stay."""
    x = walk.tensors(node)[0]
    amounts = cast(Any, node.args)[1]
    zeros = node.target == aten.pad.default and argument(node, "mode", 2, "constant") == "constant"
    value = argument(node, "value", 3 if node.target == aten.pad.default else 2, 0) or 0
    zeros = (zeros or node.target == aten.constant_pad_nd.default) and value == 0
    axes = list(walk.axes(x))
    for i in range(0, len(amounts), 2):
        dim, vector = len(axes) - 1 - i // 2, axes[len(axes) - 1 - i // 2]
        before, after = amounts[i : i + 2]
        if vector is None or (before == 0 and after == 0):
            continue
        if zeros and isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0:
            axes[dim] = torch.nn.functional.pad(vector, (before, after))
        else:
            walk.ids.freeze(vector, f"{walk.name(node)} along it")
            axes[dim] = None
    return axes


_MOVES: Mapping[Any, Any] = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def _at(position: int, default: int = 0) -> Callable[[Node, int, int], bool]:
    return lambda node, dim, rank: int(argument(node, "dim", position, default)) % rank == dim


def _rolled(node: Node, dim: int, rank: int) -> bool:
    dims = argument(node, "dims", 1 if node.target == aten.flip.default else 2, ())
    return not dims or dim in [each % rank for each in dims]


def _stepped(node: Node, dim: int, rank: int) -> bool:
    return bool(argument(node, "dim", 1, 0) % rank == dim and argument(node, "step", 4, 1) != 1)


def _indexed(node: Node, dim: int, rank: int) -> bool:
    indices: Any = node.args[1]
    return dim < len(indices) and indices[dim] is not None


_ALONG: Mapping[Any, Callable[[Node, int, int], bool]] = {
    aten.roll.default: _rolled,
    aten.slice.Tensor: _stepped,
    aten.index.Tensor: _indexed,
    aten.index_select.default: _at(1),
    aten.unfold.default: _at(1),
}
"""Movements whose numbers count channels: what they move can't be cut."""
