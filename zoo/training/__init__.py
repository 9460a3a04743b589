"""The one training loop and what it minimises.

STEPS has a row for each task of `zoo.tasks.TASKS`; it stands apart from those, as loading may reach no training.
Begin with `trainer`; `distillation` has the steps, `losses` what they minimise, `schedule` how long and how fast.
"""

from collections.abc import Callable
from dataclasses import dataclass

from zoo.training.distillation import Step, distil_step, task_step


@dataclass(frozen=True)
class Steps:
    """How models of one task learn.

    Args:
        train: the step of a model without teachers.
        distil: teachers, declaration, the student's `pretrained_cfg` and views, as `distil_step` takes them → a step.
    """

    train: Step
    distil: Callable[..., Step]


STEPS: dict[str, Steps] = {"image-classification": Steps(task_step, distil_step)}
"""By the Hub's pipeline tag."""
