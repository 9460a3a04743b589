"""Pruned models are told by a plan where what plans can cut meets the budget, else by a graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression import Algorithm, Given
from zoo.compression.channels import planning
from zoo.compression.channels.checking import CLOSE, cut, difference, graph_difference, halves
from zoo.compression.channels.groups import Analysis
from zoo.compression.exclusion import OTHERS, REASON, kept_whole
from zoo.compression.prune.allocation import allocate, prior
from zoo.compression.prune.prune import Prune, Pruned, prune
from zoo.errors import BudgetError, StructureError, UnknownName
from zoo.printable import logger
from zoo.structure.describing import describe
from zoo.structure.description import DEFAULT_TASK, Description
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import graph_module
from zoo.structure.plan import Plan
from zoo.structure.tensors import assign_, tensors_of

log = logger(__name__)

WITH_OTHERS = "its channels are those of a layer that stays whole"


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    dense, how, budget, image = planning.swapped(given.model), given.how, given.budget, given.batches[0][:2]
    assert budget is not None
    if how.criterion == "taylor" and given.description.task != DEFAULT_TASK:
        raise UnknownName(f"prune: taylor ranks by classes, the model is for {given.description.task}: take obs")
    buffers = {path: (held, held.shape) for path, held in dense.named_buffers()}  # timm's convit grows one in forward

    def enough(analysis: Analysis) -> Sequence[Tensor]:
        if not analysis.groups:
            raise _nothing(dense, how)
        allocate(analysis, prior(analysis), budget, how.round_to, how.floor)
        return halves(analysis)

    trial, no_plan = planning.plan_else_graph(dense, image, enough, kept_whole(dense, how.exclude, how.only, "prune"))
    if no_plan:
        enough(trial.analysis)  # before anything is measured
    found = prune(dense, trial.analysis, given.batches, budget, how, given.divergence)
    if not no_plan:
        try:
            structure, tensors = _plan(given.description, dense, trial.analysis, found, image)
        except StructureError as error:
            no_plan = str(error)
    if no_plan:
        structure, tensors = _graph(given.description, dense, trial.analysis, found, image)
        if given.description.graph is None:
            log.info("%s becomes a graph: by a plan, the %s", structure.name, no_plan)
    grown = {path for path, now in dense.named_buffers() if path in buffers and now.shape != buffers[path][1]}
    return structure, {**tensors, **{path: buffers[path][0] for path in grown & set(tensors)}}


def _nothing(dense: nn.Module, how: Prune) -> BudgetError:
    narrow = "; what reads a layer's channels changes with it, so name both, or their block, in only"
    return BudgetError(f"{type(dense).__name__}: no channels that can be cut were found{narrow if how.only else ''}")


def _plan(
    about: Description, dense: nn.Module, analysis: Analysis, found: Pruned, image: Tensor
) -> tuple[Description, Mapping[str, Tensor]]:
    smaller = planning.planned(dense, analysis, found.units)
    _check_close(about, difference(dense, analysis, found.units, smaller, image))
    return replace(about, plan=describe(smaller).plan), found.tensors


def _graph(
    about: Description, dense: nn.Module, analysis: Analysis, found: Pruned, image: Tensor
) -> tuple[Description, Mapping[str, Tensor]]:
    _check_close(about, graph_difference(dense, analysis, found.units, image))
    program = cut(analysis, found.units)
    graph, tensors = lift(program, {**program.constants, **found.tensors})
    return replace(about, plan=Plan(), graph=graph), tensors


def _check_close(about: Description, off: float) -> None:
    log.debug("%s: the cut is %.0e off the masked model", about.name, off)
    if off > CLOSE:
        raise StructureError(f"{about.name}: the cut model is {off:.1e} off the masked dense one, expected {CLOSE:.0e}")


def whole(model: nn.Module, image: Tensor, how: Prune) -> dict[str, str]:
    """Path of each layer none of whose outputs can be cut → why."""
    dense = planning.swapped(model)
    kept = kept_whole(dense, how.exclude, how.only, "prune")
    frozen = planning.plan_else_graph(dense, image, halves, kept)[0].analysis.frozen
    own = {path.rpartition(".")[0] for path, _ in kept}
    return {
        path: WITH_OTHERS if reason in (REASON, OTHERS) and path not in own else reason
        for path, reason in frozen.items()
    }


def rough(model: nn.Module, image: Tensor, how: Prune) -> Callable[[float], nn.Module]:
    """A share of the macs → the model cut to it by one share for all, the first units of each group staying."""
    dense = planning.swapped(model)
    trial, no_plan = planning.plan_else_graph(dense, image, halves, kept_whole(dense, how.exclude, how.only, "prune"))
    analysis, held = trial.analysis, tensors_of(dense)
    if not analysis.groups:
        raise _nothing(dense, how)

    def at(share: float) -> nn.Module:
        widths = allocate(analysis, prior(analysis), Budget(share), how.round_to, how.floor)
        units = [torch.arange(k) for k in widths]
        smaller, tensors = None, analysis.kept(units).select(held)
        if no_plan:
            program = cut(analysis, units)
            graph, tensors = lift(program, {**program.constants, **tensors})
            smaller = graph_module(graph)
        return assign_(smaller or planning.planned(dense, analysis, units), tensors, "the cut").eval()

    return at


ALGORITHM = Algorithm(Prune, run, whole=whole, rough=rough)
