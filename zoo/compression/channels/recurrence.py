"""Recurrence: a hidden unit goes from all gates, from what the next step reads of it, and from what is put out.

    LSTM    i, f, g, o = W x + U h + b;   c' = σ(f) c + σ(i) tanh(g);   h' = σ(o) tanh(c')

W and U have a block of rows for each gate, in it one row for each unit. All layers and both directions have as many
units, and those of one number are cut together; what is put out are the directions end to end. A unit without its rows
and its initial state is 0 ever after: σ(0) · 0 + σ(0) · tanh(0). So it is in a GRU and in a plain recurrent layer,
which plans alone can hold.
"""

from math import prod
from typing import Any, cast

import torch
from torch.fx import Node

from zoo.compression.channels.contraction import same_of_each_group
from zoo.compression.channels.ids import Vector
from zoo.compression.channels.pointwise import unknown
from zoo.compression.channels.trace import Walk

aten = torch.ops.aten

RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}


def recurrence(walk: Walk, node: Node) -> Any:
    """A recurrent layer of any depth, in one direction or both."""
    x, states, params, has_biases, depth, _, _, bidirectional, _ = cast(tuple[Any, ...], node.args)
    directions, tensors = 2 if bidirectional else 1, 4 if has_biases else 2
    cells = [params[start : start + tensors] for start in range(0, len(params), tensors)]
    if len(cells) != depth * directions:
        return unknown(walk, node)  # what is put out is projected
    *around, read = walk.axes(x)
    units, width = walk.axes(cells[0][1])[1], walk.shape(cells[0][1])[1]
    for state in states if isinstance(states, list | tuple) else [states]:
        *others, initial = walk.axes(state)
        around += others
        walk.ids.join(units, initial, walk.met(state))
    for vector in around:
        walk.ids.freeze(vector, "steps of a recurrent layer")
    steps = prod(walk.shape(x)[:2])
    for number, (weight, recurrent, *biases) in enumerate(cells):
        if number and number % directions == 0:
            read = _put_out(units, directions)
        (written, inputs), (rows, again) = walk.axes(weight), walk.axes(recurrent)
        gates = walk.shape(recurrent)[0] // width
        walk.ids.join(read, inputs, walk.met(x, weight))
        walk.ids.join(units, again, walk.met(recurrent))
        for vector in (written, rows, *(walk.axes(bias)[0] for bias in biases)):
            same_of_each_group(walk, [vector], gates, units, walk.met(weight))
        for of, put, taken in ((weight, written, inputs), (recurrent, rows, again)):
            walk.layer(node, of, put, taken)
            walk.count_exactly(steps * prod(walk.shape(of)), [units, taken])
    last: list[Vector] = [None, None, units]
    return [[None, None, _put_out(units, directions)], *[last] * (len(node.meta["val"]) - 1)]


def _put_out(units: Vector, directions: int) -> Vector:
    return None if units is None else units.repeat(directions)
