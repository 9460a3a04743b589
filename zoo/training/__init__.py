"""The one training loop and what it minimises.

Read `trainer`, the loop, with `schedule` (how long, how fast, and how on this machine), then `distillation` (the steps)
and `losses` (what they minimise); `detection` is both of detectors, with `distances` (by `assignment`), `multibox` and
`cells` for each kind of heads, whose losses are `weighed`. Beside the loop: `accelerated`, `checkpoint`, `ema`,
`interruption`, and `frozen_zeros` of pruned weights. STEPS has a row for each task of `zoo.tasks.TASKS`; it stands
apart from those, as loading may reach no training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from zoo.errors import UnknownName
from zoo.structure.description import DEFAULT_TASK, OTHER_TASK
from zoo.training.detection import detector_distil_step, detector_step
from zoo.training.distillation import Step, distil_step, task_step, untaught_step
from zoo.training.losses import imitation


@dataclass(frozen=True)
class Steps:
    """How models of one task learn.

    Args:
        train: the step of a model without teachers.
        distil: teachers, declaration, the student's `pretrained_cfg` and views, as `distil_step` takes them → a step.
    """

    train: Step
    distil: Callable[..., Step]


STEPS: dict[str, Steps] = {
    DEFAULT_TASK: Steps(task_step, distil_step),
    "object-detection": Steps(detector_step, detector_distil_step),
    OTHER_TASK: Steps(untaught_step, partial(distil_step, loss=imitation)),
    "text-classification": Steps(task_step, distil_step),
}
"""By the Hub's pipeline tag."""


def steps_of(task: str) -> Steps:
    """A row of `STEPS`.

    Raises:
        UnknownName: there is none for that task.
    """
    if task not in STEPS:
        raise UnknownName(f"no training for the task {task!r}: this version trains for {', '.join(STEPS)}")
    return STEPS[task]
