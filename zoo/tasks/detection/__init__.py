"""Object detection: images with boxes, and what a detector makes of them.

Begin with `figures`, which are of average `precision`; `transforms` and `mosaic` make the `batches`; `predictions` are
what a user is given.
"""

from zoo.tasks.classification.classes import name_classes_
from zoo.tasks.detection.batches import check_same, detection_loader, matched, views
from zoo.tasks.detection.figures import meaning
from zoo.tasks.detection.predictions import predictions
from zoo.tasks.detection.transforms import evaluation_transform, in_epoch, training_transform
from zoo.tasks.task import Leading, Task

DETECTION = Task(
    evaluation_transform=evaluation_transform,
    training_transform=training_transform,
    views=views,
    loader=detection_loader,
    matched=matched,
    name_=name_classes_,
    check_same=check_same,
    predictions=predictions,
    meaning=meaning,
    leading=Leading("map", "mAP", "map", "mAP50-95"),
    outputs="heads",
    in_epoch=in_epoch,
)
