"""The oracle of average precision: pycocotools."""

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zoo.models.targets import CROWD


def by_pycocotools(detections, targets, classes):
    """What pycocotools finds of detections [B, N, 6] and targets [B, 1+M, 7]."""
    truth, results = COCO(), []
    numbers = range(len(targets))
    truth.dataset = {"images": [{"id": n} for n in numbers], "categories": [{"id": n} for n in range(classes)]}
    truth.dataset["annotations"] = annotations = []
    for number, (found, objects) in enumerate(zip(detections.double(), targets.double(), strict=True)):
        for x1, y1, x2, y2, label, flag, area in objects[1:][objects[1:, 4] >= 0].tolist():
            row = {"image_id": number, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area}
            annotations.append({**row, "iscrowd": int(flag == CROWD), "id": len(annotations) + 1})
        for x1, y1, x2, y2, score, label in found[found[:, 5] >= 0].tolist():
            row = {"image_id": number, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            results.append(row)
    truth.createIndex()
    oracle = COCOeval(truth, truth.loadRes(results), "bbox")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    return oracle
