"""The two published ways of counting kmapp, so that a published figure can be measured again.

    kmapp = 2·total / (S·H·W)

`total` sums what each call of a function of torch costs, in multiply-accumulates, during one forward pass of one image.
ptdeco counts by the table `OPERATIONS`, that of the fvcore library with its gaps (what isn't named costs nothing: fused
attention, most pooling, elementwise work); S = 1024. torch-dag counts the vertices of its graph by `VERTICES`, the same
and some elementwise work; S = 1000. A class in `WHOLE` is one vertex of that graph and has a table of its own.

Sources: https://github.com/facebookresearch/fvcore/blob/main/fvcore/nn/jit_handles.py,
https://github.com/TCLResearchEurope/ptdeco,
https://github.com/TCLResearchEurope/torch-dag/blob/main/torch_dag/commons/flops_computation.py.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.measurement.macs import forward_on_meta

Cost = Callable[..., float]
"""What one call costs, from its result and then its arguments, by torch's own names, as they were passed."""
Table = Mapping[Callable[..., Any], Cost]


def ptdeco(model: nn.Module, input: Sequence[int] | None = None) -> float:
    """Count as ptdeco did: what fvcore counts, per pixel.

    Args:
        model: any module that takes one batch of images, on any device, the meta device included; left as it was.
        input: channels, height, width; None takes what `model.pretrained_cfg` says.

    Returns:
        kmapp = 2·total/(1024·H·W).

    Raises:
        StructureError: the input size isn't known, or the model refuses it.

    >>> ptdeco(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (3, 10, 10)) == 2 * 3 * 8 / 1024
    True
    """
    total, pixels = _total(model, input, OPERATIONS, {})
    return 2 * total / (1024 * pixels)


def torch_dag(model: nn.Module, input: Sequence[int] | None = None) -> float:
    """Count as torch-dag did: the vertices of its flattened graph, per pixel.

    Args:
        model: as for `ptdeco`; in a `torch.fx.GraphModule` every node is a vertex.
        input: as for `ptdeco`.

    Returns:
        kmapp = 2·total/(1000·H·W).

    Raises:
        StructureError: as for `ptdeco`.

    >>> torch_dag(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (3, 10, 10)) == 2 * (3 * 8 + 8) / 1000
    True
    """
    total, pixels = _total(model, input, VERTICES, WHOLE)
    return 2 * total / (1000 * pixels)


COUNTINGS: Mapping[str, Callable[[nn.Module, Sequence[int] | None], float]] = {"ptdeco": ptdeco, "torch-dag": torch_dag}
"""What a catalog calls a counting → the function that does it."""


def _convolution(
    out: Tensor, input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *_: Any, **__: Any
) -> float:
    # A padding given by name makes another operation of it, which fvcore doesn't know.
    return 0 if isinstance(padding, str) else len(input) * weight.numel() * prod(out.shape[2:])


def _matmul(out: Tensor, input: Tensor, other: Tensor, *_: Any, **__: Any) -> float:
    return input.numel() * (other.shape[-1] if other.dim() > 1 else 1)


