"""What a model is for: its data, its transforms, and the one loop that evaluates it.

TASKS has a row for each kind of models, a value of `task` that a package or file of its own fills; whatever else lies
here serves them all: an image comes from `datasets` through `pixels` into the batches of `loader`, and into
`evaluation`.
To add one:

1. write its package or file: rows, figures and the divergence between two models' outputs, pure functions of tensors
   that make a `Meaning`; transforms, predictions and checks where `classification` has none that fit;
2. write its row of TASKS, by the Hub's pipeline tag;
3. write its row of `zoo.training.STEPS`: what is minimised, with teachers and without;
4. say its name as the `task` of an entry of the catalog.

`load`, `compress`, `distil`, `build`, `verify` and cards then know it, as `tests/test_new_task.py` does all four.
"""

from torch import nn

from zoo.errors import UnknownName
from zoo.measurement.macs import unwrapped
from zoo.structure.description import DEFAULT_TASK, OTHER_TASK, description_of
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.detection import DETECTION
from zoo.tasks.features import FEATURES
from zoo.tasks.task import Task
from zoo.tasks.text_classification import TEXT_CLASSIFICATION

TASKS: dict[str, Task] = {
    DEFAULT_TASK: CLASSIFICATION,
    "object-detection": DETECTION,
    "text-classification": TEXT_CLASSIFICATION,
    OTHER_TASK: FEATURES,
}
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
