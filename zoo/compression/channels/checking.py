"""Checking: every cut is compared with the dense model in which whoever reads a cut channel reads a zero."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from zoo.compression.channels import cutting, reference
from zoo.compression.channels.analysis import Whole, analyse
from zoo.compression.channels.groups import Analysis
from zoo.errors import StructureError
from zoo.printable import logger
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import graph_module
from zoo.structure.tensors import assign_, tensors_of

_log = logger(__name__)
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_DIFFERS = "cut, it doesn't compute what the masked dense model computes"
CLOSE = 1e-6  # of a cut to the masked dense model, as a share of the largest output, in double precision

Made = Callable[[Analysis, Sequence[Tensor]], nn.Module | ExportedProgram]
"""An analysis, and of each group the units kept [k] → the cut model."""
Chosen = Callable[[Analysis], Sequence[Tensor]]
"""An analysis → of each group the units kept [k]."""
Agrees = Callable[[Sequence[int]], bool]
"""Groups that are cut together → whether the check stands."""


def difference(
    model: nn.Module,
    analysis: Analysis,
    units: Sequence[Tensor],
    cut: nn.Module | ExportedProgram,
    image: Tensor,
) -> float:
    """Compare a cut with the dense model in which whoever reads a cut channel reads a zero.

    Both run in double precision with other weights, so the values of `cut` don't matter; norms over channels are those
    of the channels that stay. The cut is given one image and two.

    Args:
        model: dense.
        analysis: its groups.
        units: of each group, indices of the units kept [k].
        cut: the narrowed model (on any device, the meta device included), or what `cut` returned.
        image: one batch that it takes, [B, C, H, W].

    Returns:
        The largest difference, as a share of the largest output; infinite where the cut doesn't run.
    """
    kept = analysis.kept(units)

    def run(tensors: Mapping[str, Tensor], batch: Tensor) -> Any:
        if isinstance(cut, ExportedProgram):
            return reference.run_program(cut, kept.traced.paths, tensors, batch, reference.Double(cut.graph_module))
        with reference.DoubleCalls():
            return torch.func.functional_call(cut, {path: tensors[path] for path in tensors_of(cut)}, (batch,))

    return reference.compare(kept, tensors_of(model), run, image)


def graph_difference(model: nn.Module, analysis: Analysis, units: Sequence[Tensor], image: Tensor) -> float:
    """Compare the cut that is saved as a graph with the masked dense model, as `difference` does.

    Raises:
        StructureError: the cut program can't be written as a graph.
    """
    kept = analysis.kept(units)
    program = cutting.cut_program(kept)

    def run(tensors: Mapping[str, Tensor], batch: Tensor) -> Any:
        graph, held = lift(program, tensors)
        return assign_(graph_module(graph), held, "cut")(batch)

    return reference.compare(kept, tensors_of(model), run, image)


def cut(analysis: Analysis, units: Sequence[Tensor]) -> ExportedProgram:
    """Cut the exported graph itself.

    Args:
        analysis: of the model.
        units: of each group, indices of the units kept [k].

    Returns:
        A program for the tensors that `analysis.kept(units).select` returns.
    """
    return cutting.cut_program(analysis.kept(units))


def rescaled(analysis: Analysis, units: Sequence[Tensor]) -> bool:
    """Whether an attention without a scale of its own would divide by the root of another width once it is cut.

    Args:
        analysis: of the model.
        units: of each group, indices of the units kept [k].

    Returns:
        Whether it must be told its scale, as `cut` does and a module can't.
    """
    kept = analysis.kept(units)
    attentions = kept.traced.program.graph.find_nodes(op="call_function", target=_ATTENTION)
    return any(cutting.rewritten(kept, node)[2] != dict(node.kwargs) for node in attentions)


@dataclass(frozen=True, eq=False)
class Trial:
    """A cut that was made and computes what the masked dense model computes.

    Args:
        analysis: of the dense model; what couldn't be cut so is frozen.
        units: of each group, indices of the units kept [k].
        off: the largest difference, as a share of the largest output.
    """

    analysis: Analysis
    units: Sequence[Tensor]
    off: float


def tried(
    program: ExportedProgram,
    model: nn.Module,
    image: Tensor,
    chosen: Chosen,
    made: Made = cut,
    reason: str = _DIFFERS,
    whole: Whole = MappingProxyType({}),
) -> Trial:
    """Analyse, choose, cut and check until a choice of units stands the check, freezing what doesn't.

    Args:
        program: the model, `exported`.
        model: in eval mode.
        image: one batch that it takes, [B, C, H, W].
        chosen: of an analysis whose groups can all be made, the units kept.
        made: makes the cut model, which may raise StructureError; the exported graph itself is cut by default.
        reason: what `frozen` says of channels that aren't cut rightly.
        whole: what isn't to be cut.

    Returns:
        The choice that stood.

    Raises:
        StructureError: the model doesn't give the same twice.
        ZooError: what `chosen` raises, to give up before the next check.
    """
    frozen = dict(whole)
    while True:
        analysis = analyse(program, model, frozen)
        kinds = _kinds(analysis)
        guilty = _guilty(kinds, partial(_runs, analysis, made))  # first what can't be made: that costs little
        if not guilty:
            units = chosen(analysis)
            off = _off(model, analysis, made, image, units)
            if off <= CLOSE:
                return Trial(analysis, units, off)
            if not kinds:
                raise StructureError(f"{type(model).__name__} differs from itself by {off:.0e}: no cut can be checked")
            guilty = _spoiling(kinds, partial(_agrees, model, analysis, made, image, units))
        for group in (analysis.groups[g] for g in guilty):
            _log.debug("%s: %s; frozen", group.name, reason)
            frozen |= {(piece.tensor, piece.dim): reason for piece in group.slices}


def halves(analysis: Analysis) -> list[Tensor]:
    """Every second unit of each group."""
    return [torch.arange(0, group.units, 2) for group in analysis.groups]


def _kinds(analysis: Analysis) -> list[list[int]]:
    """Groups by what those of repeated blocks have in common: most often, all of a kind spoil a check or none."""
    kinds: dict[str, list[int]] = {}
    for g, group in enumerate(analysis.groups):
        kinds.setdefault(re.sub(r"\d+", "", group.name), []).append(g)
    return [kinds[name] for name in sorted(kinds)]


def _part(analysis: Analysis, units: Sequence[Tensor], those: Sequence[int]) -> list[Tensor]:
    """The units chosen of these groups, all of the others."""
    return [units[g] if g in those else whole for g, whole in enumerate(analysis.every)]


def _runs(analysis: Analysis, made: Made, those: Sequence[int]) -> bool:
    try:
        made(analysis, _part(analysis, halves(analysis), those))
    except StructureError:
        return False
    return True


def _agrees(
    model: nn.Module, analysis: Analysis, made: Made, image: Tensor, units: Sequence[Tensor], those: Sequence[int]
) -> bool:
    return _off(model, analysis, made, image, _part(analysis, units, those)) <= CLOSE


def _off(model: nn.Module, analysis: Analysis, made: Made, image: Tensor, units: Sequence[Tensor]) -> float:
    try:
        return difference(model, analysis, units, made(analysis, units), image)
    except StructureError:  # what runs together needn't run in parts
        return float("inf")


def _guilty(kinds: Sequence[Sequence[int]], agrees: Agrees, beside: Sequence[int] = ()) -> list[int]:
    """The groups that spoil a check, by bisection beside others that don't."""
    those = [g for kind in kinds for g in kind]
    return [] if not those or agrees([*beside, *those]) else _spoiling(kinds, agrees, beside)


def _spoiling(kinds: Sequence[Sequence[int]], agrees: Agrees, beside: Sequence[int] = ()) -> list[int]:
    """The same of groups whose check has failed: if the first half doesn't spoil it, the second does."""
    if len(kinds) < 2:
        return _alike(kinds[0], agrees, beside)
    first, second = kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]
    guilty = _guilty(first, agrees, beside)
    stood = [*beside, *(g for kind in first for g in kind if g not in guilty)]
    return [*guilty, *_guilty(second, agrees, stood)] if guilty else _spoiling(second, agrees, stood)


def _alike(kind: Sequence[int], agrees: Agrees, beside: Sequence[int]) -> list[int]:
    """The same of one kind: if the first one spoils it, most likely all do, and each is looked at."""
    first, *others = kind
    if others and agrees([*beside, first]):
        return _spoiling([[g] for g in others], agrees, [*beside, first])
    guilty, stood = [first], [*beside]
    for g in others:
        (stood if agrees([*stood, g]) else guilty).append(g)
    return guilty
