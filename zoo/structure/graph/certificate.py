"""Certificate: that no accumulator of an integer model can overflow, whatever its images are.

It is computed from the weights as they are, in whole numbers, and never read from a file. Of every layer and output:

    Σ|w|·255 + |bias| < 2^31            nothing overflows 32 bits
    255·(|w_a| + |w_b|) ≤ 32,767        nor 16, where processors add pairs of products
    2^-exponent·… : exponent ≤ 15, or Σ|w|·255 + |bias| < 2^24      what isn't saturated is exact in single precision

The second holds for any order of the weights if it does for the two largest; MRT's layers have the first alone. Of ops
without weights, or of norms,

    |accumulator|·multiplier < 2^53     double precision, or int64, holds it

What else stands in a graph moves values and computes none, and what it holds for that are bytes and words.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from zoo.errors import StructureError, in_one_line
from zoo.measurement.divergence import leaves
from zoo.measurement.macs import input_size, unchanged, vocab_size
from zoo.structure.graph.graph import CALLS, INTS
from zoo.structure.graph.integer import BYTE, INTEGER, MAX_EXPONENT, MAX_POWER, SINGLE, QInput, QLayer, Quantized
from zoo.structure.graph.mrt import MRT
from zoo.structure.graph.quotients import QUOTIENTS
from zoo.structure.graph.tokens import DOUBLE, TOKENS, WORD, QNorm, QSoftmax, Scaled
from zoo.structure.tensors import bytes_of

ACCUMULATOR = 2**31
PAIR = 2**15 - 1
JOINS = ("concat", "prepend", "aten.stack")
MOVES = (
    *("flatten", "reshape", "permute", "transpose", "chunk", "item", "slices", "unsqueeze", "max_pool2d", "upsample"),
    *("gather", "pad_same", "aten.constant_pad_nd", "aten.pad", "aten.squeeze.dims", "aten.squeeze.dim", "unbind"),
    *("aten.slice.Tensor", "aten.select.int", "aten.split_with_sizes", "aten.split.Tensor", "aten.pixel_shuffle"),
    *("aten.pixel_unshuffle", "aten.upsample_nearest2d.vec", "expand", "roll", "aten.flip", "aten.squeeze", "aten.mT"),
    *("aten.reshape_as", "aten.expand_as", "aten.view_as", "aten.unflatten.int", "aten.movedim.intlist", "aten.amax"),
    *("aten.repeat", "aten.repeat_interleave.self_int", "aten.tile", "aten.narrow", "aten.max.dim", "aten.unfold"),
    *("window_partition", "window_reverse", "merge_patches"),
)
SIZES = ("size", *INTS)
"""Ops of graphs that may stand between those of integers: they put values elsewhere, and compute none but sizes."""
_WHOLE = {op.call for op in (*INTEGER.values(), *TOKENS.values(), *QUOTIENTS.values(), *MRT.values())}
_NAMES: Mapping[Any, str] = {op.call: name for name, op in reversed(CALLS.items())}
_MOVING = {CALLS[name].call for name in (*MOVES, *JOINS, *SIZES)}
_MODES = ("nearest", "constant", "reflect", "replicate", "circular")
UNCERTAIN = "that no certificate covers: a model of integers has ops of integers, and what moves their values, alone"
AGAIN = "its weights were altered, or quantized otherwise: compress the base again"


@dataclass(frozen=True)
class Certified:
    """What holds of a layer.

    Args:
        bound: the most that an accumulator can be.
        pair: the most that two products can be; 0 of what isn't a layer.
        single: single precision holds every accumulator.
    """

    bound: int
    pair: int
    single: bool


def is_integer(model: nn.Module) -> bool:
    """Whether a model computes in integers."""
    return any(isinstance(module, QInput | QLayer) for module in model.modules())


def certificate(model: nn.Module) -> dict[str, Certified]:
    """Certify every layer of an integer model.

    Args:
        model: with its weights.

    Returns:
        Path of the layer → what holds of it; of a model of floats nothing.

    Raises:
        StructureError: a layer could overflow; the message names it, the bound, and what is allowed. Or an op computes
            what isn't certified.
    """
    certified: dict[str, Certified] = {}
    if isinstance(model, fx.GraphModule) and is_integer(model):
        _check_ops(model)
    for path, each in model.named_modules():
        if isinstance(each, Quantized) and max(-each.low, each.high) > WORD:
            raise StructureError(f"{path} gives {each.low:,} to {each.high:,}, expected words, to {WORD:,}")
        if isinstance(each, QLayer | QNorm):
            _check_powers(path, each)
        if isinstance(each, QLayer):
            certified[path] = _certified(path, each)
        elif isinstance(each, Scaled | QSoftmax | QNorm):
            certified[path] = _wide(path, each)
    return certified


def _check_ops(model: fx.GraphModule) -> None:
    for node in model.graph.nodes:
        if node.op == "call_module":
            op = type(model.get_submodule(str(node.target)))
            if op not in _WHOLE:
                raise StructureError(f"{node.target} is a {op.__name__}, {UNCERTAIN}")
        elif node.op == "get_attr":
            _check_held(str(node.target), model.get_buffer(str(node.target)))
        elif node.op == "call_function":
            _check_move(node)


def _check_held(path: str, held: Tensor) -> None:
    """What is held is whole: bytes, words, or indices, which no op of integers reads."""
    if held.dtype in (torch.int16, torch.int32) and held.numel():
        low, high = int(held.min()), int(held.max())
        if not -WORD <= low <= high <= WORD:
            raise StructureError(f"{path} holds {low:,} to {high:,}, expected words, to {WORD:,}")
    elif held.is_floating_point():
        raise StructureError(f"{path} holds {held.dtype}, {UNCERTAIN}")


def _check_move(node: fx.Node) -> None:
    name, told = _NAMES.get(node.target, node.name), node.kwargs
    mode = told.get("mode", "nearest")
    if node.target not in _MOVING or mode not in _MODES:
        by = f" by {mode}" if "mode" in told else ""
        raise StructureError(f"{name}{by} is an op {UNCERTAIN}")
    value = told.get("value") or 0
    if not (isinstance(value, int | float) and value in range(-WORD, WORD + 1)):
        raise StructureError(f"{name} puts {value} around what it is given, expected a byte or a word")


def _check_powers(path: str, op: QLayer | QNorm) -> None:
    powers = getattr(op, "exponent", None)  # which MRT's have none of
    if powers is not None and not -MAX_POWER <= int(powers.min()) <= int(powers.max()) <= MAX_POWER:
        found = f"{int(powers.min())} to {int(powers.max())}"
        raise StructureError(f"{path} has exponents of {found}, expected at most {MAX_POWER} either way: {AGAIN}")


def _wide(path: str, op: Scaled | QSoftmax | QNorm) -> Certified:
    try:
        bound = op.bound()
    except ValueError as error:
        raise StructureError(f"{path}: {error}: its tensors were altered: compress the base again") from error
    if bound >= DOUBLE:
        raise StructureError(f"{path} could reach {bound:,}, expected below 2^53: compress the base again")
    return Certified(bound, 0, False)


def _certified(path: str, layer: QLayer) -> Certified:
    magnitudes = layer.magnitudes()
    bounds = layer.bound(magnitudes)
    pair = BYTE * _largest_pair(magnitudes)
    wide = layer.exponent.cpu()[bounds >= SINGLE] if layer.paired else bounds[:0]
    bound, exponent = int(bounds.max()), int(wide.max()) if len(wide) else 0
    if bound >= ACCUMULATOR:
        raise StructureError(f"{path} could reach {bound:,}, expected below 2^31: {AGAIN}")
    if layer.paired and pair > PAIR:
        raise StructureError(f"{path}: two products could reach {pair:,}, expected at most {PAIR:,}: {AGAIN}")
    if exponent > MAX_EXPONENT:
        raise StructureError(f"{path} has an exponent of {exponent}, expected at most {MAX_EXPONENT}: {AGAIN}")
    return Certified(bound, pair, bound < SINGLE)


def _largest_pair(magnitudes: Tensor) -> int:
    """The most that two of an output's are together; sorting them would take ten times as long."""
    at = torch.from_numpy(magnitudes.numpy().argmax(1)).unsqueeze(1)
    second = magnitudes.scatter(1, at, 0).amax(1)
    return int((magnitudes.gather(1, at).squeeze(1).int() + second).max())


