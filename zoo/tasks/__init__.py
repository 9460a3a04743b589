"""What a model is for: its data, its transforms, and the one loop that evaluates it.

TASKS has a row for each kind of models, which `task` describes and a package of its own fills; whatever else lies here
serves them all: an image comes from `datasets` through `pixels` into the batches of `loader`, and into `evaluation`.
"""

from torch import nn

from zoo.errors import UnknownName
from zoo.measurement.macs import unwrapped
from zoo.structure.description import DEFAULT_TASK, description_of
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.task import Task

TASKS: dict[str, Task] = {"image-classification": CLASSIFICATION}
"""By the Hub's pipeline tag."""


def task_of(model: nn.Module) -> Task:
    """What a model is for, as its description says; what has none is a classifier.

    Raises:
        UnknownName: this version has no such task.
    """
    description = description_of(unwrapped(model))
    return task_named(description.task if description else DEFAULT_TASK)


def task_named(name: str) -> Task:
    """A row of `TASKS`.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in TASKS:
        raise UnknownName(f"no task {name[:80]!r}: this version knows {', '.join(TASKS)}")
    return TASKS[name]
