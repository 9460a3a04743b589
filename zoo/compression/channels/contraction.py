"""Contraction: what is summed over is cut together; the channels of the result are those of the weight."""

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch.fx import Node

from zoo.compression.channels.ids import Axes, NotUnderstood, Vector
from zoo.compression.channels.pointwise import meet, unknown
from zoo.compression.channels.trace import Walk, argument

aten = torch.ops.aten


def linear(walk: Walk, node: Node) -> Axes:
    """A linear layer, y = x Wᵀ + b."""
    x, weight, *_ = cast(Any, node.args)
    written, read = walk.axes(weight)
    *lead, inputs = walk.axes(x)
    walk.ids.join(inputs, read, walk.met(x, weight))
    walk.bias(node, 2, written)
    walk.layer(node, weight, written, read)
    walk.count(node, [*lead, written, read], prod(walk.shape(weight)[1:]))
    return [*lead, written]


def convolution(walk: Walk, node: Node) -> Axes:
    """Kernel and space stay; of a grouped one, whole groups where there are many, else the same channels of each."""
    x, weight, *_ = cast(Any, node.args)
    transposed = "transpose" in str(node.target)
    groups = argument(node, "groups", 6, 1)
    if isinstance(groups, Node):
        raise NotUnderstood("groups that a convolution computes")
    first, second, *kernel = walk.axes(weight)
    shape, at = walk.shape(weight), len(walk.axes(x)) - len(kernel) - 1
    inputs = walk.axes(x)[at]
    for vector in (*kernel, *walk.axes(x)[at + 1 :]):
        walk.ids.freeze(vector, "space or kernel of a convolution")
    lead = walk.axes(x)[:at]
    positions = prod(walk.shape(node)[:at]) * prod(walk.shape(x if transposed else node)[at + 1 :])
    if transposed and groups > 1:
        for vector in (first, second, inputs):
            walk.ids.freeze(vector, "a grouped transposed convolution")
        first = second = inputs = None
    written, read = (second, first) if transposed else (first, second)
    if groups == 1:
        walk.ids.join(inputs, read, walk.met(x, weight))
        walk.layer(node, weight, written, read)
        axes = [written, read]
    elif groups >= shape[1]:
        whole_groups(walk, [inputs, first], groups, walk.met(x, weight))
        walk.ids.freeze(second, "channels within the groups of a convolution")
        walk.grouped(node, weight, written, (groups, shape[1]))
        axes = [written]
    else:
        same_of_each_group(walk, [inputs], groups, read, walk.met(x, weight))
        written = same_of_each_group(walk, [written], groups, None, "")
        walk.layer(node, weight, written, None, (groups, shape[1]))
        walk.inner.append(read)
        axes = [written, read]
    walk.bias(node, 2, written)
    walk.count_exactly(positions * prod(shape), axes)
    return [*lead, written, *[None] * len(kernel)]


def whole_groups(walk: Walk, vectors: Sequence[Vector], groups: int, reason: str) -> None:
    """Cut whole groups: what lies in one group is one unit, in every vector."""
    if any(vector is None for vector in vectors):
        for vector in vectors:
            walk.ids.freeze(vector, reason)
        return
    rows = [vector.view(groups, -1) for vector in vectors if vector is not None]
    for row in rows:
        walk.ids.join(row.flatten(), rows[0][:, :1].expand_as(row).flatten(), reason)


def same_of_each_group(walk: Walk, vectors: Sequence[Vector], groups: int, inner: Vector, reason: str) -> Vector:
    """Cut the same channels of every group; `inner` are those of one group."""
    for vector in vectors:
        if vector is None:
            walk.ids.freeze(inner, reason)
            return None
        rows = vector.view(groups, -1)
        walk.ids.join(rows.flatten(), rows[:1].expand_as(rows).flatten(), reason)
        if inner is not None or reason:
            walk.ids.join(inner, rows[0], reason)
    return vectors[0]


def product(walk: Walk, node: Node) -> Any:
    """A·B, in every place of what comes before the last two dimensions."""
    offset = 1 if node.target == aten.baddbmm.default else 0
    *added, a, b = cast(Any, node.args)[: offset + 2]
    if min(len(walk.shape(a)), len(walk.shape(b))) < 2:
        return unknown(walk, node)
    *lead_a, n, k = walk.axes(a)
    *lead_b, k2, m = walk.axes(b)
    lead = meet(walk, [(lead_a, walk.shape(a)[:-2]), (lead_b, walk.shape(b)[:-2])], walk.met(a, b))
    if walk.shape(a)[-1] > 1:
        walk.ids.join(k, k2, walk.met(a, b))
    axes = [*lead, n, m]
    walk.count(node, [*axes, k], walk.shape(a)[-1])
    walk.inner.append(k)
    summed = [(axes, walk.shape(node)), *((walk.axes(x), walk.shape(x)) for x in added)]
    return meet(walk, summed, walk.met(a, b)) if added else axes


def attention(walk: Walk, node: Node) -> Axes:
    """softmax(Q Kᵀ / √d + M) V; the softmax runs over all keys."""
    (q, k, v, *_), mask = cast(Any, node.args), argument(node, "attn_mask", 3, None)
    lead = meet(walk, [(walk.axes(x)[:-2], walk.shape(x)[:-2]) for x in (q, k, v)], walk.met(q, k))
    (n, d), (keys, d2), (keys2, width) = (walk.axes(x)[-2:] for x in (q, k, v))
    for vector in (keys, keys2):
        walk.ids.freeze(vector, "keys of an attention")
    walk.ids.join(d, d2, walk.met(q, k))
    if isinstance(mask, Node):
        full = [*lead, n, None]
        shape = [*walk.shape(node)[:-1], walk.shape(k)[-2]]
        meet(walk, [(full, shape), (walk.axes(mask), walk.shape(mask))], "a mask of an attention")
    rows = prod(walk.shape(node)[:-1]) * walk.shape(k)[-2]
    walk.count_exactly(rows * walk.shape(q)[-1], [*lead, n, d])
    walk.count_exactly(rows * walk.shape(v)[-1], [*lead, n, width])
    walk.inner.append(d)
    return [*lead, n, width]


def einsum(walk: Walk, node: Node) -> Any:
    """Dimensions of one letter are cut together."""
    equation, operands, *_ = cast(Any, node.args)
    equation = equation.replace(" ", "")
    if "." in equation or "->" not in equation or len(operands) > 2:
        return unknown(walk, node)
    left, right = equation.split("->")
    letters: dict[str, Vector] = {}
    length: dict[str, int] = {}
    for term, x in zip(left.split(","), operands, strict=True):
        for letter, vector, size in zip(term, walk.axes(x), walk.shape(x), strict=True):
            letters[letter] = walk.ids.join(letters[letter], vector, walk.met(x, node)) if letter in letters else vector
            length[letter] = size
    walk.inner += [letters[letter] for letter in letters if letter not in right]
    if len(operands) == 2:
        walk.count_exactly(prod(length.values()), list(letters.values()))
    return [letters[letter] for letter in right]
