"""Integer: a model of floats becomes one that computes in integers alone, and gives the same bytes everywhere.

1. The model is written down as a graph, its batch norms folded into the layers before them.
2. It looks at the calibration images: the range of every value, and which inputs of a layer go along with each other.
3. Each value is given the step by which least is lost (`steps`), each layer the weights (`rounding`), and each node a
   twin in whole numbers (`twins`) whose requantization is a shift, halves to even.

Any two weights of an output have at most 128 as magnitude together: so two products fit 16 bits, in which processors
without dot products of bytes add them. Nothing can overflow: `structure.graph.certificate` computes that from what is
stored.

Source of the aim: CortexFoundation, MRT, https://github.com/CortexFoundation/cvm-runtime/blob/b5a25188/docs/mrt; shifts
in place of multipliers: Jacob et al. (CVPR 2018), https://arxiv.org/abs/1712.05877, with multipliers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from zoo.compression import Algorithm, Given
from zoo.compression.integer import mrt
from zoo.compression.integer.constants import settled
from zoo.compression.integer.folding import folded
from zoo.compression.integer.layers import Rounding
from zoo.compression.integer.observing import observed
from zoo.compression.integer.planning import planned
from zoo.compression.integer.quotients import check_divisors, divided
from zoo.compression.integer.tokens import opened
from zoo.compression.integer.twins import EXACT, twin
from zoo.compression.integer.writing import Writing
from zoo.declarations import validate
from zoo.errors import DataError
from zoo.measurement.macs import unchanged, vocab_size
from zoo.structure.description import Description, config_of
from zoo.structure.graph.capture import capture
from zoo.structure.graph.graph import Graph, GraphModel, graph_module
from zoo.structure.plan import Plan
from zoo.structure.tensors import assign_, tensors_of

CORRECTED = 128  # images, from which the mean of what a layer reads is known well enough to correct 8 bits by it


@dataclass(frozen=True)
class Integer:
    """How a model of floats becomes integers.

    Args:
        weight_bits: 8 (of which two together have 128 at most, so that pairs of products fit 16 bits), 6 or 4.
        rounding: `gptq` makes up for what rounding loses by the inputs that were seen; `nearest` doesn't.
        scheme: `exact` requantizes by shifts; `mrt` does as MRT, one step for each tensor, and runs in torch alone.
        deviations: of `mrt`, λ of the threshold |mean| + λ·std; 0 takes the largest value.
    """

    weight_bits: Literal[8, 6, 4] = 8
    rounding: Literal["gptq", "nearest"] = "gptq"
    scheme: Literal["exact", "mrt"] = "exact"
    deviations: Annotated[float, Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        validate(self, "integer", DataError)


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    how, model = given.how, given.model
    made, graph = capture(model, given.batches[0][:2])
    graph, tensors = folded(*divided(*settled(opened(graph), tensors_of(made))))
    floats = _floats(graph, tensors)
    batches = [batch.cpu() if vocab_size(model) else batch.cpu().float() for batch in given.batches]
    seen, inputs = observed(floats, graph, batches, given.seed)
    check_divisors(graph, seen)
    images = sum(map(len, given.batches))
    rounding = Rounding(how.weight_bits, how.rounding == "gptq", how.weight_bits < 8 or images >= CORRECTED)
    shapes = _shapes(floats, graph, batches[0][:1])
    scheme = {"exact": EXACT, "mrt": mrt.scheme(how.deviations)}[how.scheme]
    writing = Writing(graph, tensors, planned(graph, seen, scheme.choose), inputs, shapes, rounding, scheme)
    whole, numbers = twin(writing, *_scale(model, given.batches[0].shape[1]))
    return replace(given.description, plan=Plan(), graph=whole), numbers


def _floats(graph: Graph, tensors: Mapping[str, Tensor]) -> GraphModel:
    single = {path: t.float() if t.is_floating_point() else t for path, t in tensors.items()}
    model = graph_module(graph)
    assign_(model, single, "the folded graph")
    return model


def _scale(model: nn.Module, channels: int) -> tuple[list[float], list[float]]:
    config = config_of(model)
    mean, std = (list(config.get(key) or [usual] * channels) for key, usual in (("mean", 0.0), ("std", 1.0)))
    return mean, std


def _shapes(model: GraphModel, graph: Graph, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Name of a value → its shape for one image."""
    with torch.no_grad(), unchanged(model):
        ShapeProp(model).propagate(image)
    names = [*graph.inputs, *(node.name for node in graph.nodes)]
    told = [node.meta.get("tensor_meta") for node in model.graph.nodes if node.op != "output"]
    return {
        name: tuple(each.shape) if isinstance(each, TensorMetadata) else ()
        for name, each in zip(names, told, strict=True)
    }


ALGORITHM = Algorithm(Integer, run)
