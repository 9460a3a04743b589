"""Backends: what computes a model that is timed. A row of BACKENDS is all that a further one needs."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import StructureError, in_one_line, require
from zoo.measurement.latency import Call, forward
from zoo.onnx.export import onnx_program
from zoo.onnx.integer import integer_program
from zoo.onnx.runtime import loaded
from zoo.structure.description import description_of
from zoo.structure.graph.certificate import is_integer

Model = nn.Module | bytes
"""A module in eval mode, or what an ONNX file holds."""
MANY = 100_000  # models of one class that are compiled: beyond, torch computes as ever and says nothing
_TYPES = {"tensor(float)": torch.float32, "tensor(uint8)": torch.uint8, "tensor(int64)": torch.int64}


@dataclass(frozen=True)
class Backend:
    """What computes a model.

    Args:
        prepared: model, images → what all copies of it begin with.
        started: that, images → one forward pass of a copy of its own in memory, finished when it returns.
    """

    prepared: Callable[[Model, Tensor], Any]
    started: Callable[[Any, Tensor], Call]


def _module(model: Model, images: Tensor) -> nn.Module:
    if isinstance(model, bytes):
        raise StructureError("torch doesn't compute an ONNX file: leave --backend out, or say onnxruntime")
    return model


def _eager(model: nn.Module, images: Tensor) -> Call:
    return forward(copy.deepcopy(model), images.clone())


def _compiled(model: nn.Module, images: Tensor) -> Call:
    call = forward(torch.compile(copy.deepcopy(model), dynamic=False), images.clone())  # type: ignore[arg-type]
    limits: dict[str, Any] = {"recompile_limit": MANY, "accumulated_recompile_limit": MANY}
    with in_one_line(f"torch doesn't compile {type(model).__name__}"), torch._dynamo.config.patch(limits):
        call()
    return call


def _program(model: Model, images: Tensor) -> bytes:
    """The program of a model, that of an integer model its own; a file is one."""
    if isinstance(model, bytes):
        return model
    require("onnxruntime", "fast")  # before what takes time
    description = description_of(model)
    if description is not None and description.graph is not None and is_integer(model):
        program = integer_program(model, description.graph)
    else:
        program = onnx_program(model, images[:1].repeat(2, 1, 1, 1))
    written: bytes = program.SerializeToString()
    return written


def _in_onnxruntime(program: bytes, images: Tensor) -> Call:
    session = loaded(program, "the program", torch.get_num_threads())
    taken = session.get_inputs()[0]
    dtype = _TYPES.get(taken.type, images.dtype)
    array = (torch.randint(256, images.shape) if dtype == torch.uint8 else images).to(dtype).numpy()

    def call() -> None:
        session.run(None, {taken.name: array})

    try:
        call()
    except Exception as error:  # its classes are of its compiled part
        raise StructureError(f"onnxruntime refuses {list(array.shape)} of {taken.type}: {_plain(error)}") from None
    return call


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())


BACKENDS: Mapping[str, Backend] = {
    "eager": Backend(_module, _eager),
    "compile": Backend(_module, _compiled),
    "onnxruntime": Backend(_program, _in_onnxruntime),
}


def input_of(program: bytes, name: str) -> list[Any]:
    """Sizes of what a program of that name takes: numbers, or names of those that are left open."""
    shape: list[Any] = loaded(program, name).get_inputs()[0].shape
    return shape
