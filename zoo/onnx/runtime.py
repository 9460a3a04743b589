"""Runtime: an ONNX program as onnxruntime computes it, beside the model that it was written from."""

from typing import Any

import torch
from torch import nn

from zoo.errors import StructureError, first_line, require
from zoo.measurement.divergence import apart
from zoo.measurement.macs import noise, unchanged, vocab_size
from zoo.onnx.export import IMAGES, named

BATCHES = (1, 7)
CLOSE = 1e-4  # of the largest output


def compared(program: bytes, model: nn.Module, size: tuple[int, int, int]) -> float:
    """Compare onnxruntime's outputs for images of noise with the model's.

    Args:
        program: what a file holds.
        model: that it was written from.
        size: channels, height and width of its images.

    Returns:
        The largest difference as a share of the largest output, as `zoo.measurement.divergence.apart` says.

    Raises:
        MissingExtra: onnxruntime isn't installed.
        StructureError: onnxruntime refuses the program, or computes something else.
    """
    name = type(model).__name__
    run = session(program, name)
    most = 0.0
    for batch in BATCHES:
        images = noise(model, batch, seed=batch, size=size)
        with unchanged(model), torch.no_grad():
            expected = {key: value.cpu() for key, value in named(model(images)).items()}
        try:
            found = dict(zip(expected, map(torch.from_numpy, run(None, {IMAGES: images.cpu().numpy()})), strict=True))
        except (RuntimeError, ValueError) as error:
            raise StructureError(f"{name}: onnxruntime doesn't run it on {batch} images: {first_line(error)}") from None
        for key, tensor in expected.items():
            if found[key].shape != tensor.shape:
                shapes = f"{list(found[key].shape)} for {batch} images, the model {list(tensor.shape)}"
                raise StructureError(f"{name}: onnxruntime gives {key} {shapes}: it isn't written")
        most = max(most, apart(found, expected))
    if most > CLOSE:
        raise StructureError(
            f"{name}: onnxruntime gives something else (by {most:.2g} of the largest output, expected at most "
            f"{CLOSE:g}): it isn't written"
        )
    return most


def compared_bytes(program: bytes, model: nn.Module, size: tuple[int, int, int]) -> float:
    """The same of an integer model, whose bytes it must give for noise and for extremes, optimised or not.

    Args:
        program: what a file holds.
        model: that it was written from.
        size: channels, height and width of its images.

    Returns:
        0.

    Raises:
        MissingExtra: onnxruntime isn't installed.
        StructureError: onnxruntime refuses the program, or gives other bytes.
    """
    name = type(model).__name__
    place = next(model.buffers()).device
    count, dtype = (256, torch.uint8) if (ids := vocab_size(model)) is None else (ids, torch.int64)
    runs = [session(program, name, optimised=optimised) for optimised in (True, False)]
    for batch in BATCHES:
        drawn = torch.randint(count, (batch, *size), generator=torch.Generator().manual_seed(batch)).to(dtype)
        for images in (drawn, (drawn >= count // 2).to(dtype) * (count - 1)):
            with unchanged(model), torch.no_grad():
                expected = [each.cpu() for each in named(model(images.to(place))).values()]
            for run in runs:
                found = [torch.from_numpy(each) for each in run(None, {IMAGES: images.numpy()})]
                if not all(map(torch.equal, found, expected)):
                    raise StructureError(
                        f"{name}: onnxruntime gives other bytes than the model, for {batch} images: it isn't written"
                    )
    return 0.0


def session(program: bytes, name: str, threads: int = 0, *, optimised: bool = True) -> Any:
    """A function that runs a program on the CPU: names of outputs or None, {name: array} → arrays.

    Arguments and errors are those of `loaded`.
    """
    return loaded(program, name, threads, optimised=optimised).run


def loaded(program: bytes, name: str, threads: int = 0, *, optimised: bool = True) -> Any:
    """An InferenceSession of onnxruntime on the CPU.

    Args:
        program: what a file holds.
        name: of the model, for messages.
        threads: that it computes with; 0 leaves it to onnxruntime.
        optimised: by onnxruntime, as it is by default; else it is computed as it is written.

    Raises:
        MissingExtra: onnxruntime isn't installed.
        StructureError: onnxruntime refuses the program.
    """
    onnxruntime = require("onnxruntime", "fast")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are of its compiled part
        raise StructureError(f"{name}: onnxruntime refuses it: {first_line(error)}") from None
