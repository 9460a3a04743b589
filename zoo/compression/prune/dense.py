"""Dense: what is pruned, by which images, and cuts of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.compression.calibration import dealt
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune.readers import fits, fittable, readers_of, written
from zoo.compression.prune.refit import Seen
from zoo.compression.repair import Watched, narrowed, running, watch
from zoo.errors import BudgetError
from zoo.measurement.divergence import Divergence
from zoo.structure.tensors import tensors_of


@dataclass(frozen=True, eq=False)
class Dense:
    """A model, and the images that it is pruned by.

    Args:
        model: in eval mode.
        analysis: what can be cut of it; readers that can't be fitted are told apart.
        tensors: path → tensor, on the CPU, like the linear algebra, wherever the model is.
        batches: images [B, C, H, W].
        seen: moments of its readers.
        ridge: of the refit.
        divergence: of outputs from the model's own.
    """

    model: nn.Module
    analysis: Analysis
    tensors: Mapping[str, Tensor]
    batches: Sequence[Tensor]
    seen: Seen
    ridge: float
    divergence: Divergence

    @property
    def every(self) -> list[Tensor]:
        """Of each group, all its units."""
        return [torch.arange(group.units) for group in self.analysis.groups]

    def first(self, images: int) -> list[Tensor]:
        """The first so many images, in batches."""
        return dealt([torch.cat([*self.batches])[:images]])

    def fitted(self, units: Sequence[Tensor]) -> dict[str, Tensor]:
        """Path → tensor of the narrowed model, its readers fitted to the units that stay of each group."""
        groups, tensors = self.analysis.groups, dict(self.tensors)
        cut = {p for group, kept in zip(groups, units, strict=True) if len(kept) < group.units for p in group.readers}
        paths = [path for path in self.seen.bytes if path in cut]
        for portion, moments in self.seen.portions([[path] for path in paths]):
            asked = {path: moments[path] for path in paths[portion]}
            tensors = written(self.analysis, tensors, fits(self.tensors, groups, units, asked, self.ridge))
        return self.analysis.kept(units).select(tensors)

    def watched(self, batches: Sequence[Tensor]) -> Watched:
        """What the model itself gives for images."""
        return watch(running(self.analysis.kept(self.every)), self.tensors, batches)

    def output(
        self,
        units: Sequence[Tensor],
        tensors: Mapping[str, Tensor],
        batches: Sequence[Tensor],
        repaired: Watched | None = None,
    ) -> Tensor:
        """What a narrowed model gives for images, repaired by what the dense one gave for them where that is known."""
        kept = self.analysis.kept(units)
        return watch(running(kept), tensors, batches, repaired and narrowed(repaired, kept)).output

    def far(self, output: Tensor, target: Tensor) -> float:
        """Mean divergence of outputs, in nats."""
        return float(self.divergence(output, target).mean())


def dense_of(
    model: nn.Module, analysis: Analysis, batches: Sequence[Tensor], ridge: float, divergence: Divergence
) -> Dense:
    """Tell readers apart that can't be fitted, and deal the images into even batches.

    Args:
        model: in eval mode.
        analysis: of it.
        batches: calibration images [B, C, H, W].
        ridge: of the refit.
        divergence: of outputs from the model's own.

    Raises:
        BudgetError: nothing of the model can be cut.
    """
    analysis, batches = fittable(model, analysis, batches[0][:1]), dealt(batches)
    if not analysis.groups:
        raise BudgetError(f"{type(model).__name__}: no channels that can be cut were found")
    tensors = {path: tensor.detach().cpu() for path, tensor in tensors_of(model).items()}
    seen = Seen(model, readers_of(analysis.groups), batches, analysis.normalised)
    return Dense(model, analysis, tensors, batches, seen, ridge, divergence)
