"""Padding: channels of nothing beside those that a model has, as onnxruntime's kernels compute 16 at a time.

A depthwise convolution of 20 channels takes three times as long as one of 32, and pruned networks have such widths. An
output that is added has weights of 0, whoever reads it has more of them, and the bytes of all others stay what they
are. Where anything but convolutions and tables reads a value, it isn't padded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.structure.graph.graph import Graph, Node

TOGETHER = 16  # channels
PIXELS = 4  # of images, whose bytes then lie side by side in a word


def widths_of(graph: Graph, module: Callable[[Node], Any], words: frozenset[str]) -> dict[str, int]:
    """How many channels each value is given that has more here than in its model.

    Args:
        graph: of integers.
        module: node → what it runs.
        words: names of nodes that give more than bytes.
    """
    readers: dict[str, list[Node]] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        for name in node.inputs:
            readers.get(name, []).append(node)

    def keeps(node: Node) -> bool:
        """Whether each channel that a node gives is of the one that it reads."""
        if node.op != "qconv2d":
            return node.op == "qtable"
        op = module(node)
        return bool(1 < op.groups == op.in_channels == op.out_channels)

    def mixes(node: Node) -> bool:
        return node.op == "qconv2d" and module(node).groups == 1

    may = set[str]()
    for name, reading in reversed(readers.items()):
        whole = name in graph.outputs or name in words or not reading
        if not whole and all(mixes(node) or (keeps(node) and node.name in may) for node in reading):
            may.add(name)

    widths: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "qinput" and node.name in may:
            widths[node.name] = _raised(module(node).table.shape[0], PIXELS)
        elif keeps(node) and node.inputs[0] in widths:
            widths[node.name] = widths[node.inputs[0]]
        elif mixes(node) and node.name in may:
            widths[node.name] = _raised(module(node).out_channels, TOGETHER)
    return widths


def padded(op: Any, read: int | None, given: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [O, I, kH, kW], bias and exponents [O] of a convolution that reads and gives so many channels.

    Args:
        op: the convolution.
        read: channels of what it reads; None leaves them.
        given: channels of what it gives; None leaves them.
    """
    outputs, inputs, *window = op.weight.shape
    more = (given or outputs, inputs if op.groups > 1 else read or inputs, *window)
    weight = torch.zeros(more, dtype=op.weight.dtype)
    weight[:outputs, :inputs] = op.weight.cpu()
    bias, exponent = (torch.zeros(more[0], dtype=each.dtype) for each in (op.bias, op.exponent))
    bias[:outputs], exponent[:outputs] = op.bias.cpu(), op.exponent.cpu()
    return weight, bias, exponent


def _raised(channels: int, multiple: int) -> int:
    return -(-channels // multiple) * multiple
