"""torch's own modules, and timm's that are torch's under another name: one module or function node each."""

from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import StructureError
from zoo.hub.foreign.torch_dag.writer import Writer, attribute, required_tensor, two_ints, weights
from zoo.hub.foreign.unpickle import Record

Attributes = Callable[[Record], dict[str, Any]]


def leaf(writer: Writer, name: str, record: Record, x: str) -> str:
    """Write a module of torch.

    Args:
        writer: takes the node.
        name: of the node.
        record: the module.
        x: what it reads.

    Returns:
        What it gives: the node, or `x` where it does nothing.

    Raises:
        StructureError: an attribute isn't what it must be.
    """
    op, attributes = LEAF_CONVERTERS[record.name]
    if op is None:
        return x
    if op == "conv2d_same":
        sizes = {key: two_ints(record.state.get(key), f"{name}.{key}") for key in ("kernel_size", "stride", "dilation")}
        x = writer.function("pad_same", f"{name}.pad", x, **sizes)
        return writer.module("conv2d", name, record, x, **attributes(record))
    if weights(record) or op == "dropout":
        return writer.module(op, name, record, x, **attributes(record))
    return writer.function(op, name, x, **attributes(record))


def _none(record: Record) -> dict[str, Any]:
    return {}


def _conv2d(record: Record) -> dict[str, Any]:
    weight, groups = required_tensor(record, "weight"), attribute(record, "groups", int)
    if record.state.get("padding_mode") != "zeros" or record.state.get("transposed"):
        raise StructureError(f"{record.name}: padding {record.state.get('padding_mode')!r:.40} isn't known")
    padding = record.state.get("padding")
    return {
        "in_channels": weight.shape[1] * groups,
        "out_channels": weight.shape[0],
        "kernel_size": list(weight.shape[2:]),
        "stride": two_ints(record.state.get("stride"), "stride"),
        "padding": padding if isinstance(padding, str) else two_ints(padding, "padding"),
        "dilation": two_ints(record.state.get("dilation"), "dilation"),
        "groups": groups,
        "bias": "bias" in weights(record),
    }


def _linear(record: Record) -> dict[str, Any]:
    outputs, inputs = required_tensor(record, "weight").shape
    return {"in_features": inputs, "out_features": outputs, "bias": "bias" in weights(record)}


def _batch_norm(record: Record) -> dict[str, Any]:
    held = weights(record)
    eps, momentum = attribute(record, "eps", float), attribute(record, "momentum", float)
    channels = len(required_tensor(record, "running_mean"))
    return {"num_features": channels, "eps": eps, "momentum": momentum, "affine": "weight" in held}


def _layer_norm(record: Record) -> dict[str, Any]:
    held = weights(record)
    shape = list(required_tensor(record, "weight").shape)
    return {"normalized_shape": shape, "eps": attribute(record, "eps", float), "bias": "bias" in held}


def _group_norm(record: Record) -> dict[str, Any]:
    held = weights(record)
    groups, eps = attribute(record, "num_groups", int), attribute(record, "eps", float)
    return {
        "num_groups": groups,
        "num_channels": len(required_tensor(record, "weight")),
        "eps": eps,
        "bias": "bias" in held,
    }


def _of(*names: str) -> Attributes:
    return lambda record: {name: record.state.get(name) for name in names}


LEAF_CONVERTERS: Mapping[str, tuple[str | None, Attributes]] = {
    "torch.nn.modules.activation.GELU": ("gelu", _of("approximate")),
    "torch.nn.modules.activation.Hardsigmoid": ("hardsigmoid", _none),
    "torch.nn.modules.activation.Hardswish": ("hardswish", _none),
    "torch.nn.modules.activation.ReLU": ("relu", _none),
    "torch.nn.modules.activation.ReLU6": ("relu6", _none),
    "torch.nn.modules.activation.SiLU": ("silu", _none),
    "torch.nn.modules.activation.Sigmoid": ("sigmoid", _none),
    "torch.nn.modules.activation.Softmax": ("softmax", _of("dim")),
    "torch.nn.modules.batchnorm.BatchNorm2d": ("batch_norm2d", _batch_norm),
    "torch.nn.modules.conv.Conv2d": ("conv2d", _conv2d),
    "torch.nn.modules.dropout.Dropout": ("dropout", _of("p")),
    "torch.nn.modules.flatten.Flatten": ("flatten", _of("start_dim", "end_dim")),
    "torch.nn.modules.linear.Identity": (None, _none),
    "torch.nn.modules.linear.Linear": ("linear", _linear),
    "torch.nn.modules.normalization.LayerNorm": ("layer_norm", _layer_norm),
    "torch.nn.modules.pooling.AdaptiveAvgPool2d": ("adaptive_avg_pool2d", _of("output_size")),
    "torch.nn.modules.pooling.AvgPool2d": (
        "avg_pool2d",
        _of("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    "torch.nn.modules.pooling.MaxPool2d": (
        "max_pool2d",
        _of("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    ),
    "torch.nn.modules.upsampling.Upsample": ("upsample", _of("size", "scale_factor", "mode", "align_corners")),
    "timm.layers.activations.GELU": ("gelu", _none),
    "timm.layers.conv2d_same.Conv2dSame": ("conv2d_same", _conv2d),
    "timm.layers.drop.DropPath": (None, _none),
    "timm.layers.linear.Linear": ("linear", _linear),
    "timm.layers.norm.LayerNorm": ("layer_norm", _layer_norm),
    "timm.layers.norm.LayerNorm2d": ("layer_norm2d", _layer_norm),
    "timm.models.metaformer.GroupNorm1NoBias": ("group_norm", _group_norm),
    "timm.models.metaformer.LayerNorm2dNoBias": ("layer_norm2d", _layer_norm),
    "torch_dag.structured_modules.Conv2DSameModule": ("conv2d_same", _conv2d),
}
"""Class → the op that it becomes, None where it does nothing in evaluation, and how its attributes are read."""
