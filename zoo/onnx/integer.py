"""Integer: a graph of whole numbers as an ONNX program that gives the same bytes.

Images are bytes. A layer is a QLinearConv or a MatMulInteger of the same weights, whose scales are powers of two:

    q = saturate(round(single(accumulator)·2^-exponent) + zero)

That is exact: an accumulator of 2^24 and more, which single precision would round, has an exponent of at most 15 (so
says the model's certificate), and is saturated either way. What is added is rounded by QuantizeLinear, whose halves go
to even by ONNX's own words, and never by QLinearAdd, which some processors round otherwise. What gives more than bytes
is requantized in double precision.

To give an op a form, write a function that writes it and a row of `_WRITE`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import require
from zoo.measurement.macs import input_size, vocab_size
from zoo.onnx.export import BATCH, IMAGES, OPSET
from zoo.onnx.lookup import looked_up
from zoo.onnx.moves import MOVES
from zoo.onnx.padding import padded, widths_of
from zoo.onnx.quotients import QUOTIENTS
from zoo.onnx.storing import ONE, is_byte, stored
from zoo.onnx.tokens import TOKENS
from zoo.onnx.writing import Writing, formless, shapes_of
from zoo.structure.graph.certificate import certificate
from zoo.structure.graph.graph import Graph, Node
from zoo.structure.graph.integer import BYTE, SINGLE, QLayer, Quantized, powers

if TYPE_CHECKING:
    from onnx import ModelProto

IR = 10  # which onnxruntime reads from 1.18 on


def integer_program(model: nn.Module, graph: Graph) -> "ModelProto":
    """Write an integer model.

    Args:
        model: with its weights.
        graph: that it runs.

    Returns:
        The program: `images` [batch, C, H, W] of bytes, or of token ids → `logits`, or the outputs by their keys, or
        `output_0`, ...

    Raises:
        MissingExtra: onnx isn't installed.
        StructureError: a node has no form in ONNX that gives its bytes; it is named. Or a layer could overflow.
    """
    require("onnx", "fast")
    from onnx import TensorProto, helper, numpy_helper

    certificate(model)
    size = input_size(model)
    shapes, words, outputs = shapes_of(graph, size)
    writing = Writing(model, shapes, words, names={graph.inputs[0]: IMAGES})
    writing.widths = widths_of(graph, writing.module, words)
    for node in graph.nodes:
        if (write := _WRITE.get(node.op)) is None or (node.op in _OF_BYTES and node.inputs[0] in words):
            raise formless(node)
        writing.names[node.name] = write(writing, node, *(writing.names[each] for each in node.inputs))
    ends = []
    for name, inside in zip(outputs, graph.outputs, strict=True):
        writing.nodes.append(helper.make_node("Identity", [writing.names[inside]], [name], f"Identity/{name}"))
        dims = [BATCH if each == -1 else each for each in shapes[inside]]
        ends.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    dtype = TensorProto.UINT8 if vocab_size(model) is None else TensorProto.INT64
    images = helper.make_tensor_value_info(IMAGES, dtype, [BATCH, *size])
    held = [numpy_helper.from_array(value, name) for name, value in writing.constants.items()]
    program = helper.make_graph(writing.nodes, "integer", [images], ends, held)
    return helper.make_model(program, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def _requantized(writing: Writing, accumulator: str, scale: Any, op: Quantized) -> str:
    """Accumulators in 32 bits → what an op gives."""
    wide = isinstance(op, QLayer) and int(op.bound().max()) >= SINGLE
    dtype = np.float64 if wide and not is_byte(op) else np.float32
    scaled = writing.emit("Mul", writing.cast(accumulator, dtype), scale.astype(dtype))
    return stored(writing, scaled, op, dtype)


def _scales(exponent: Tensor) -> Any:
    return powers(exponent.cpu(), torch.float32).numpy()


def _input(writing: Writing, node: Node, images: str) -> str:
    table = writing.module(node).table
    pixels = looked_up(writing, images, table, writing.shape(node))
    more = writing.widths.get(node.name, len(table)) - len(table)
    return writing.emit("Pad", pixels, np.array([0] * 5 + [more, 0, 0]), np.uint8(0)) if more else pixels


def _table(writing: Writing, node: Node, x: str) -> str:
    batch, *sizes = writing.shape(node)
    if node.name in writing.widths:
        sizes[0] = writing.widths[node.name]
    return looked_up(writing, x, writing.module(node).table[None], (batch, *sizes))


def _embedding(writing: Writing, node: Node, ids: str) -> str:
    return writing.emit("Gather", writing.module(node).weight.cpu().numpy(), ids)


def _convolution(writing: Writing, node: Node, x: str) -> str:
    op, given = writing.module(node), writing.widths.get(node.name)
    layer = padded(op, writing.widths.get(node.inputs[0]), given)
    group = given or op.groups if op.groups > 1 else 1
    window = {"strides": op.stride, "pads": [*op.padding] * 2, "dilations": op.dilation, "group": group}
    return _convolved(writing, x, op, *layer, window)


def _pool(writing: Writing, node: Node, x: str) -> str:
    """A sum over windows is a convolution by ones of each channel by itself."""
    op, (_, channels, *size) = writing.module(node), writing.shape(node)
    sides = op.kernel_size or size
    if math.prod(sides) * BYTE >= SINGLE:  # which onnxruntime would round before it requantizes
        raise formless(node)
    weight = torch.ones(channels, 1, *sides, dtype=torch.int8)
    exponent = torch.full((channels,), op.exponent)
    window = {"strides": op.stride, "pads": [*op.padding] * 2} if op.kernel_size else {}
    bias = torch.zeros(channels, dtype=torch.int32)
    return _convolved(writing, x, op, weight, bias, exponent, {**window, "group": channels})


def _convolved(
    writing: Writing, x: str, op: Any, weight: Tensor, bias: Tensor, exponent: Tensor, window: Mapping[str, Any]
) -> str:
    zero, scales = np.uint8(op.zero), _scales(exponent)
    weights, biases = weight.cpu().numpy(), bias.cpu().numpy()
    if is_byte(op):
        told = (ONE, zero, weights, scales, np.zeros(len(weights), np.int8), ONE, np.uint8(op.out_zero), biases)
        return writing.clipped(writing.emit("QLinearConv", x, *told, **window), op.low, op.high)
    sums = writing.emit("ConvInteger", x, weights, zero, **window)
    return _requantized(writing, writing.emit("Add", sums, biases[:, None, None]), scales[:, None, None], op)


def _linear(writing: Writing, node: Node, x: str) -> str:
    op = writing.module(node)
    sums = writing.emit("MatMulInteger", x, op.weight.cpu().numpy().T.copy(), np.uint8(op.zero))
    return _requantized(writing, writing.emit("Add", sums, op.bias.cpu().numpy()), _scales(op.exponent), op)


def _valued(writing: Writing, x: str, zero: int, exponent: int, dtype: Any) -> str:
    """(x - zero)·2^-exponent."""
    scale = dtype(2.0**-exponent)
    if dtype == np.float32:
        return writing.emit("DequantizeLinear", x, scale, np.uint8(zero))
    return writing.emit("Mul", writing.emit("Sub", writing.cast(x, dtype), dtype(zero)), scale)


def _sum(writing: Writing, node: Node, *sides: str) -> str:
    """By Sum, as onnxruntime would make a QLinearAdd of what Add is between Dequantize and Quantize."""
    a, b, op, dtype = _both(writing, node, sides, writing.module(node).exponents)
    return stored(writing, writing.emit("Sum", a, b), op, dtype)


def _product(writing: Writing, node: Node, *sides: str) -> str:
    """Rounded before it is quantized, as onnxruntime would make a QLinearMul of it."""
    a, b, op, dtype = _both(writing, node, sides, (writing.module(node).exponent, 0))
    return stored(writing, writing.emit("Round", writing.emit("Mul", a, b)), op, dtype)


def _both(writing: Writing, node: Node, sides: Sequence[str], exponents: Sequence[int]) -> tuple[str, str, Any, Any]:
    """What two sides stand for, bytes in single precision and words in double, the op and that precision."""
    op, dtype = writing.module(node), np.float32 if writing.words.isdisjoint(node.inputs) else np.float64
    a, b = (_valued(writing, *each, dtype) for each in zip(sides, op.zeros, exponents, strict=True))
    return a, b, op, dtype


def _output(writing: Writing, node: Node, x: str) -> str:
    op = writing.module(node)
    less = writing.emit("Sub", writing.cast(x, np.float32), np.float32(op.zero))
    return writing.emit("Mul", less, np.float32(op.step))


def _constant(writing: Writing, node: Node) -> str:
    value = writing.model.get_buffer(node.name).cpu().numpy()
    return writing.emit("Identity", value.astype(np.int32) if value.dtype == np.int16 else value)


_WRITE: Mapping[str, Callable[..., Any]] = {
    "qinput": _input,
    "qconv2d": _convolution,
    "qlinear": _linear,
    "qadd": _sum,
    "qmul": _product,
    "qavg_pool2d": _pool,
    "qtable": _table,
    "qembedding": _embedding,
    "qoutput": _output,
    "buffer": _constant,
    **TOKENS,
    **QUOTIENTS,
    **MOVES,
}
_OF_BYTES = ("qconv2d", "qlinear", "qavg_pool2d", "qtable")