def check_floats(model: nn.Module, what: str) -> None:
    """Check that a model isn't one of integers, for what that can't be.

    Args:
        model: any.
        what: would be done to it.

    Raises:
        StructureError: it is.
    """
    if is_integer(model):
        raise StructureError(f"{type(model).__name__} computes in integers, and can't be {what}: do so with its base")


def fixed_pixels(model: nn.Module) -> Tensor:
    """Two images [2, C, H, W] of bytes for an integer model: one as if drawn, one of extremes; alike on every machine.

    Formula: byte i of the first is bits 16..23 of 1103515245·i + 12345, of the second 255 where that is odd, else 0.
    Of a model of texts token ids stand in their place: the same bits from 16 on, modulo how many there are, and the
    last one or 0.
    """
    channels, height, width = input_size(model)
    drawn = (torch.arange(channels * height * width) * 1103515245 + 12345) >> 16
    count, dtype = (BYTE + 1, torch.uint8) if (ids := vocab_size(model)) is None else (ids, torch.int64)
    return torch.stack([drawn % count, (drawn & 1) * (count - 1)]).to(dtype).view(2, channels, height, width)


def outputs_sha256(model: nn.Module) -> str:
    """The sha256 of what an integer model gives for `fixed_pixels`, which is the same wherever it runs rightly."""
    place = next(model.buffers()).device
    with in_one_line("the model doesn't run on its fixed inputs"), unchanged(model), torch.no_grad():
        given = model(fixed_pixels(model).to(place))
    told = hashlib.sha256()
    for each in leaves(given):
        told.update(bytes_of(each))
    return told.hexdigest()
