"""Dense: what is pruned, the images it is pruned by, and cuts of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zoo.compression.calibration import judged
from zoo.compression.channels.groups import Analysis
from zoo.compression.prune.readers import Fits, fits, fittable, readers_of, written
from zoo.compression.prune.refit import Seen
from zoo.compression.repair import outputs, running
from zoo.errors import BudgetError
from zoo.measurement.divergence import Divergence
from zoo.structure.tensors import tensors_of


@dataclass(frozen=True, eq=False)
class Dense:
    """A model and the images that it is pruned by.

    Args:
        model: in eval mode.
        analysis: what can be cut of it; readers that can't be fitted are told apart.
        tensors: path → tensor, on the CPU, like the linear algebra, wherever the model is.
        fit: batches of the images [B, C, H, W] that readers are fitted to while widths are chosen.
        held: of those held back, which say what a cut does; of too few images, all of them once more.
        seen: moments of its readers.
        target: what it puts out for the images held back, in double precision.
        ridge: of the refit.
        divergence: of outputs from the model's own.
    """

    model: nn.Module
    analysis: Analysis
    tensors: Mapping[str, Tensor]
    fit: Sequence[Tensor]
    held: Sequence[Tensor]
    seen: Seen
    target: Tensor
    ridge: float
    divergence: Divergence

    def fitted(self, units: Sequence[Tensor], *, whole: bool = False) -> Fits:
        """The readers of what is cut, fitted to the units that stay of each group.

        Args:
            units: of each group, those that stay [k].
            whole: on all images, not on those alone that widths are chosen by.
        """
        groups, fitted = self.analysis.groups, dict[str, tuple[Tensor, Tensor]]()
        cut = readers_of([group for group, kept in zip(groups, units, strict=True) if len(kept) < group.units])
        for portion, parts in self.seen.portions([[path] for path in cut]):
            for path in cut[portion]:  # one by one: moments of all images are made when they are asked for
                seen = {path: parts[path].whole if whole else parts[path].fit}
                fitted |= fits(self.tensors, groups, units, seen, self.ridge)
        return fitted

    def cut(self, units: Sequence[Tensor], fitted: Fits) -> dict[str, Tensor]:
        """Path → tensor of the narrowed model."""
        return self.analysis.kept(units).select(written(self.analysis, self.tensors, fitted))

    def off(self, units: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """Divergence of a narrowed model's outputs for each of the images held back, in nats."""
        return self.divergence(outputs(running(self.analysis.kept(units)), tensors, self.held), self.target)


def dense_of(
    model: nn.Module, analysis: Analysis, batches: Sequence[Tensor], ridge: float, divergence: Divergence
) -> Dense:
    """Tell readers apart that can't be fitted, and hold a part of the images back.

    Args:
        model: in eval mode.
        analysis: of it.
        batches: calibration images [B, C, H, W].
        ridge: of the refit.
        divergence: of outputs from the model's own.

    Raises:
        BudgetError: nothing of the model can be cut.
    """
    analysis = fittable(model, analysis, batches[0][:1])
    if not analysis.groups:
        raise BudgetError(f"{type(model).__name__}: no channels that can be cut were found")
    tensors = {path: tensor.detach().cpu() for path, tensor in tensors_of(model).items()}
    fit, held = judged(batches)
    seen = Seen(model, readers_of(analysis.groups), fit, held, analysis.normalised)
    target = outputs(running(analysis.kept(analysis.every)), tensors, held)
    return Dense(model, analysis, tensors, fit, held, seen, target, ridge, divergence)
