"""Image classification: transforms, classes by name, accuracy, predictions. Begin with `figures`.

`forgotten` tells which classes a compressed model knows no more.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from zoo.measurement.divergence import divergence
from zoo.tasks.classification.classes import check_same_classes, matched, name_classes_, subset
from zoo.tasks.classification.figures import agreement, figures, rows
from zoo.tasks.classification.forgotten import forgotten
from zoo.tasks.classification.predictions import predictions
from zoo.tasks.classification.transforms import Views, evaluation_transform, training_transform
from zoo.tasks.loader import loader
from zoo.tasks.task import Leading, Meaning, Task

LOGITS = Meaning(rows, figures, divergence, agreement, forgotten=forgotten)


def of_subset(classes: Sequence[int]) -> Meaning:
    """What logits mean on data with some of the model's classes."""
    return replace(LOGITS, rows=partial(rows, subset=classes))


CLASSIFICATION = Task(
    evaluation_transform=evaluation_transform,
    training_transform=training_transform,
    views=Views,
    loader=loader,
    matched=matched,
    name_=name_classes_,
    check_same=check_same_classes,
    predictions=predictions,
    meaning=lambda model, size: LOGITS,
    leading=Leading("top1", "top-1", "accuracy", "Top-1"),
    subset=subset,
    of_subset=of_subset,
)
