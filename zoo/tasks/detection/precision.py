"""Average precision: COCO's, by faster-coco-eval, and PASCAL VOC 2007's.

Both go through the detections of a class from high scores to low. One is right where it overlaps an object that no
better one has found, and wrong elsewhere; the figure is the mean of precision over recall, of classes with objects.

                    COCO                                  VOC 2007
    overlap         IoU .5, .55, ..., .95, their mean     IoU .5
    compared with   objects that aren't found yet         the object that it overlaps most
    recall          0, .01, ..., 1                        0, .1, ..., 1
    crowd           neither right nor wrong, for finding  as COCO's, by IoU
                    a part of it, however often
    difficult       as any other                          as a crowd
    of an image     the best 100 of each class            all

Sources: T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", arXiv:1405.0312, and
https://cocodataset.org/#detection-eval; M. Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge",
IJCV 88, 2010, section 4.2.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import DataError, require
from zoo.models.targets import CROWD, DIFFICULT, ORDINARY, PAD

COCO_FIGURES = (
    *("map", "map50", "map75", "map_small", "map_medium", "map_large"),
    *("mar1", "mar10", "mar100", "mar_small", "mar_medium", "mar_large"),
)
"""Mean average precision and recall, in the order of COCO's summary."""


def coco_precision(detections: Tensor, targets: Tensor, classes: int) -> dict[str, Any]:
    """Average precision as COCO measures it.

    Formula: AP of a class and an overlap = mean over r = 0, 0.01, ..., 1 of max {precision at recalls >= r}.

    Args:
        detections: [N, K, 6], x1, y1, x2, y2 in pixels, score, label; filled up by rows of -1.
        targets: [N, 1 + M, 7], as `zoo.models.targets` says.
        classes: how many there are.

    Returns:
        Those of `COCO_FIGURES` (0..1) that there are objects for: of all, of at most 32², 96² and more square pixels,
        and of 1, 10 and 100 detections of a class and an image; and for each class in order `per_class`, its `map`, and
        `per_class50`, its `map50`, None where it has no objects, and `objects`, how many it has.

    Raises:
        DataError: all objects are crowds, or there are none; a value isn't finite; a label is none of the classes.
    """
    found, objects = _checked(detections, targets, classes)
    counts = _count(objects, (ORDINARY, DIFFICULT), classes)
    library = require("faster_coco_eval", "detect")
    truth = [
        _annotation(image, box, label, crowd=flag == CROWD, area=area)
        for image, *box, label, flag, area in _rows(objects)
    ]
    results = [_annotation(image, box, label, score=score) for image, *box, score, label in _rows(found)]
    known, judged = (library.COCO(_dataset(each, len(found), classes)) for each in (truth, results))
    evaluation = library.COCOeval_faster(known, judged, "bbox")
    evaluation.run()
    figures = {key: float(value) for key, value in zip(COCO_FIGURES, evaluation.stats, strict=True) if value >= 0}
    precisions = evaluation.eval["precision"][:, :, :, 0, -1]  # overlaps, recalls, classes
    means = {"per_class": precisions.transpose(2, 0, 1), "per_class50": precisions[0].T}
    apart = {key: [float(p.mean()) if p.min() >= 0 else None for p in each] for key, each in means.items()}
    return {**figures, **apart, "objects": counts}


def voc07_precision(detections: Tensor, targets: Tensor, classes: int) -> dict[str, Any]:
    """Average precision as PASCAL VOC measured it in 2007.

    Formula: AP of a class = mean over r = 0, 0.1, ..., 1 of max {precision at recalls >= r}.

    Args:
        detections: as for `coco_precision`.
        targets: as for `coco_precision`. Sides are continuous, where a file of VOC counts the pixels: xmin - 1 to xmax.
        classes: how many there are.

    Returns:
        `map50_voc07` (0..1), and `per_class`, the precision of each class, None where it has no objects.

    Raises:
        DataError: as for `coco_precision`; all objects are crowds or difficult.
    """
    found, objects = _checked(detections, targets, classes)
    counts = _count(objects, (ORDINARY,), classes)
    every = torch.cat([_judged(*each) for each in zip(found, objects, strict=True)])
    every = every[every[:, 0].argsort(descending=True, stable=True)]
    verdicts = [every[every[:, 1] == label, 2] for label in range(classes)]
    per_class = [_eleven_points(*each) if each[1] else None for each in zip(verdicts, counts, strict=True)]
    known = [each for each in per_class if each is not None]
    return {"map50_voc07": sum(known) / len(known), "per_class": per_class}


