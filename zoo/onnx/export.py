"""Export: a model as an ONNX program, with what whoever runs it must know.

torch.onnx translates the program that `structure.graph.exported` traces, so that a batch may have any size. Attention
is traced as two matrix products: of the fused kernels' outputs torch assumes other strides when it decomposes them.
"""

import json
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from zoo.errors import StructureError, in_one_line, require
from zoo.measurement.macs import input_size, unchanged, vocab_size
from zoo.structure.description import Description, config_of
from zoo.structure.graph.certificate import is_integer
from zoo.structure.graph.tracing import export
from zoo.structure.tensors import tensors_of
from zoo.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # which onnxruntime reads from 1.14 on, TensorRT from 8.6
IMAGES, LOGITS, BATCH = "images", "logits", "batch"
MAX_BYTES = 2**31 - 2**24  # a file of one piece has less than 2 GiB, and the program takes some of them
_SCALING = {"mean": "less", "std": "over"}  # of floats; bytes undergo it inside
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def onnx_program(model: nn.Module, images: Tensor) -> "ModelProto":
    """Translate a model.

    Args:
        model: in float32, of one batch of images; left as it was.
        images: that it takes [B, C, H, W], B ≥ 2.

    Returns:
        The program: `images` [batch, C, H, W] → `logits`, or the outputs by their keys, or `output_0`, `output_1`, ...

    Raises:
        MissingExtra: onnx or onnxscript isn't installed.
        StructureError: the model isn't in float32, is too large for one file, can't be exported, or does what ONNX
            doesn't know.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "onnx")
    name = type(model).__name__
    _check_tensors(tensors_of(model), name)
    with in_one_line(f"{name} doesn't run on {tuple(images.shape)}"), unchanged(model), torch.no_grad():
        names = [*named(model(images))]
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own about its own
        program = export(model, images)
        try:
            exported = torch.onnx.export(
                *(program, ()),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGES],
                output_names=names,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise StructureError(f"{name} can't be written as ONNX of opset {OPSET}: {_reason(error)}") from None
    assert exported is not None  # or it would have been asked for a file
    return _batched(_without_traces(exported.model_proto))


def _without_traces(program: "ModelProto") -> "ModelProto":
    """A program that doesn't say from which files, by their way on this disk, each of its nodes came."""
    for node in (*program.graph.node, *(node for function in program.functions for node in function.node)):
        node.ClearField("metadata_props")
    return program


def _check_tensors(tensors: Mapping[str, Tensor], name: str) -> None:
    others = {str(t.dtype): path for path, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32}
    if others:
        dtype, path = next(iter(others.items()))
        raise StructureError(
            f"{name}: {path} is {dtype}, an ONNX file is written in float32: model.float(), then again"
        )
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > MAX_BYTES:
        raise StructureError(
            f"{name} takes {size / 2**30:.1f} GiB, an ONNX file holds less than 2 GiB: prune it, or load it with zoo"
        )


def named(outputs: Any) -> dict[str, Tensor]:
    """The tensors that a model returns, by the names that they have in a file."""
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    tensors = {".".join(_word(key) for key in path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
    return {name if name else LOGITS: tensor for name, tensor in tensors.items()}


def _word(key: Any) -> str:
    return f"output_{key.idx}" if isinstance(key, pytree.SequenceKey) else str(getattr(key, "key", key))


def _reason(error: BaseException) -> str:
    """What the innermost cause says first; torch's own message is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _batched(program: "ModelProto") -> "ModelProto":
    """Call the size that is left open `batch`, and what follows from it by its formula."""
    graph = program.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if symbol and dim.dim_param:
                dim.dim_param = re.sub(rf"\b{symbol}\b", BATCH, dim.dim_param)
    return program


def describe_(program: "ModelProto", model: nn.Module, description: Description) -> None:
    """Write into a program what images must undergo, what the outputs mean and where the model comes from.

    Args:
        program: from `onnx_program`.
        model: with `pretrained_cfg`, which may name its classes.
        description: of the model.
    """
    config, base = config_of(model), description.base
    whole, ids = is_integer(model), vocab_size(model)
    told = {
        "name": description.name,
        "task": description.task,
        "base": base and base.id,
        "license": config.get("license"),
        **{key: config.get(key) for key in _PREPROCESSING if not (whole and key in _SCALING)},
        "pixels": "bytes 0..255" if whole and ids is None else None,
        "vocabulary": config.get("vocabulary"),
        "label_names": config.get("label_names"),
        "detector": config.get("detector"),
        "zoo_version": __version__,
    }
    for key, value in told.items():
        if value is not None:
            program.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    program.producer_name, program.producer_version = "compressed-zoo", __version__
    program.graph.name = description.name
    program.doc_string = _words(model, description, "int64" if ids else "uint8" if whole else "float32")


def _words(model: nn.Module, description: Description, dtype: str) -> str:
    config = config_of(model)
    channels, height, width = input_size(model)
    order = {1: "grey", 3: "red, green, blue"}.get(channels, f"{channels} channels")
    scaled = "0..1" + "".join(f", {word} {config[key]}" for key, word in _SCALING.items() if config.get(key))
    scaled = "0..255" if dtype == "uint8" else scaled
    if dtype == "int64":
        order, scaled = "token ids", f"0..{(vocab_size(model) or 0) - 1}"
    return (
        f"{description.name}: {IMAGES} [{BATCH}, {channels}, {height}, {width}], {dtype}, {order}, {scaled}; what "
        f"else images undergo, and the names of the classes, is in metadata_props, lists as JSON."
    )
