"""Checking: every cut is compared with the dense model in which whoever reads a cut channel reads a zero."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from zoo.compression import cutting, masked
from zoo.compression.groups import Analysis, exported, trace
from zoo.errors import StructureError
from zoo.hub import weights
from zoo.structure import base
from zoo.structure.exported import lift
from zoo.structure.graph import build

_log = logging.getLogger(__name__)
_DIFFERS = "cut, it doesn't compute what the masked dense model computes"
CLOSE = 1e-6  # of a cut to the masked dense model, as a share of the largest output, in double precision

Made = Callable[[Analysis, Sequence[Tensor]], nn.Module | ExportedProgram]
"""An analysis, and of each group the units kept [k] → the cut model."""


def check(
    model: nn.Module,
    analysis: Analysis,
    units: Sequence[Tensor],
    cut: nn.Module | ExportedProgram,
    image: Tensor,
    batches: Sequence[int] = (1, 2),
) -> float:
    """Compare a cut with the dense model in which whoever reads a cut channel reads a zero.

    Both run in double precision with other weights, so the values of `cut` don't matter; norms over channels are those
    of the channels that stay.

    Args:
        model: dense.
        analysis: its groups.
        units: of each group, indices of the units kept [k].
        cut: the narrowed model (on any device, the meta device included), or what `cut` returned.
        image: one batch that it takes, [B, C, H, W].
        batches: how many images at a time, 1 or 2.

    Returns:
        The largest difference, as a share of the largest output; infinite where the cut doesn't run.
    """

    def program(tensors: Mapping[str, Tensor], batch: Tensor) -> Any:
        assert analysis.traced is not None
        assert isinstance(cut, ExportedProgram)
        return masked.run(cut, analysis.traced.paths, tensors, batch, masked.Double(cut.graph_module))

    def module(tensors: Mapping[str, Tensor], batch: Tensor) -> Any:
        assert isinstance(cut, nn.Module)
        return torch.func.functional_call(cut, {path: tensors[path] for path in base.tensors(cut)}, (batch,))

    return _off(model, analysis, units, program if isinstance(cut, ExportedProgram) else module, image, batches)


def check_graph(model: nn.Module, analysis: Analysis, units: Sequence[Tensor], image: Tensor) -> float:
    """Compare the cut that is saved as a graph with the masked dense model, as `check` does.

    Raises:
        StructureError: the cut program can't be written as a graph.
    """
    program = cut(analysis, units)

    def graph(tensors: Mapping[str, Tensor], batch: Tensor) -> Any:
        found, held = lift(program, tensors)
        return weights.assign_(build(found), held, "cut")(batch)

    return _off(model, analysis, units, graph, image, (1, 2))


def _off(
    model: nn.Module,
    analysis: Analysis,
    units: Sequence[Tensor],
    cut: masked.Cut,
    image: Tensor,
    batches: Sequence[int],
) -> float:
    assert analysis.traced is not None
    return masked.check(analysis.traced, _gone(analysis, units), base.tensors(model), cut, image, batches)


def cut(analysis: Analysis, units: Sequence[Tensor]) -> ExportedProgram:
    """Cut the exported graph itself.

    Args:
        analysis: of the model.
        units: of each group, indices of the units kept [k].

    Returns:
        A program for the tensors that `select` returns.
    """
    assert analysis.traced is not None
    return cutting.cut(analysis.traced, _gone(analysis, units))


class _Recalibrating(fx.Interpreter):
    """Takes the statistics of batch norms from the images that it is given."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target == torch.ops.aten.batch_norm.default:
            args = (*args[:3], None, None, True, 0.0, *args[7:])
        return super().call_function(target, args, kwargs)


def run(analysis: Analysis, units: Sequence[Tensor], tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What a cut model gives once its batch norms are recalibrated.

    Args:
        analysis: of the dense model.
        units: of each group, indices of the units kept [k].
        tensors: path → tensor of the narrowed model.
        images: [B, C, H, W].

    Returns:
        Its outputs, several end to end [n].
    """
    assert analysis.traced is not None
    program, constants = cut(analysis, units), analysis.traced.program.constants
    how = _Recalibrating(program.graph_module)
    return masked.run(program, analysis.traced.paths, {**constants, **tensors}, images, how)


def _gone(analysis: Analysis, units: Sequence[Tensor]) -> Tensor:
    gone = [torch.zeros(0, dtype=torch.long)]
    for roots, kept in zip(analysis.roots, units, strict=True):
        stays = torch.zeros(len(roots), dtype=torch.bool)
        stays[kept] = True
        gone.append(roots[~stays])
    return torch.cat(gone)


def checked(model: nn.Module, image: Tensor, made: Made = cut, reason: str = _DIFFERS) -> Analysis:
    """Analyse a model, and freeze what doesn't compute what the masked dense model computes once it is cut.

    Args:
        model: in eval mode.
        image: one batch that it takes, [B, C, H, W].
        made: makes the cut model, which may raise StructureError; the exported graph itself is cut by default.
        reason: what `frozen` says of channels that aren't cut rightly.

    Returns:
        An analysis whose groups were all cut so, every second unit of them and for two images; `frozen` says why the
        others can't. Whoever chooses units checks them.

    Raises:
        StructureError: the model can't be exported.
    """
    program, frozen = exported(model, image), dict[tuple[str, int], str]()
    while True:
        analysis = trace(program, model, frozen)
        every = range(len(analysis.groups))
        guilty = _guilty(every, partial(_runs, analysis, made))  # first what can't be made: that costs little
        guilty = guilty or _guilty(every, partial(_agrees, model, analysis, made, image))
        if not guilty:
            return analysis
        for group in (analysis.groups[g] for g in guilty):
            _log.debug("%s: %s; frozen", group.name, reason)
            frozen |= {(piece.tensor, piece.dim): reason for piece in group.slices}


def _halved(analysis: Analysis, those: Sequence[int]) -> list[Tensor]:
    """Every second unit of these groups, all of the others."""
    return [torch.arange(0, group.units, 2 if g in those else 1) for g, group in enumerate(analysis.groups)]


def _runs(analysis: Analysis, made: Made, those: Sequence[int]) -> bool:
    try:
        made(analysis, _halved(analysis, those))
    except StructureError:
        return False
    return True


def _agrees(model: nn.Module, analysis: Analysis, made: Made, image: Tensor, those: Sequence[int]) -> bool:
    units = _halved(analysis, those)
    try:
        return check(model, analysis, units, made(analysis, units), image, (2,)) <= CLOSE
    except StructureError:  # what runs together needn't run in parts
        return False


def _guilty(those: Sequence[int], agrees: Callable[[Sequence[int]], bool]) -> list[int]:
    """The groups that spoil a check, by bisection; all of them where only together they do."""
    if not those or agrees(those):
        return []
    if len(those) == 1:
        return list(those)
    half = len(those) // 2
    return [*_guilty(those[:half], agrees), *_guilty(those[half:], agrees)] or list(those)
