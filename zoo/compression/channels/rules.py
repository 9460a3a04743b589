"""Rules: what each kind of ATen operation does to the ids of the channels that pass through it.

pointwise     dimensions of equal size are cut together; a size of one spreads
movement      (view, permute, slice, ...) the operation itself moves the ids, once for each dimension
contraction   what is summed over is cut together; the channels of the result are those of the weight
recurrence    the gates of a unit are cut together, and what the next step and the next layer read of it
statistics    norms and means over channels are of the channels that stay
anything else is not understood, and what it reads is frozen
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.fx import Node

from zoo.compression.channels.contraction import (
    attention,
    convolution,
    einsum,
    linear,
    product,
    same_of_each_group,
    whole_groups,
)
from zoo.compression.channels.ids import Axes, NotUnderstood
from zoo.compression.channels.pointwise import pointwise, unknown
from zoo.compression.channels.recurrence import RECURRENT, recurrence
from zoo.compression.channels.trace import Walk, argument
from zoo.compression.channels.views import concatenate, created, fold, movement, pad, repeat, spread, stack

aten = torch.ops.aten
Rule = Callable[[Walk, Node], Any]


def apply(walk: Walk, node: Node) -> Any:
    """Give a node's result its ids.

    Args:
        walk: what is known of the nodes before it.
        node: a call of an operation.

    Returns:
        Axes of the result; of an operation with several results, a list of them.
    """
    rule = RULES.get(node.target)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = pointwise
    counted = len(walk.macs)
    try:
        return (rule or unknown)(walk, node)
    except NotUnderstood:
        del walk.macs[counted:]
        return unknown(walk, node)


def batch_norm(walk: Walk, node: Node) -> Axes:
    """Each channel by itself."""
    x = walk.tensors(node)[0]
    axes = list(walk.axes(x))
    for position in range(1, 5):
        axes[1] = walk.bias(node, position, axes[1])
    if argument(node, "training", 5, False):
        walk.inner += [vector for dim, vector in enumerate(axes) if dim != 1]
    return axes


def layer_norm(walk: Walk, node: Node) -> Axes:
    """Over the channels that stay."""
    x = walk.tensors(node)[0]
    axes = list(walk.axes(x))
    count = len(cast(Any, node.args)[1])
    for each in node.args[2:4]:
        if isinstance(each, Node):
            for dim in range(1, count + 1):
                if axes[-dim] is not None or walk.axes(each)[-dim] is not None:
                    axes[-dim] = walk.ids.join(axes[-dim], walk.axes(each)[-dim], walk.met(x, each))
    return axes


def group_norm(walk: Walk, node: Node) -> Axes:
    """One group is a layer norm; else as for grouped convolutions."""
    x, groups = walk.tensors(node)[0], int(argument(node, "num_groups", 1, 1))
    axes, channels = list(walk.axes(x)), walk.shape(x)[1]
    for position in (2, 3):
        axes[1] = walk.bias(node, position, axes[1])
    if axes[1] is not None and groups > 1:
        if groups >= channels // groups:
            whole_groups(walk, [axes[1]], groups, "")
        else:
            same_of_each_group(walk, [axes[1]], groups, None, "")
    for vector in axes[2:]:
        walk.ids.freeze(vector, "space of a group norm")
    return [*axes[:2], *[None] * len(axes[2:])]


def reduction(walk: Walk, node: Node) -> Axes:
    """Over what stays."""
    return _reduced(walk, node, None)


def extreme(walk: Walk, node: Node) -> Any:
    """The largest of several is another one once some are gone."""
    axes = _reduced(walk, node, f"{walk.name(node)} over it")
    return [axes, axes] if isinstance(node.meta["val"], list | tuple) else axes


def _reduced(walk: Walk, node: Node, reason: str | None) -> Axes:
    x = walk.tensors(node)[0]
    rank = len(walk.shape(x))
    names = [each.name for each in cast(Any, node.target)._schema.arguments]
    given = argument(node, "dim", names.index("dim"), None) if "dim" in names else None
    dims = [given] if isinstance(given, int) else (list(given) if given else list(range(rank)))
    gone = {dim % rank for dim in dims}
    for dim in gone:
        if reason is None:
            walk.inner.append(walk.axes(x)[dim])
        else:
            walk.ids.freeze(walk.axes(x)[dim], reason)
    keep = len(_first(node).shape) == rank
    return [None if dim in gone else vector for dim, vector in enumerate(walk.axes(x)) if keep or dim not in gone]


def _first(node: Node) -> Any:
    value = node.meta["val"]
    return value[0] if isinstance(value, list | tuple) else value


def along(walk: Walk, node: Node) -> Axes:
    """A softmax and its like: what it runs over stays."""
    x = walk.tensors(node)[0]
    axes = list(walk.axes(x))
    dim = int(argument(node, "dim", 1, -1)) % len(axes)
    walk.ids.freeze(axes[dim], f"{walk.name(node)} over it")
    axes[dim] = None
    return axes


def spatial(walk: Walk, node: Node) -> Any:
    """Pooling and resizing: batch and channels go through."""
    x = walk.tensors(node)[0]
    axes, shape, out = walk.axes(x), walk.shape(x), walk.shape(node)
    moved = 1 if "1d" in str(node.target) or "linear1d" in str(node.target) else 2
    for vector in axes[len(shape) - moved :]:
        walk.ids.freeze(vector, f"{walk.name(node)} over it")
    result = [*axes[: len(shape) - moved], *[None] * (len(out) - len(shape) + moved)]
    return [result, result] if isinstance(node.meta["val"], list | tuple) else result


def getitem(walk: Walk, node: Node) -> Any:
    """One of several results."""
    source, index = cast(Any, node.args)
    value = walk.values[source]
    return value[index] if isinstance(value, list) and isinstance(index, int) and index < len(value) else None


def identity(walk: Walk, node: Node) -> Axes:
    """Every value stays where it is."""
    return list(walk.axes(walk.tensors(node)[0]))


def _named(names: str, rule: Rule) -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {}
    for name in names.split():
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            rules[getattr(packet, overload)] = rule
    return rules


RULES: Mapping[Any, Rule] = {
    operator.getitem: getitem,
    aten._assert_tensor_metadata.default: lambda walk, node: None,
    **_named(
        """dropout dropout_ feature_dropout alpha_dropout clone contiguous to alias detach detach_ lift_fresh_copy
        _to_copy type_as""",
        identity,
    ),
    **_named(
        """gelu_ hardswish hardswish_ mish_ relu6 relu6_ silu_ elu_ leaky_relu_ hardsigmoid_ selu selu_ celu celu_
        prelu where copy_ hardtanh hardtanh_ masked_fill masked_fill_
        add add_ sub sub_ mul mul_ div div_ pow clamp maximum minimum
        rsub addcmul lerp""",
        pointwise,
    ),
    **_named(
        """view reshape _unsafe_view unflatten flatten permute transpose t numpy_T mT unsqueeze squeeze movedim
        slice narrow select split split_with_sizes chunk unbind unfold im2col roll flip index index_select
        reshape_as pixel_shuffle pixel_unshuffle channel_shuffle repeat_interleave tensor_split swapaxes
        unsafe_split unsafe_chunk rot90 adjoint""",
        movement,
    ),
    **_named("cat concat concatenate", concatenate),
    **_named("stack", stack),
    **_named("expand expand_as", spread),
    **_named("repeat tile", repeat),
    **_named("col2im", fold),
    **_named("zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like", created),
    **_named("pad constant_pad_nd", pad),
    **_named("linear", linear),
    **_named("conv1d conv2d conv3d conv_transpose2d", convolution),
    **_named("matmul bmm mm baddbmm", product),
    **_named("scaled_dot_product_attention", attention),
    **_named("einsum", einsum),
    **dict.fromkeys(RECURRENT, recurrence),
    **_named("batch_norm instance_norm", batch_norm),
    **_named("layer_norm rms_norm", layer_norm),
    **_named("group_norm", group_norm),
    **_named("mean sum var std var_mean linalg_vector_norm norm logsumexp", reduction),
    **_named("amax amin max min argmax argmin", extreme),
    **dict.fromkeys((aten.max.other, aten.min.other), pointwise),
    **_named("softmax log_softmax _softmax cumsum cumprod", along),
    **_named(
        """max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d
        upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        max_pool2d_with_indices""",
        spatial,
    ),
}
CONTRACTIONS = RECURRENT | set(
    _named(
        "linear conv1d conv2d conv3d conv_transpose2d matmul bmm mm baddbmm scaled_dot_product_attention einsum sum "
        "linalg_vector_norm norm",
        unknown,
    )
)
STATISTICS = set(_named("layer_norm rms_norm group_norm batch_norm instance_norm mean var std var_mean", unknown))
