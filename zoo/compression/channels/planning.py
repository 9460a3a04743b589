"""Planning: cuts that a plan over a base can tell, and which models are better told by a graph."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from torch import Tensor, nn
from torch.export import ExportedProgram

from zoo.compression.channels.analysis import Whole, exported
from zoo.compression.channels.checking import Chosen, Trial, halves, rescaled, tried
from zoo.compression.channels.groups import Analysis, narrow
from zoo.compression.keeping import rebuilt
from zoo.errors import BudgetError, StructureError
from zoo.measurement.macs import forward_on_meta
from zoo.structure import blocks
from zoo.structure.describing import describe
from zoo.structure.description import config_of, skeleton_of
from zoo.structure.graph.tracing import DIMS
from zoo.structure.plan import Plan, Swap
from zoo.structure.tensors import computable, tensors_of

COMPUTED = "its module computes it again when it is loaded"
NO_PLAN = "the attributes of its block aren't known, so no plan can cut it"


def swapped(model: nn.Module) -> nn.Module:
    """The model with replacements where timm's own classes hard-code a width; it has copies of the weights.

    A graph has none of timm's classes.

    Raises:
        StructureError: the model doesn't say what it was made from.
    """
    description = describe(model)
    swaps = {path: blocks.SWAPS.get(blocks.class_name(module)) for path, module in model.named_modules()}
    classes = {path: name for path, name in swaps.items() if name}
    plan = description.plan + Plan((Swap(classes),)) if classes else description.plan
    return rebuilt(model, replace(description, plan=plan), tensors_of(model))


def planned(model: nn.Module, analysis: Analysis, units: Sequence[Tensor]) -> nn.Module:
    """The model cut by a plan, on the meta device, with its description.

    Args:
        model: from `swapped`.
        analysis: of that model.
        units: of each group, those that stay [k].

    Raises:
        StructureError: the classes of the model can't be built so, or would compute something else.
    """
    description = describe(model)
    if rescaled(analysis, units):
        raise StructureError(f"{description.name}: heads whose width is their attention's scale can't be narrowed")
    edit = narrow(model, analysis, units)
    cut_model = skeleton_of(replace(description, plan=description.plan + Plan((edit,))))
    config = config_of(model)
    forward_on_meta(cut_model, config["input_size"])
    return cut_model


def by_plan(
    program: ExportedProgram, model: nn.Module, image: Tensor, chosen: Chosen, whole: Whole = MappingProxyType({})
) -> Trial:
    """What plans can cut of a model from `swapped`; arguments and errors are those of `tried`."""
    buffers = {path: module._buffers.get(name) for path, (module, name) in computable(model).items()}
    again = {(path, dim): COMPUTED for path, held in buffers.items() if held is not None for dim in range(held.ndim)}
    return tried(program, model, image, chosen, partial(planned, model), NO_PLAN, again | dict(whole))


def plan_else_graph(
    model: nn.Module, image: Tensor, chosen: Chosen, whole: Whole = MappingProxyType({})
) -> tuple[Trial, str]:
    """What plans can cut of a model, or what graphs can where that isn't enough; of a graph that alone.

    Args:
        model: from `swapped`.
        image: one batch that it takes, [B, C, H, W].
        chosen: of an analysis whose groups plans can cut, the units kept; a BudgetError says that these are too few.
        whole: what isn't to be cut.

    Returns:
        The choice that stood, of graphs every second unit; and why it isn't a plan's, empty where it is.

    Raises:
        StructureError: the model can't be exported.
    """
    if describe(model).graph is not None:
        try:
            program = exported(model, image, DIMS)
        except StructureError:
            program = exported(model, image)
        return tried(program, model, image, halves, whole=whole), "model is one"
    program = exported(model, image)
    try:
        return by_plan(program, model, image, chosen, whole), ""
    except (BudgetError, StructureError) as error:
        return tried(program, model, image, halves, whole=whole), str(error)
