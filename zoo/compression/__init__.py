"""Dense model in, description and weights of a smaller one out.

Each method is one file, which reads like its paper, and one row of `zoo.catalog.methods.METHODS`. To add one:

1. write its file: the declaration, a frozen dataclass with all defaults; what it computes; at the end
   `ALGORITHM = Algorithm(Declaration, run)`, `run` taking what is `Given` (of one that trains also its schedule, and
   what is `Trained`);
2. write its row, which names the file and says the words of listings, cards and the command line.

`zoo.compress`, recipes, the command line, costs, cards and smoke tests then know it. To read on: `prune/prune.py` or
`low_rank/falor.py`, and what they share: `activations`, `calibration`, `repair`, and in `channels/` the groups; and
`refinement`, which may follow any of them, and `latency`, which a budget may stand for.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.catalog.methods import runnable
from zoo.measurement.curvature import CLASSES, Fisher
from zoo.measurement.divergence import Divergence, divergence
from zoo.structure.description import Description
from zoo.structure.plan import Edit, Plan
from zoo.training.schedule import Machine, Schedule


@dataclass(frozen=True, eq=False)
class Given:
    """What a method is given.

    Args:
        model: in eval mode; left as it was.
        description: of the model to be made, before the method's own edit.
        how: the method's declaration.
        batches: calibration images [B, C, H, W].
        budget: shares that stay; None of a method with thresholds.
        seed: of what is random.
        state: a file to resume from.
        divergence: of outputs from the dense model's, as the task measures it.
        fisher: how that bends.
        labels: of each batch its classes [B]; these and what follows are for a method that trains.
        epoch: its number → loader of training batches.
        schedule: of the training.
        machine: how it runs here.
    """

    model: nn.Module
    description: Description
    how: Any
    batches: Sequence[Tensor]
    budget: Budget | None = None
    seed: int = 0
    state: Path | None = None
    divergence: Divergence = divergence
    fisher: Fisher = CLASSES
    labels: Sequence[Tensor] = ()
    epoch: Any = None
    schedule: Schedule | None = None
    machine: Machine | None = None

    def edited(self, edit: Edit) -> Description:
        """The description with one edit more."""
        return replace(self.description, plan=self.description.plan + Plan((edit,)))


@dataclass(frozen=True, eq=False)
class Trained:
    """What a method trains.

    Args:
        student: the network whose forward pass is trained.
        beside: the dense model runs within it, forward only.
        times: how often the schedule is gone through.
        at_most: it may be fewer times, or smaller.
    """

    student: nn.Module
    beside: bool = False
    times: int = 1
    at_most: bool = False


@dataclass(frozen=True)
class Algorithm:
    """What runs a method.

    Args:
        declaration: its dataclass, with all defaults.
        run: what is given → the smaller model's description, and path → tensor of it.
        schedule: its default, of a method that trains before the structure is known; None of the others.
        trained: dense model in eval mode, images [B, C, H, W] that it takes, declaration → what is trained.
        whole: the same arguments → path of each layer that the method can't change → why.
        rough: the same arguments → a function from a share of the macs to a cut of about that structure, which needs
            no images, for whoever wants to time it; of a method that works to a budget.
    """

    declaration: type[Any]
    run: Callable[[Given], tuple[Description, Mapping[str, Tensor]]]
    schedule: Schedule | None = None
    trained: Callable[[nn.Module, Tensor, Any], Trained] | None = None
    whole: Callable[[nn.Module, Tensor, Any], Mapping[str, str]] | None = None
    rough: Callable[[nn.Module, Tensor, Any], Callable[[float], nn.Module]] | None = None


def algorithm(method: str) -> Algorithm:
    """What runs a method, from its file.

    Raises:
        UnknownName: there is no such method here.
    """
    loaded: Algorithm = importlib.import_module(runnable(method).module).ALGORITHM
    return loaded
