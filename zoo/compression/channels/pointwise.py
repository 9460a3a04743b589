"""Pointwise: what is cut together because an operation puts it at the same place, and what nobody understands."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from zoo.compression.channels.ids import Axes
from zoo.compression.channels.trace import Walk, sizes

aten = torch.ops.aten
_SUMS = {aten.add.Tensor, aten.add_.Tensor}


def unknown(walk: Walk, node: Node) -> Any:
    """Freeze whatever an operation reads; what it multiplies is counted by torch's own counter."""
    reason = f"an operation that isn't understood: {node.target}"
    for each in node.all_input_nodes:
        walk.freeze(each, reason)
    walk.macs.append((_counted(node), []))
    return walk.frozen_like(node)


def _counted(node: Node) -> int:
    def meta(each: Any) -> Any:
        value: Any = each.meta.get("val") if isinstance(each, Node) else each
        if isinstance(value, Tensor):
            return torch.empty(sizes(value), dtype=value.dtype, device="meta")
        return value if not isinstance(value, torch.SymInt) else value.node.hint

    args, kwargs = pytree.tree_map(meta, (node.args, node.kwargs))
    try:
        with FlopCounterMode(display=False) as counter:
            cast(Any, node.target)(*args, **kwargs)
    except RuntimeError:  # not without values
        return 0
    return int(counter.get_total_flops() // 2)


def pointwise(walk: Walk, node: Node) -> Axes:
    """Dimensions that meet, counted from the last, are cut together."""
    inputs = walk.tensors(node)
    reason = f"{walk.name(node)} with something that can't be cut"
    axes = meet(walk, [(walk.axes(x), walk.shape(x)) for x in inputs], reason)
    if node.target in _SUMS and len(inputs) == 2 and all(map(walk.depends_on_image, inputs)):
        walk.sums += [vector for vector in axes if vector is not None]
    return axes


def meet(walk: Walk, inputs: Sequence[tuple[Axes, Sequence[int]]], reason: str) -> Axes:
    """Broadcast: what meets in each dimension of the result."""
    axes: Axes = []
    for back in range(max((len(shape) for _, shape in inputs), default=0), 0, -1):
        met = [axis[-back] for axis, shape in inputs if len(shape) >= back and shape[-back] != 1]
        vector = met[0] if met else None
        for other in met[1:]:
            vector = walk.ids.join(vector, other, reason)
        axes.append(vector)
    return axes
