"""`export`: a model as a file for other programs."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo import atomic
from zoo.errors import RepositoryError, require
from zoo.measurement.macs import input_size, like_images
from zoo.onnx.export import OPSET, describe_, onnx_program
from zoo.onnx.runtime import BATCHES, compared
from zoo.printable import logger
from zoo.structure.describing import described
from zoo.verbs.loading import load

log = logger(__name__)


def export(
    model: nn.Module | str | os.PathLike[str],
    *,
    onnx: str | os.PathLike[str],
    example: Sequence[int] | Tensor | None = None,
) -> Path:
    """Write a model as an ONNX file, which onnxruntime was found to compute as torch does.

    The batch may have any size; images have the model's own. Outputs are what the model returns: logits, or a
    detector's raw heads. Preprocessing, names of classes, name, base and licence are in the file's metadata.

    Args:
        model: from `load` or `compress`, or any module that `save` takes; or what `load` takes: a name of the catalog,
            `org/name` on the Hub, the folder of a repository, or the id of a base with its tag.
        onnx: the file; it appears whole or not at all.
        example: of a module that doesn't say what it takes, as for `save`: channels, height and width, or images.

    Returns:
        The file.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime isn't installed.
        StructureError: the model can't be written so, takes more than 2 GiB, isn't in float32, or onnxruntime computes
            something else (by more than 1e-4 of the largest output, for one image or for seven).
        UnknownName, HubError, RepositoryError: as for `load`.
        StorageError: the disk is full or refuses.

    Example:
        zoo.export("digits_cnn_pruned_25", onnx="digits.onnx")
    """
    file = Path(onnx)
    if file.is_dir():
        raise RepositoryError(f"{file} is a folder, expected the name of a file: {file / 'model.onnx'}")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx")  # before what takes time
    model = model if isinstance(model, nn.Module) else load(model, dtype=torch.float32)
    model, description = described(model, example=example)
    size = input_size(model)
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(like_images(model))
    program = onnx_program(model, images)
    describe_(program, model, description)
    data = program.SerializeToString()
    off = compared(data, model, size)
    with atomic.writing(file) as out:
        out.write(data)
    outputs = ", ".join(_shaped(each) for each in program.graph.output)
    log.info(
        *("%s: opset %d, %s -> %s; onnxruntime is off by %.2g of the largest output, at batches %s", file, OPSET),
        *(_shaped(program.graph.input[0]), outputs, off, " and ".join(map(str, BATCHES))),
    )
    return file


def _shaped(value: object) -> str:
    """An input or output as its name and shape."""
    dims = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]  # onnx has no types of its own
    return f"{value.name} [{', '.join(dim.dim_param or str(dim.dim_value) for dim in dims)}]"  # type: ignore[attr-defined]
