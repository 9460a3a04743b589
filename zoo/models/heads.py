"""Heads: what a detector's raw outputs mean, boxes and scores.

    decode       heads, settings → boxes [B, A, 4], scores [B, A, C] · a row of DECODERS, by `decode` in the settings
    detections   threshold → the best candidates → per class what overlaps a better one goes → clip → the best

A box is x1, y1, x2, y2 in pixels of the network's input. A points are in the order of the levels, rows, columns and
anchors. Settings are data, `pretrained_cfg["detector"]`, and are held against the heads' shapes before they are used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zoo.errors import DataError, StructureError
from zoo.measurement.divergence import leaves
from zoo.measurement.macs import forward_on_meta, input_size
from zoo.models.settings import Settings, Ssd, YoloV3, YoloV8, settings_of

MAX_EXPONENT = 10.0  # of a side in anchors: 22,026 of them; what is larger would be infinite soon


def yolov8(heads: Sequence[Tensor], settings: YoloV8) -> tuple[Tensor, Tensor]:
    """Boxes by the means of distributions of the distances to their sides.

        d = Σ j · softmax(x)_j, j = 0..R-1, for left, top, right, bottom · box = stride · (c - d_lt, c + d_rb)

    with c the centre of a cell, (column + 1/2, row + 1/2); a score is the sigmoid of a class.

    Args:
        heads: [B, 4R + C, H, W] of each stride.
        settings: strides and R, `reg_max`.

    Returns:
        Boxes [B, A, 4] and scores [B, A, C].

    Source: Li et al., Generalized Focal Loss, equation 5, https://arxiv.org/abs/2006.04388
    """
    distances, classes = distributions(heads, settings)
    return boxes_at(distances, *cells(heads, settings)), classes.sigmoid()


def distributions(heads: Sequence[Tensor], settings: YoloV8) -> tuple[Tensor, Tensor]:
    """Logits of the distances [B, A, 4, R], left, top, right, bottom, and of the classes [B, A, C]."""
    points = torch.cat([head.float().flatten(2).mT for head in heads], 1)
    distances, classes = points.tensor_split([4 * settings.reg_max], 2)
    return distances.unflatten(2, (4, settings.reg_max)), classes


def cells(heads: Sequence[Tensor], settings: YoloV8) -> tuple[Tensor, Tensor]:
    """The middle of each cell [A, 2], x and y in strides, and the strides [A, 1], in pixels."""
    middles = [_cells(head) + 0.5 for head in heads]
    strides = [torch.full_like(each[:, :1], stride) for each, stride in zip(middles, settings.strides, strict=True)]
    return torch.cat(middles), torch.cat(strides)


def boxes_at(distances: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Boxes [B, A, 4] of the logits of distances from centres; both are in strides, boxes in pixels."""
    bins = torch.arange(distances.shape[3], device=distances.device, dtype=distances.dtype)
    left_top, right_bottom = (distances.softmax(3) @ bins).chunk(2, 2)
    return torch.cat([centres - left_top, centres + right_bottom], 2) * strides


def ssd(heads: Sequence[Tensor], settings: Ssd) -> tuple[Tensor, Tensor]:
    """Boxes by their differences from anchors, in variances.

        centre = anchor centre + v_xy · t_xy · anchor side · side = anchor side · exp(v_wh · t_wh)

    A score is the softmax of a class among the classes and the background.

    Args:
        heads: [B, a·(4 + 1 + C), H, W] of each step: of each anchor the differences, the background and the classes.
        settings: steps, sizes and ratios of the anchors, and variances.

    Returns:
        Boxes [B, A, 4] and scores [B, A, C].

    Source: Liu et al., SSD: Single Shot MultiBox Detector, equation 2, https://arxiv.org/abs/1512.02325
    """
    values, corners, steps, sides = anchored(heads, settings.steps, ssd_anchors(settings))
    differences = values[..., :4] * values.new_tensor(settings.variances)
    centres = (corners + 0.5) * steps + differences[..., :2] * sides
    return _around(centres, sides, differences[..., 2:]), values[..., 4:].softmax(2)[..., 1:]


def yolo3(heads: Sequence[Tensor], settings: YoloV3) -> tuple[Tensor, Tensor]:
    """Boxes by a place within a cell and a multiple of an anchor.

        centre = stride · (cell + sigmoid(t_xy)) · side = anchor · exp(t_wh) · score = sigmoid(object) · sigmoid(class)

    Args:
        heads: [B, a·(4 + 1 + C), H, W] of each stride: of each anchor t, the object and the classes.
        settings: strides and anchors.

    Returns:
        Boxes [B, A, 4] and scores [B, A, C].

    Source: Redmon, Farhadi, YOLOv3: An Incremental Improvement, section 2.1, https://arxiv.org/abs/1804.02767
    """
    values, corners, strides, sides = anchored(heads, settings.strides, settings.anchors)
    centres = (corners + values[..., :2].sigmoid()) * strides
    scores = values[..., 4:5].sigmoid() * values[..., 5:].sigmoid()
    return _around(centres, sides, values[..., 2:4]), scores


