"""ATen: the closed list of exported operations that a graph may hold besides those of `ops`.

All are pure functions of tensors: nothing random, nothing in place, nothing that makes a tensor from sizes alone. Their
attributes are the names of ATen's own schema, so that a node reads as a call: `aten.slice.Tensor`, `dim=1, start=1`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.structure.graph.ops import Op

_NAMES = """
abs add.Tensor add.Scalar addcmul adaptive_avg_pool1d adaptive_max_pool2d amax amin argmax argsort atan2 avg_pool1d
bitwise_and.Tensor bitwise_not bitwise_or.Tensor bmm baddbmm addmm ceil celu clamp.Tensor clamp_max clamp_min col2im
constant_pad_nd conv1d conv2d conv2d.padding conv3d conv_transpose2d.input cos cosine_similarity cumsum detach
div.Scalar div.Tensor div.Tensor_mode einsum elu embedding eq.Scalar eq.Tensor erf expand_as fill.Scalar fill.Tensor
flip floor floor_divide fmod.Scalar gather ge.Scalar ge.Tensor gelu glu group_norm gt.Scalar gt.Tensor hardsigmoid
hardswish hardtanh im2col index.Tensor index_select layer_norm le.Scalar le.Tensor leaky_relu linalg_vector_norm
linear log log1p log2 log_softmax.int logical_and logical_not logical_or logsumexp lt.Scalar lt.Tensor
masked_fill.Scalar matmul max max.dim max.other maximum mean meshgrid.indexing min min.dim min.other minimum mish
movedim.intlist mT mul.Scalar mul.Tensor narrow ne.Scalar ne.Tensor neg one_hot ones_like outer pad pixel_shuffle
pixel_unshuffle pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu prod.dim_int reciprocal reflection_pad2d relu6
remainder.Scalar repeat repeat_interleave.self_int replication_pad2d reshape_as rms_norm round rsqrt rsub.Scalar
scaled_dot_product_attention select.int select_scatter selu sigmoid sign sin slice.Tensor slice_scatter softmax.int
softplus split.Tensor split_with_sizes sqrt square squeeze squeeze.dim squeeze.dims stack std.correction std.dim t
sub.Scalar sub.Tensor sum sum.dim_IntList swapaxes take_along_dim tan tanh tile topk tril triu unflatten.int unfold
upsample_bicubic2d.vec _upsample_bicubic2d_aa.vec upsample_bilinear2d.vec _upsample_bilinear2d_aa.vec
upsample_linear1d.vec upsample_nearest2d.vec var.correction var.dim view_as where.ScalarOther where.ScalarSelf
where.self zero zeros_like
"""
# What says where and how a tensor lies; a graph leaves that to its inputs.
PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "copy")


def _recurrent(run: Callable[..., Any]) -> Callable[..., Any]:
    """Run a recurrent layer without dropout; `train`, or cuDNN would keep nothing for the backward pass."""

    def layer(
        input: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        states = list(hx) if isinstance(hx, list | tuple) else hx
        return run(input, states, list(params), has_biases, num_layers, 0.0, True, bidirectional, batch_first)

    layer.__name__ = layer.__qualname__ = run.__name__
    layer.__doc__ = _recurrent.__doc__
    return layer


lstm, gru = _recurrent(torch.lstm), _recurrent(torch.gru)
rnn_tanh, rnn_relu = _recurrent(torch.rnn_tanh), _recurrent(torch.rnn_relu)
RECURRENT = {f"aten.{layer.__name__}.input": layer for layer in (lstm, gru, rnn_tanh, rnn_relu)}


def batch_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise by the statistics of the tensor itself, as weight standardisation does, and keep none."""
    return torch.batch_norm(input, weight, bias, None, None, True, 0.0, eps, False)


def instance_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise each channel of each image by its own statistics, and keep none."""
    return torch.instance_norm(input, weight, bias, None, None, True, 0.0, eps, False)


def _table(names: str) -> Iterator[tuple[str, Op]]:
    for name in names.split():
        packet, _, overload = name.partition(".")
        call = getattr(getattr(torch.ops.aten, packet), overload or "default")
        arguments = [argument for argument in call._schema.arguments if argument.name not in (*PLACEMENT, "dropout_p")]
        tensors = tuple(argument.name for argument in arguments if "Tensor" in str(argument.type))
        yield f"aten.{name}", Op(call, tuple(argument.name for argument in arguments), tensors)


ATEN: Mapping[str, Op] = {
    **dict(_table(_NAMES)),
    "aten.batch_norm": Op(batch_norm, ("input", "weight", "bias", "eps"), ("input", "weight", "bias")),
    "aten.instance_norm": Op(instance_norm, ("input", "weight", "bias", "eps"), ("input", "weight", "bias")),
    **{
        name: Op(
            layer,
            ("input", "hx", "params", "has_biases", "num_layers", "bidirectional", "batch_first"),
            ("input", "hx", "params"),
        )
        for name, layer in RECURRENT.items()
    },
}

SAME: Mapping[str, tuple[str, ...]] = {
    "aten.add.Tensor": ("add", "shift"),
    "aten.mul.Tensor": ("mul", "scale"),
    "aten.linalg_vector_norm": ("norm",),
    "aten.scaled_dot_product_attention": ("attention",),
    "aten.softmax.int": ("softmax",),
    "aten.transpose.int": ("transpose",),
    "aten.flatten.using_ints": ("flatten",),
    "aten.unbind.int": ("unbind",),
    "aten.mean.dim": ("mean",),
    "aten.sub.Tensor": ("sub",),
    "aten.div.Tensor": ("div",),
    "aten.pow.Tensor_Scalar": ("pow",),
    "aten.sym_size.int": ("size",),
    **{
        f"aten.{name}": (name,)
        for name in (
            *("relu", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "exp", "clamp", "matmul", "permute"),
            *("unsqueeze", "chunk", "roll", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
        )
    },
}
"""Which overloads are ops that graphs had before: the first whose attributes suffice is taken."""