def _einsum(out: Tensor, *args: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        torch.einsum(*args)
    return float(counter.get_total_flops() / 2)


def _multi_head(out: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> float:
    # Both products are fused unless the weights are asked for; a mask is added within the first, which fvcore skips.
    products = (2 if options["attn_mask"] is None else 1) if options["need_weights"] else 0
    projections = 2 * query.numel() + key.numel() + value.numel()
    return projections * query.shape[-1] + products * query.numel() * len(key)


def _norm(out: Tensor, input: Tensor, shape: Any = None, weight: Any = None, *_: Any, **__: Any) -> float:
    return input.numel() * (4 if weight is None else 5)


def _batch_norm(out: Tensor, input: Tensor, *_: Any, weight: Any, training: bool, **__: Any) -> float:
    return _norm(out, input, None, weight) if training else input.numel() * (1 if weight is None else 2)


def _resize(out: Tensor, input: Tensor, *_: Any, mode: str, antialias: bool, **__: Any) -> float:
    return {"nearest": 1, "bilinear": 4}.get(mode, 0) * out.numel() if out.dim() == 4 and not antialias else 0


def _add(out: Tensor, input: Any, other: Any, **_: Any) -> float:
    # The source takes the first item of a vertex's input: the first of two tensors, the first image of a single one.
    single = not isinstance(input, Tensor) or not isinstance(other, Tensor)
    shape: Sequence[int] = (input if isinstance(input, Tensor) else other).shape
    return prod(shape[2 if single else 1 :]) / 2


def _divide(out: Tensor, input: Any, other: Any, **_: Any) -> float:
    # By a number it is a product; by a tensor it is a vertex that costs nothing.
    return 0 if isinstance(other, Tensor) else _add(out, input, other)


def _per_element(factor: float) -> Cost:
    return lambda out, input, *_, **__: factor * prod(input.shape[1:])


def _pool(out: Tensor, input: Tensor, kernel_size: Any, stride: Any = None, *_: Any, **__: Any) -> float:
    k0, k1 = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    # The source reads a stride of one number as the size of the kernel, and rounds the tiles in this order.
    s0, s1 = (k0, k1) if stride is None or isinstance(stride, int) else stride
    channels, height, width = input.shape[-3:]
    tiles: int = (height + s0 - 1) // s0 * (width + s1) // s1
    return k0 * k1 * tiles * channels / 2


def _unfused_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> float:
    weights = query @ key.mT
    return _matmul(weights, query, key.mT) + 2.5 * prod(weights.shape[1:]) + _matmul(out, weights, value)


def _table(*rows: tuple[Sequence[Callable[..., Any]], Cost]) -> dict[Callable[..., Any], Cost]:
    return {function: cost for functions, cost in rows for function in functions}


_MUL = (torch.mul, Tensor.mul, Tensor.mul_)
_SOFTMAX = ((F.softmax, torch.softmax, Tensor.softmax), _per_element(2.5))
OPERATIONS = _table(
    ((F.conv1d, F.conv2d, F.conv3d), _convolution),
    (
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        lambda out, input, weight, *_, **__: len(input) * weight.numel() * prod(input.shape[2:]),
    ),
    ((F.linear,), lambda out, input, weight, *_, **__: input.numel() * len(weight)),
    ((torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm), _matmul),
    ((torch.addmm, Tensor.addmm), lambda out, input, mat1, mat2, **_: _matmul(out, mat1, mat2)),
    ((torch.einsum,), _einsum),
    ((F.multi_head_attention_forward,), _multi_head),
    ((F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.instance_norm), _norm),
    ((F.batch_norm,), _batch_norm),
    ((F.adaptive_avg_pool2d,), lambda out, input, *_, **__: input.numel()),
    ((F.interpolate,), _resize),
)
VERTICES = OPERATIONS | _table(
    ((torch.add, Tensor.add, Tensor.add_, *_MUL), _add),
    ((torch.div, Tensor.div, Tensor.div_), _divide),
    ((F.relu, torch.relu, Tensor.relu, Tensor.relu_), _per_element(1)),
    _SOFTMAX,
    ((F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices, F.avg_pool2d), _pool),
)
_UNROLLED = OPERATIONS | _table(_SOFTMAX, ((F.scaled_dot_product_attention,), _unfused_attention))
WHOLE: Mapping[str, Table] = {
    "timm.layers.layer_scale.LayerScale": dict.fromkeys(_MUL, _per_element(1)),
    "timm.layers.layer_scale.LayerScale2d": {},
    "timm.layers.grn.GlobalResponseNorm": {},
    # Taken apart into one vertex per head and step, whether timm fuses them or not; the scale is part of a product.
    "timm.layers.attention.Attention": _UNROLLED,
    "timm.models.metaformer.Attention": _UNROLLED,
    "timm.models.beit.Attention": {F.linear: OPERATIONS[F.linear]},  # the source saw it fused
    "timm.models.efficientformer_v2.Attention2d": OPERATIONS,
    "timm.models.efficientformer_v2.Attention2dDownsample": OPERATIONS,
    "timm.models.mobilevit.MobileVitV2Block": OPERATIONS,
    "timm.models.swin_transformer_v2.WindowAttention": OPERATIONS,
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": OPERATIONS,
}
"""A class that is one vertex of torch-dag's graph → what counts inside it; subclasses too, and all that they hold."""


def _total(
    model: nn.Module, input: Sequence[int] | None, table: Table, whole: Mapping[str, Table]
) -> tuple[float, int]:
    counter = _Counter(table)
    hooks = []
    for module in model.modules():
        names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
        own = next((whole[name] for name in names if name in whole), None)
        if own is not None:
            hooks.append(module.register_forward_pre_hook(counter.entering(own)))
            hooks.append(module.register_forward_hook(counter.leave))
    try:
        with counter:
            _, height, width = forward_on_meta(model, input)
    finally:
        for hook in hooks:
            hook.remove()
    return counter.total, height * width


class _Counter(TorchFunctionMode):
    """Sums what the calls within it cost, by the first table or, within a whole module, by that module's."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.total = 0.0
        self.tables = [table]

    def entering(self, own: Table) -> Callable[..., None]:
        return lambda *_: self.tables.append(own if len(self.tables) == 1 else self.tables[-1])

    def leave(self, *_: Any) -> None:
        self.tables.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        cost = self.tables[-1].get(func)
        if cost is not None:
            self.total += cost(out, *args, **(kwargs or {}))
        return out
