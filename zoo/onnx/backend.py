"""Backend: an integer model that onnxruntime computes, byte for byte as torch does, or not at all."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import StructureError, first_line, require
from zoo.measurement.latency import processor
from zoo.onnx.export import IMAGES
from zoo.onnx.integer import integer_program
from zoo.onnx.runtime import session
from zoo.structure.description import attach_, config_of, configure_, description_of
from zoo.structure.graph.certificate import is_integer, outputs_sha256
from zoo.structure.graph.integer import QInput


class Backend(nn.Module):
    """What takes images as the reference does, and returns what that returns.

    Args:
        run: a program, as `session` does.
        model: the reference, which is measured, saved and described in its place.
        keys: of the outputs, where the reference returns a dictionary.
        several: the reference returns a tuple.
    """

    def __init__(self, run: Any, model: nn.Module, keys: tuple[str, ...] | None, several: bool) -> None:
        super().__init__()
        self.run, self.model, self.keys, self.several = run, model, keys, several
        self.pixels = next((each.pixels for each in model.modules() if isinstance(each, QInput)), _as_they_are)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return accelerated(copy.deepcopy(self.model, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise StructureError("what onnxruntime computes can't be pickled: zoo.save it, then zoo.load the folder again")

    def forward(self, images: Tensor) -> Any:
        """Images [B, C, H, W], bytes or normalised, or token ids → outputs.

        Raises:
            StructureError: they lie elsewhere than on the CPU, or have another size.
        """
        if images.device.type != "cpu":
            raise StructureError(f"onnxruntime computes on the CPU here, the images lie on {images.device}: move them")
        try:
            found = self.run(None, {IMAGES: self.pixels(images).contiguous().numpy()})
        except Exception as error:  # its classes are of its compiled part
            raise StructureError(f"onnxruntime refuses {list(images.shape)}: {first_line(error)}") from None
        outputs = tuple(map(torch.from_numpy, found))
        if self.keys is not None:
            return dict(zip(self.keys, outputs, strict=True))
        return outputs if self.several else outputs[0]


def _as_they_are(ids: Tensor) -> Tensor:
    return ids


def accelerated(model: nn.Module, expected: str | None = None) -> nn.Module:
    """Let onnxruntime compute an integer model, with as many threads as torch has now.

    Args:
        model: from `load` or `compress`; it is the reference.
        expected: the sha256 of its outputs for `fixed_pixels`, which onnxruntime must give; None computes it.

    Returns:
        A module in eval mode, with the model's `pretrained_cfg`, `zoo_entry` and `num_classes`.

    Raises:
        MissingExtra: onnx or onnxruntime isn't installed.
        StructureError: the model is one of floats, has a node that ONNX has no form for, or this processor's
            onnxruntime gives other bytes, or torch itself gives others than expected.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "fast")
    description = description_of(model)
    if not is_integer(model) or description is None or description.graph is None:
        raise StructureError(
            f"{type(model).__name__} is a model of floats, which onnxruntime doesn't compute alike: zoo export MODEL "
            f"--onnx FILE writes it for that, zoo compress --method integer makes one of integers"
        )
    graph = description.graph
    program = integer_program(model, graph).SerializeToString()
    several = len(graph.outputs) > 1
    made = Backend(session(program, description.name, torch.get_num_threads()), model, graph.keys, several).eval()
    configure_(made, config_of(model))
    attach_(made, description)
    made.num_classes = vars(model).get("num_classes", 0)
    own = outputs_sha256(made)
    if own == expected:
        return made
    reference = outputs_sha256(model)
    if expected is not None and reference != expected:
        raise StructureError(
            f"{description.name}: its config.json says outputs_sha256 {expected[:12]}, torch gives {reference[:12]}: "
            f"that file is wrong, whatever computes the model; zoo verify shows it"
        )
    if own != reference:
        version = require("onnxruntime", "fast").__version__
        raise StructureError(
            f"{description.name}: onnxruntime {version} gives other bytes than the model on {processor()}: load it "
            f"without backend, which is slower and right"
        )
    return made
