"""Twins: each node of a folded graph as ops of whole numbers.

To give an op a twin, write a function that writes its nodes and a row of `_WRITE`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from zoo.compression.integer.folding import Affine, affine
from zoo.compression.integer.layers import quantized
from zoo.compression.integer.planning import BLENDS, CLAMPS, PASSING, TABLES
from zoo.compression.integer.quotients import QUOTIENTS, mean_over_windows, mixed, of_words
from zoo.compression.integer.steps import Step, best, exponent, spanning
from zoo.compression.integer.tokens import TOKENS
from zoo.compression.integer.writing import EXPECTED, Layer, Scheme, Writing, stored, table_of
from zoo.errors import StructureError
from zoo.structure.graph.certificate import JOINS, MOVES, SIZES
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.graph.integer import BYTE, MAX_SPREAD
from zoo.structure.graph.ops import same_padding


def twin(writing: Writing, mean: Sequence[float], std: Sequence[float]) -> tuple[Graph, dict[str, Tensor]]:
    """Write a graph in whole numbers.

    Args:
        writing: of the graph, with nothing written yet.
        mean: of each channel of its images.
        std: the same of the standard deviation.

    Returns:
        The new graph, and its tensors.

    Raises:
        StructureError: a node has no twin; it is named.
    """
    nodes = {node.name: node for node in writing.graph.nodes}
    table = {**_WRITE, **writing.scheme.write}
    undone = {clamp.name: nodes[name] for name, clamp in writing.plan.clamped.items()}
    _input(writing, mean, std)
    for node in writing.graph.nodes:
        if node.name not in writing.plan.clamped:  # else its clamp writes it
            first = undone.get(node.name, node)
            if (write := table.get(first.op)) is None:
                raise StructureError(f"integer: node {first.name!r} is {first.op}, which has no twin: {EXPECTED}")
            write(writing, first, node)
    outputs = tuple(_output(writing, name) for name in writing.graph.outputs)
    return structs.replace(writing.graph, nodes=tuple(writing.nodes), outputs=outputs), writing.tensors


def _input(writing: Writing, mean: Sequence[float], std: Sequence[float]) -> None:
    (name,) = writing.graph.inputs
    if name not in writing.plan.steps:  # token ids, which are whole numbers already
        return
    means, stds = torch.tensor([mean, std], dtype=torch.float64)[..., None]
    values = (torch.arange(256, dtype=torch.float64) / BYTE - means) / stds
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    writing.steps[name] = writing.scheme.pixels(low, high, free=name in writing.plan.free)
    table = stored(values, writing.steps[name])
    attributes = {"mean": list(mean), "std": list(std)}
    writing.names[name] = writing.emit(writing.fresh("pixels"), "qinput", [name], attributes, table=table)


def _output(writing: Writing, name: str) -> str:
    if name not in writing.steps:
        raise StructureError(f"integer: the output {name!r} isn't made of whole numbers: {EXPECTED}")
    step = writing.steps[name]
    return writing.emit(writing.fresh("values"), "qoutput", [writing.of(name)], {"step": step.step, "zero": step.zero})


def _layer(writing: Writing, first: Node, last: Node) -> None:
    own = first.module or first.name
    weight = writing.held[f"{own}.weight"]
    bias = writing.held.get(f"{own}.bias", weight.new_zeros(len(weight)))
    keys = ("in_channels", "out_channels", "groups", "in_features", "out_features")
    sizes = {key: first.attributes[key] for key in keys if key in first.attributes}
    if first.op == "conv1d":
        _row(writing, first, last, weight, bias, sizes)
        return
    if first.op == "conv2d":
        sizes |= _window(first, list(weight.shape[2:]))
    op = {"conv2d": "qconv2d", "linear": "qlinear"}[first.op]
    writing.scheme.weigh(writing, first, last, Layer(op, weight, bias, sizes, *writing.bytes_of(first)))


def _row(writing: Writing, first: Node, last: Node, weight: Tensor, bias: Tensor, sizes: Mapping[str, Any]) -> None:
    """A convolution of rows, as one of maps of one row."""
    told = {key: [0, *_pair(value)[1:]] for key, value in first.attributes.items() if key == "padding"}
    told |= {key: [1, *_pair(first.attributes.get(key, 1))[1:]] for key in ("stride", "dilation")}
    name, x = writing.bytes_of(first)
    map_ = writing.emit(writing.fresh(f"{first.name}_map".replace(".", "_")), "unsqueeze", [name], {"dim": 2})
    form = {**sizes, "kernel_size": [1, *weight.shape[2:]], **told}
    writing.scheme.weigh(writing, first, last, Layer("qconv2d", weight.unsqueeze(2), bias, form, map_, x))
    row = writing.emit(
        writing.fresh(f"{first.name}_row".replace(".", "_")), "aten.squeeze.dim", [first.name], {"dim": 2}
    )
    writing.names[last.name] = row


def _norm(writing: Writing, first: Node, last: Node) -> None:
    """A batch norm with no layer before it: a convolution of one pixel of each channel by itself."""
    writing.scheme.weigh(writing, first, last, _each(affine(first, writing.held), *writing.bytes_of(first)))


def _norm1d(writing: Writing, first: Node, last: Node) -> None:
    """The same of numbers, or rows, of channels."""
    norm, (name, x) = affine(first, writing.held), writing.bytes_of(first)
    count, rank = len(norm.scale), len(writing.shapes[first.inputs[0]])
    map_, flat = (writing.fresh(f"{first.name}_{end}".replace(".", "_")) for end in ("map", "flat"))
    writing.emit(map_, "reshape", [name], {"shape": ["batch", count, -1, 1]})
    writing.scheme.weigh(writing, first, last, _each(norm, map_, x))
    told: list[str | int] = ["batch", count] if rank == 2 else ["batch", count, -1]
    writing.names[last.name] = writing.emit(flat, "reshape", [first.name], {"shape": told})


def _each(norm: Affine, source: str, step: Step) -> Layer:
    """Scale and shift of each channel, as a layer."""
    count = len(norm.scale)
    sizes = {"in_channels": count, "out_channels": count, "kernel_size": [1, 1], "groups": count}
    return Layer("qconv2d", norm.scale.view(-1, 1, 1, 1), norm.shift, sizes, source, step)


def _shifting(writing: Writing, first: Node, last: Node, layer: Layer) -> None:
    x, y, inputs = layer.step, writing.plan.steps[last.name], writing.inputs.get(first.name)
    tensors = quantized(first.name, layer.weight, layer.bias, x.step / y.step, y.step, inputs, writing.how)
    writing.give(first, last, layer.op, [layer.source], y, **layer.sizes, zero=x.zero, tensors=tensors)


EXACT = Scheme(best, spanning, _shifting)
"""Requantized by shifts."""


def _sum(writing: Writing, first: Node, last: Node) -> None:
    _two(first)
    y = writing.plan.steps[last.name]
    names, steps = map(list, zip(*(_shifted(writing, first, i, word=True) for i in (0, 1)), strict=True))
    if first.op == "sub":
        if steps[1].word:
            names[1], steps[1] = writing.bytes_of(first, 1)
        names[1], steps[1] = writing.negative(first, names[1], steps[1])
    fine = max(step.step for step in steps) * 2.0**-MAX_SPREAD  # what is finer is lost in the sum
    for i, step in enumerate(steps):
        if step.step < fine and first.op != "sub":
            steps[i] = replace(step, step=fine)
            names[i] = writing.at(first.inputs[i], steps[i])
    powers = [-_power(step.step / y.step) for step in steps]
    if abs(powers[0] - powers[1]) > MAX_SPREAD:
        raise StructureError(f"integer: node {first.name!r} adds what differs by more than 2^{MAX_SPREAD}")
    zeros = [step.zero for step in steps]
    writing.give(first, last, "qadd", names, y, zeros=zeros, exponents=powers)


def _product(writing: Writing, first: Node, last: Node) -> None:
    _two(first)
    y = writing.plan.steps[last.name]
    names, steps = zip(*(_shifted(writing, first, i) for i in (0, 1)), strict=True)
    power = -_power(steps[0].step * steps[1].step / y.step)
    writing.give(first, last, "qmul", names, y, zeros=[step.zero for step in steps], exponent=power)


def _power(ratio: float) -> int:
    power = exponent(ratio)
    assert power is not None  # or the plan would be wrong
    return power


def _two(node: Node) -> None:
    if len(node.inputs) != 2 or node.attributes:
        raise StructureError(f"integer: node {node.name!r} ({node.op}) has no twin but of two tensors: {EXPECTED}")


def _shifted(writing: Writing, node: Node, number: int, *, word: bool = False) -> tuple[str, Step]:
    """An input whose step is a power of two: the planned one, where it has none such."""
    step, name = writing.read(node, number), node.inputs[number]
    if step.word and not word and name in writing.plan.narrow:
        return writing.bytes_of(node, number)
    if exponent(step.step) is None:
        step = writing.plan.steps[name]
    return writing.at(name, step), step


def _concat(writing: Writing, first: Node, last: Node) -> None:
    y = writing.plan.steps[first.name]
    for number in range(len(first.inputs)):
        writing.read(first, number)
    writing.emit(first.name, first.op, [writing.at(name, y) for name in first.inputs], first.attributes)
    writing.steps[first.name] = y


def _pool(writing: Writing, first: Node, last: Node) -> None:
    x, shape = writing.read(first), writing.shapes[first.inputs[0]]
    dims = sorted(dim % len(shape) for dim in first.attributes.get("dim") or ()) if first.op == "mean" else [2, 3]
    if first.op == "aten.sum.dim_IntList" or dims != [2, 3] or len(shape) != 4:
        TOKENS["sum"](writing, first, last)
        return
    if first.op == "avg_pool2d" and (form := _hanging(first, shape)) is not None:
        mean_over_windows(writing, first, last, form)
        return
    window, flat = _pooled(first, shape)
    size = window.get("kernel_size", shape[2:])
    count, planned = math.prod(size), writing.plan.steps[last.name]
    power = math.ceil(math.log2(planned.step * count / x.step) - 1e-6)
    step = x.step * 2.0**power / count
    y = Step(step, round(planned.zero * planned.step / step), planned.word)
    name = writing.fresh(f"{first.name}_sums".replace(".", "_")) if flat else first.name
    told = {**window, "zero": x.zero, "exponent": power, **writing.range(last, y)}
    writing.emit(name, "qavg_pool2d", [writing.of(first.inputs[0])], told)
    if flat:
        writing.emit(first.name, "flatten", [name], {"start_dim": 1})
    writing.steps[first.name] = y


def _pooled(node: Node, shape: Sequence[int]) -> tuple[dict[str, Any], bool]:
    """The windows of a pool, none where it is of whole maps, and whether the maps go.

    Raises:
        StructureError: windows that aren't all of one size.
    """
    told, (height, width) = node.attributes, tuple(shape[2:])
    if node.op == "mean":
        return {}, not told.get("keepdim", False)
    if node.op == "adaptive_avg_pool2d":
        out = [out or size for out, size in zip(_pair(told["output_size"]), (height, width), strict=True)]
        if out == [1, 1]:
            return {}, False
        if height % out[0] or width % out[1]:
            raise StructureError(f"integer: node {node.name!r} averages windows of several sizes, which have no twin")
        window = [height // out[0], width // out[1]]
        return {"kernel_size": window, "stride": window}, False
    if told.get("divisor_override"):
        raise StructureError(f"integer: node {node.name!r} divides by another number than its pixels: {EXPECTED}")
    kernel = _pair(told["kernel_size"])
    pairs = {"stride": _pair(told.get("stride") or kernel), "padding": _pair(told.get("padding", 0))}
    return {"kernel_size": kernel, **pairs}, False


def _hanging(node: Node, shape: Sequence[int]) -> dict[str, Any] | None:
    """The windows of a pool of which some hang over what counts; None where none does."""
    told, kernel = node.attributes, _pair(node.attributes["kernel_size"])
    stride, padding = _pair(told.get("stride") or kernel), _pair(told.get("padding", 0))
    sizes = zip(shape[2:], kernel, stride, padding, strict=True)
    cut = bool(told.get("ceil_mode")) and any((size + 2 * p - k) % s for size, k, s, p in sizes)
    if any(padding) and told.get("count_include_pad", True) and cut:
        raise StructureError(f"integer: node {node.name!r} counts pixels beside maps, and of some windows not all")
    if told.get("divisor_override") or not (cut or (any(padding) and not told.get("count_include_pad", True))):
        return None
    return {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": cut}


def _function(writing: Writing, first: Node, last: Node) -> None:
    """A function of one value: its table."""
    if len(first.inputs) != 1:
        raise StructureError(f"integer: node {first.name!r} ({first.op}) has no twin but of one tensor: {EXPECTED}")
    if first.op == "scale" and writing.read(first).word and first.attributes["other"] > 0:
        step = writing.read(first)
        writing.names[first.name] = writing.of(first.inputs[0])
        writing.steps[first.name] = replace(step, step=step.step * first.attributes["other"])
        return
    if first.op in (*PASSING, "scale") and of_words(writing, first, writing.plan.steps[first.name]):
        return
    alone = graph_module(Graph(("x",), (Node("y", first.op, ("x",), first.attributes),), ("y",)))
    y = writing.plan.steps[first.name]
    source, x = writing.bytes_of(first)
    table = table_of(x, y, alone)
    name = writing.emit(writing.fresh(first.name.replace(".", "_") + "_table"), "qtable", [source], {}, table=table)
    writing.names[first.name], writing.steps[first.name] = name, y


def _move(writing: Writing, first: Node, last: Node) -> None:
    """What moves values moves bytes; what is put around them stands for 0."""
    step, attributes, op = writing.read(first), dict(first.attributes), first.op
    if op == "upsample" and attributes.get("mode", "nearest") == "bilinear":
        mixed(writing, first, last)
        return
    if op == "upsample" and attributes.get("mode", "nearest") != "nearest":
        raise StructureError(f"integer: node {first.name!r} upsamples by {attributes['mode']}, which has no twin")
    if op == "pad_same" and step.zero:
        op, attributes = (
            "aten.constant_pad_nd",
            {"pad": same_padding(writing.shapes[first.inputs[0]][-2:], **attributes)},
        )
    if op in ("aten.constant_pad_nd", "aten.pad"):
        if attributes.get("mode", "constant") != "constant":
            raise StructureError(f"integer: node {first.name!r} pads by {attributes['mode']}, which has no twin")
        value = attributes.get("value") or 0.0
        attributes |= {"value": min(max(round(value / step.step) + step.zero, 0), BYTE)}
    writing.emit(first.name, op, list(map(writing.of, first.inputs)), attributes)
    writing.steps[first.name] = step


def _constant(writing: Writing, first: Node, last: Node) -> None:
    value, step = writing.held[first.name], writing.plan.steps.get(first.name)
    if step is not None:
        value = stored(value, step)
        writing.steps[first.name] = step
    kind = str(value.dtype).removeprefix("torch.")  # others are indices
    writing.emit(first.name, "buffer", [], {"shape": list(value.shape), "dtype": kind})
    writing.tensors[first.name] = value


def _size(writing: Writing, first: Node, last: Node) -> None:
    writing.nodes.append(structs.replace(first, inputs=tuple(map(writing.of, first.inputs))))


def _pair(value: Any) -> list[int]:
    pair = [value, value] if isinstance(value, int) else [*value]
    return pair * 2 if len(pair) == 1 else pair


def _window(node: Node, kernel: Sequence[int]) -> dict[str, Any]:
    """A convolution's window as pairs.

    Raises:
        StructureError: what is put around the images isn't the same on both sides.
    """
    told = node.attributes
    stride, dilation, padding = (
        told.get(key, default) for key, default in (("stride", 1), ("dilation", 1), ("padding", 0))
    )
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(_pair(dilation), kernel, strict=True)]
        padding = [each // 2 if padding == "same" else 0 for each in reach]
        if told["padding"] == "same" and any(each % 2 for each in reach):
            raise StructureError(f"integer: node {node.name!r} pads its two sides unlike each other, which has no twin")
    pairs = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}
    return {"kernel_size": list(kernel), **pairs}


_Write = Callable[[Writing, Node, Node], None]
_WRITE: Mapping[str, _Write] = {
    **dict.fromkeys(("conv2d", "conv1d", "linear"), _layer),
    "batch_norm2d": _norm,
    "batch_norm1d": _norm1d,
    **dict.fromkeys(("mean", "avg_pool2d", "adaptive_avg_pool2d"), _pool),
    **dict.fromkeys(TABLES, _function),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(SIZES, _size),
    **dict.fromkeys(("parameter", "buffer"), _constant),
    **dict.fromkeys(("add", "sub"), _sum),
    "mul": _product,
    **dict.fromkeys(JOINS, _concat),
    **TOKENS,
    **QUOTIENTS,
    **dict.fromkeys(BLENDS, mixed),
}
assert set(CLAMPS) <= _WRITE.keys()
