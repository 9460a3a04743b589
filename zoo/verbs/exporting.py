"""`export`: a model as a file for other programs."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from zoo import atomic
from zoo.errors import RepositoryError, require
from zoo.measurement.macs import input_size, noise
from zoo.onnx.export import OPSET, describe_, onnx_program
from zoo.onnx.integer import integer_program
from zoo.onnx.runtime import BATCHES, compared, compared_bytes
from zoo.printable import logger
from zoo.structure.describing import described
from zoo.structure.graph.certificate import is_integer
from zoo.structure.graph.graph import Graph
from zoo.verbs.loading import load

if TYPE_CHECKING:
    from onnx import ModelProto

log = logger(__name__)
Compare = Callable[[bytes, nn.Module, tuple[int, int, int]], float]


def export(
    model: nn.Module | str | os.PathLike[str],
    *,
    onnx: str | os.PathLike[str],
    example: Sequence[int] | Tensor | None = None,
) -> Path:
    """Write a model as an ONNX file, which onnxruntime was found to compute as torch does.

    The batch may have any size; images have the model's own. Outputs are what the model returns: logits, or a
    detector's raw heads. Preprocessing, names of classes, name, base and licence are in the file's metadata. Of an
    integer model images are bytes 0..255, and onnxruntime gives the model's own bytes.

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
            something else (by more than 1e-4 of the largest output, for one image or for seven; of an integer model
            any other byte).
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
    if not isinstance(model, nn.Module):
        model = load(model)
        model = model if is_integer(model) else model.float()
    model, description = described(model, example=example)
    size = input_size(model)
    program, compare = _program(model, description.graph, size)
    describe_(program, model, description)
    data = program.SerializeToString()
    off = compare(data, model, size)
    with atomic.writing(file) as out:
        out.write(data)
    outputs = ", ".join(_shaped(each) for each in program.graph.output)
    log.info(
        *("%s: opset %d, %s -> %s; onnxruntime is off by %.2g of the largest output, at batches %s", file, OPSET),
        *(_shaped(program.graph.input[0]), outputs, off, " and ".join(map(str, BATCHES))),
    )
    return file


def _program(model: nn.Module, graph: Graph | None, size: tuple[int, int, int]) -> tuple["ModelProto", Compare]:
    """The program of a model, and how it is compared."""
    if graph is not None and is_integer(model):
        return integer_program(model, graph), compared_bytes
    return onnx_program(model, noise(model, 2)), compared


def _shaped(value: object) -> str:
    """An input or output as its name and shape."""
    dims = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]  # onnx has no types of its own
    return f"{value.name} [{', '.join(dim.dim_param or str(dim.dim_value) for dim in dims)}]"  # type: ignore[attr-defined]