def ssd_anchors(settings: Ssd) -> list[list[tuple[float, float]]]:
    """Width and height of the anchors of each step, in pixels: (s, s), (√(s·s'), √(s·s')), and (s·√r, s/√r)."""
    return [
        [(s, s), (math.sqrt(s * after),) * 2, *((s * math.sqrt(r), s / math.sqrt(r)) for r in ratios if r != 1)]
        for s, after, ratios in zip(settings.sizes, settings.sizes[1:], settings.ratios, strict=False)
    ]


def _cells(head: Tensor) -> Tensor:
    """Column and row of each place of a map [HW, 2]."""
    height, width = head.shape[2:]
    rows, columns = (torch.arange(n, device=head.device, dtype=torch.float32) for n in (height, width))
    return torch.cartesian_prod(rows, columns).flip(1)


def anchored(
    heads: Sequence[Tensor], strides: Sequence[int], anchors: Sequence[Sequence[tuple[float, float]]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What heads say of each anchor, and where it lies.

    Args:
        heads: [B, a·n, H, W] of each stride.
        strides: in pixels.
        anchors: width and height in pixels of the a anchors of each head.

    Returns:
        Values [B, A, n]; column and row of the cell [A, 2]; its stride [A, 1]; width and height of the anchor [A, 2].
    """
    values, corners, steps, sides = [], [], [], []
    for head, stride, some in zip(heads, strides, anchors, strict=True):
        values.append(head.float().flatten(2).mT.unflatten(2, (len(some), -1)).flatten(1, 2))
        corners.append(_cells(head).repeat_interleave(len(some), 0))
        steps.append(torch.full_like(corners[-1][:, :1], stride))
        sides.append(torch.tensor(some, device=head.device, dtype=torch.float32).repeat(head.shape[2:].numel(), 1))
    return torch.cat(values, 1), torch.cat(corners), torch.cat(steps), torch.cat(sides)


def _around(centres: Tensor, sides: Tensor, exponents: Tensor) -> Tensor:
    """Centres [B, A, 2] and sides [A, 2] that are multiplied by e to the exponents [B, A, 2] → boxes [B, A, 4]."""
    half = sides * exponents.clamp(max=MAX_EXPONENT).exp() / 2
    return torch.cat([centres - half, centres + half], 2)


@dataclass(frozen=True)
class Decoder:
    """What heads of one kind mean; another kind is another row of `DECODERS`, and its settings in `settings`.

    Args:
        decode: heads, settings → boxes [B, A, 4], scores [B, A, C].
        strides: settings → pixels from one cell of each head to the next.
        channels: settings, C → channels of each head.
    """

    decode: Callable[[Sequence[Tensor], Any], tuple[Tensor, Tensor]]
    strides: Callable[[Any], Sequence[int]]
    channels: Callable[[Any, int], Sequence[int]]


DECODERS: dict[str, Decoder] = {
    "yolov8": Decoder(yolov8, lambda s: s.strides, lambda s, classes: [4 * s.reg_max + classes] * len(s.strides)),
    "ssd": Decoder(ssd, lambda s: s.steps, lambda s, classes: [len(each) * (5 + classes) for each in ssd_anchors(s)]),
    "yolo3": Decoder(yolo3, lambda s: s.strides, lambda s, classes: [len(each) * (5 + classes) for each in s.anchors]),
}
"""By `decode` in a detector's settings."""


def decode(heads: Sequence[Tensor], settings: Settings) -> tuple[Tensor, Tensor]:
    """Make boxes and scores of raw heads.

    Args:
        heads: what a detector returns.
        settings: its own, from `settings_of`.

    Returns:
        Boxes [B, A, 4], x1, y1, x2, y2 in pixels of the network's input, float32; scores [B, A, C], 0..1.

    >>> from zoo.models.settings import settings_of
    >>> config = {"decode": "yolov8", "strides": [8], "reg_max": 2, "resize": "letterbox"}
    >>> decode([torch.zeros(1, 11, 1, 1)], settings_of(config))
    (tensor([[[0., 0., 8., 8.]]]), tensor([[[0.5000, 0.5000, 0.5000]]]))
    """
    return DECODERS[settings.decode].decode(heads, settings)


def heads_on_meta(model: nn.Module, input: Sequence[int] | None = None) -> list[Tensor]:
    """The heads of one image, which only have shapes.

    Args:
        model: on any device; it runs without computing anything.
        input: channels, height, width; None takes what `model.pretrained_cfg` says.

    Raises:
        StructureError: the input size isn't known, or the model refuses it.
    """
    found: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, inputs, heads: found.extend(leaves(heads)))
    try:
        with _NormsApart():
            forward_on_meta(model, input)
    finally:
        hook.remove()
    return found


class _NormsApart(TorchFunctionMode):
    """Leaves batch norms out, which change no shape: torch takes milliseconds over each on meta."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


def check_detector(model: nn.Module) -> None:
    """Check that a detector's heads have the shapes that its settings and its number of classes ask for.

    Args:
        model: on any device, also on meta; it runs without computing anything.

    Raises:
        StructureError: it has no settings, or they are of another model: which head differs, and how.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    settings, classes = settings_of(config.get("detector")), config["num_classes"]
    decoder = DECODERS[settings.decode]
    _, height, width = input_size(model)
    found = heads_on_meta(model)
    strides = decoder.strides(settings)
    if len(found) != len(strides):
        raise StructureError(f"the model gives {len(found)} heads, pretrained_cfg['detector'] is for {len(strides)}")
    for i, (head, stride, channels) in enumerate(zip(found, strides, decoder.channels(settings, classes), strict=True)):
        expected = (channels, math.ceil(height / stride), math.ceil(width / stride))
        if head.shape[1:] != expected:
            raise StructureError(
                f"head {i} of the model is {'x'.join(map(str, head.shape[1:]))}, pretrained_cfg['detector'] expects "
                f"{'x'.join(map(str, expected))} of {settings.decode} with {classes} classes"
            )


def detections(
    heads: Sequence[Tensor],
    settings: Settings,
    size: tuple[int, int],
    score: float | None = None,
    iou: float | None = None,
    names: Sequence[object] = (),
) -> list[dict[str, Tensor]]:
    """Find the objects of a batch.

    Of the pairs of a point and a class that score more than the threshold the best `candidates` are looked at; one goes
    that overlaps a better one of its class by more than `iou`; the boxes are clipped to the input, and the best `most`
    of those that something is left of are given.

    Args:
        heads: what a detector returns.
        settings: its own.
        size: height and width of the network's input in pixels.
        score: the threshold; None takes the settings', which is low, as average precision is measured with.
        iou: None takes the settings'.
        names: of the images, for the message.

    Returns:
        Of each image boxes [N, 4] in pixels of the input, scores [N] from high to low and labels [N], int64 from 0.

    Raises:
        DataError: a head isn't finite; the image and the scale are named.
    """
    _check_finite(heads, settings, names)
    boxes, scores = decode(heads, settings)
    score, iou = settings.score if score is None else score, settings.iou if iou is None else iou
    return [_of_image(*each, settings, size, score, iou) for each in zip(boxes, scores, strict=True)]


def _of_image(
    boxes: Tensor, scores: Tensor, settings: Settings, size: tuple[int, int], score: float, iou: float
) -> dict[str, Tensor]:
    from torchvision.ops import clip_boxes_to_image  # torchvision takes long to import

    points, labels = (scores > score).nonzero(as_tuple=True)
    values, order = scores[points, labels].sort(descending=True, stable=True)
    order = order[: settings.candidates]
    boxes, values, labels = boxes[points[order]], values[: settings.candidates], labels[order]
    kept = _unlike(boxes, values, labels, iou)
    boxes = clip_boxes_to_image(boxes, size)
    kept = kept[(boxes[kept, 2:] > boxes[kept, :2]).all(1)][: settings.most]
    return {"boxes": boxes[kept], "scores": values[kept], "labels": labels[kept]}


def _unlike(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """The numbers of those that overlap no better one of their class, in order.

    torchvision's `batched_nms` moves the boxes of each class to a place of their own: that rounds them, the more the
    larger any box is, and boxes that begin before 0 come to lie on those of another class.
    """
    from torchvision.ops import nms  # torchvision takes long to import

    classes = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    kept = [numbers[nms(boxes[numbers], scores[numbers], iou)] for numbers in classes]
    return torch.cat([labels[:0], *kept]).sort().values


def _check_finite(heads: Sequence[Tensor], settings: Settings, names: Sequence[object]) -> None:
    for head, stride in zip(heads, DECODERS[settings.decode].strides(settings), strict=True):
        bad = (~head.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            image = int(bad[0])
            name = names[image] if names else f"image {image} of the batch"
            raise DataError(f"{name}: the head of stride {stride} isn't finite; look at the weights and the input")
