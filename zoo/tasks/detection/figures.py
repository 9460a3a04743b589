"""What evaluation keeps of each image that objects were found in, and the figures of all of them.

A detector's outputs come as one tensor, the values of all heads end to end (`zoo.measurement.divergence.as_one`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from zoo.measurement.curvature import Fisher, signs
from zoo.models.heads import detections, heads_on_meta
from zoo.models.likeness import coordinates, unlike
from zoo.models.settings import SURE, Settings, settings_of
from zoo.models.targets import DIFFICULT, PAD, upright
from zoo.structure.description import config_of
from zoo.tasks.detection.precision import coco_precision, voc07_precision
from zoo.tasks.task import Meaning

FIGURES = ("map", "map50", "map75")
SAME = 0.5  # the overlap of boxes that mean the same object


@dataclass(frozen=True)
class Detector:
    """What a detector's outputs are made of.

    Args:
        settings: of its heads.
        shapes: of its heads, without the batch.
        size: height and width of its input.
        classes: how many there are.
    """

    settings: Settings
    shapes: Sequence[tuple[int, ...]]
    size: tuple[int, int]
    classes: int

    def heads(self, outputs: Tensor) -> list[Tensor]:
        """All values [B, n, 1] → the heads [B, C, H, W]."""
        counts = [torch.Size(shape).numel() for shape in self.shapes]
        parts = outputs.flatten(1).split(counts, 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def rows(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What is kept of a batch.

        Args:
            outputs: as above.
            targets: [B, 1 + M, 7], as `zoo.models.targets` says.

        Returns:
            `detections` [B, K, 6], x1, y1, x2, y2 in pixels of the upright image, score and label, filled up by rows
            of -1; `targets` as they were.
        """
        inside = detections(self.heads(outputs), self.settings, self.size)
        found = [upright(each, target[0]) for each, target in zip(inside, targets, strict=True)]
        kept = [torch.cat([each["boxes"], each["scores"][:, None], each["labels"][:, None]], 1) for each in found]
        return {"detections": pad_sequence(kept, batch_first=True, padding_value=PAD), "targets": targets}

    def figures(self, rows: Mapping[str, Tensor]) -> dict[str, Any]:
        """COCO's `map`, `map50` and `map75`, 0..1, and `map50_voc07` where some objects are said to be difficult.

        `classes` are `objects`, how many a class has, and its `map` and `map50` where it has any.
        """
        found, objects = rows["detections"], rows["targets"]
        precision = coco_precision(found, objects, self.classes)
        figures: dict[str, Any] = {key: precision[key] for key in FIGURES}
        apart = zip(precision["objects"], precision["per_class"], precision["per_class50"], strict=True)
        figures["classes"] = [
            {"objects": count, "map": whole, "map50": half} if count else {"objects": 0} for count, whole, half in apart
        ]
        if (objects[:, 1:, 5] == DIFFICULT).any():
            figures["map50_voc07"] = voc07_precision(found, objects, self.classes)["map50_voc07"]
        return figures

    def divergence(self, outputs: Tensor, target: Tensor) -> Tensor:
        """How far outputs are from those of a reference [B], in nats."""
        return unlike(self.heads(outputs), self.heads(target), self.settings)

    def agreement(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The share of objects, of both, that both find, 0..1 for each image [B]; 1 where neither finds any.

        Formula: 2·pairs / (found + found by the reference), pairs of one label whose boxes overlap by half.
        """
        pairs = zip(*(self._found(each) for each in (outputs, target)), strict=True)
        return torch.tensor([_shared(mine, its) for mine, its in pairs], dtype=torch.float64, device=outputs.device)

    def probe(self, outputs: Tensor, target: Tensor, smoothing: float, generator: torch.Generator) -> Tensor:
        """Random u = Jᵀ v of random signs v, J of the coordinates in which the divergence is a square; no smoothing."""
        with torch.enable_grad():
            moved = outputs.detach().requires_grad_()
            z = self._coordinates(moved, outputs, target)
            return torch.autograd.grad(z, moved, signs(z.detach(), generator))[0]

    def bend(self, outputs: Tensor, target: Tensor, moved: Tensor, smoothing: float) -> Tensor:
        """The square of how far outputs were moved, in the same coordinates [B]."""
        before, after = (self._coordinates(each, outputs, target) for each in (outputs, moved))
        return (after.double() - before.double()).square().sum(1)

    def _coordinates(self, moved: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
        heads, own, its = (self.heads(each) for each in (moved, outputs.detach(), target.detach()))
        return coordinates(heads, own, its, self.settings)

    def _found(self, outputs: Tensor) -> list[dict[str, Tensor]]:
        return detections(self.heads(outputs), self.settings, self.size, score=SURE)


def meaning(model: nn.Module, size: Sequence[int]) -> Meaning:
    """What a detector's outputs mean for images of that size, channels, height and width."""
    config = config_of(model)
    shapes = [tuple(head.shape[1:]) for head in heads_on_meta(model, size)]
    found = Detector(settings_of(config.get("detector")), shapes, (size[1], size[2]), config["num_classes"])
    return Meaning(found.rows, found.figures, found.divergence, found.agreement, Fisher(found.probe, found.bend))


def _shared(mine: Mapping[str, Tensor], its: Mapping[str, Tensor]) -> float:
    from torchvision.ops import box_iou  # torchvision takes long to import

    found = len(mine["labels"]) + len(its["labels"])
    overlap = box_iou(mine["boxes"], its["boxes"]) * (mine["labels"][:, None] == its["labels"])
    pairs = 0
    for number in range(len(overlap) if overlap.numel() else 0):  # the surest first
        most, other = overlap[number].max(0)
        if most >= SAME:
            pairs += 1
            overlap[:, other] = 0
    return 2 * pairs / found if found else 1.0