def _judged(found: Tensor, objects: Tensor) -> Tensor:
    """Of an image's detections, best first: score, label, and whether it is right: 1, 0, or -1 if it doesn't count."""
    from torchvision.ops import box_iou  # torchvision takes long to import

    found = found[found[:, 4].argsort(descending=True, stable=True)]
    overlaps = box_iou(found[:, :4], objects[:, :4]).nan_to_num() * (found[:, 5:] == objects[:, 4])
    most, nearest = F.pad(overlaps, (0, 1)).max(1)  # an image without objects has one that nothing overlaps
    hit = most >= 0.5
    again = (hit & (nearest[:, None] == nearest)).tril(-1).any(1)
    counts = ~hit | (F.pad(objects[:, 5], (0, 1))[nearest] == ORDINARY)
    return torch.stack([found[:, 4], found[:, 5], torch.where(counts, (hit & ~again).double(), -1)], 1)


def _eleven_points(verdicts: Tensor, objects: int) -> float:
    """The average precision of a class, from the verdicts of its detections, best first."""
    hits = verdicts[verdicts >= 0].cumsum(0)
    precisions = hits / torch.arange(1, len(hits) + 1)
    best = [precisions[10 * hits >= tenth * objects] for tenth in range(11)]
    return sum(float(each.max()) for each in best if len(each)) / len(best)


def _checked(detections: Tensor, targets: Tensor, classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """What was found in each image, and what is there."""
    return _by_image("detections", detections, 5, classes), _by_image("targets", targets[:, 1:], 4, classes)


def _by_image(what: str, rows: Tensor, label: int, classes: int) -> list[Tensor]:
    """Each image's rows but what fills up; the class stands in the column `label`."""
    rows = rows.detach().cpu().double()
    real = (rows != PAD).any(2)
    labels = rows[..., label]
    known = (labels >= 0) & (labels < classes) & (labels == labels.round())
    for wrong, expected in ((~rows.isfinite().all(2), "finite values"), (~known, f"a label of {classes} classes")):
        if (image := (wrong & real).any(1).nonzero()).numel():
            number = int(image[0])
            row = rows[number][(wrong & real)[number]][0]
            raise DataError(f"{what} of image {number}: expected {expected}, found the row {row.tolist()}")
    return [each[kept] for each, kept in zip(rows, real, strict=True)]


def _count(objects: Sequence[Tensor], flags: tuple[int, ...], classes: int) -> list[int]:
    """How many objects with one of these flags each class has."""
    every = torch.cat(list(objects))
    labels = every[torch.isin(every[:, 5], torch.tensor(flags)), 4]
    if not len(labels):
        raise DataError(f"expected objects to find, found {len(every)}, which don't count: use other data")
    return torch.bincount(labels.long(), minlength=classes).tolist()


def _rows(images: Sequence[Tensor]) -> Iterator[list[float]]:
    """The rows of all images, each behind the number of its image."""
    return ([number, *row] for number, rows in enumerate(images) for row in rows.tolist())


def _annotation(
    image: float, box: Sequence[float], label: float, *, crowd: bool = False, **others: float
) -> dict[str, Any]:
    """A box in COCO's format; its area is that of the box unless another is given."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    place = {"image_id": int(image), "category_id": int(label), "bbox": [x1, y1, width, height]}
    return {**place, "area": width * height, "iscrowd": int(crowd), **others}


def _dataset(annotations: Sequence[Mapping[str, Any]], images: int, classes: int) -> dict[str, Any]:
    """A data set in COCO's format; numbers of annotations begin with 1, as 0 means none there."""
    return {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        "annotations": [{**each, "id": number} for number, each in enumerate(annotations, 1)],
    }
