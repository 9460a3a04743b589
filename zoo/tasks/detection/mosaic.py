"""Mosaic: an image becomes four crops in one, of images of its batch, around a centre that is drawn.

Four images in a row of a batch are a group, and a mosaic has one crop of each of its group. So nothing is decoded for
it but what a group has in the shares of other processes, and streams have it too.

Source: A. Bochkovskiy, C.-Y. Wang, H.-Y. M. Liao, "YOLOv4: Optimal Speed and Accuracy of Object Detection",
arXiv:2004.10934, figure 3.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.tasks.detection.transforms import in_view

GROUP = 4
CENTRE = (0.25, 0.75)  # of width and height

Sample: TypeAlias = tuple[Tensor, Tensor]
Window: TypeAlias = tuple[int, int, int, int]  # x1, y1, x2, y2


def mosaic(group: Sequence[Sample], number: int) -> Sample:
    """What a sample becomes: a mosaic, where its target has the seed of one.

    Args:
        group: images [C, H, W], and targets [1 + M, 7] whose boxes are in pixels of the input.
        number: of the sample in its group.
    """
    image, target = group[number]
    if target[0, 6] <= 0:
        return image, target
    rng = np.random.default_rng(int(target[0, 6]))
    _, height, width = image.shape
    across, down = (round(rng.uniform(*CENTRE) * side) for side in (width, height))
    places = [
        (left, top, right, bottom)
        for top, bottom in ((0, down), (down, height))
        for left, right in ((0, across), (across, width))
    ]
    canvas, first = torch.empty_like(image), target[:1].clone()
    first[0, 6] = 0
    objects = []
    for place, (tile, its) in zip(places, _tiles(group, rng), strict=True):
        window = _window(place, (width, height), rng)
        canvas[:, place[1] : place[3], place[0] : place[2]] = _cropped(tile, window, place)
        objects.append(_moved(in_view(its[1:], window), window, place))
    return canvas, torch.cat([first, *objects])


def _tiles(group: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
    """Each of a group in random order; of a last one that isn't full some twice."""
    order = [*rng.permutation(len(group)), *rng.integers(0, len(group), GROUP - len(group))]
    return [group[int(number)] for number in order]


def _window(place: Window, size: tuple[int, int], rng: np.random.Generator) -> Window:
    """A crop of an image of that size, of its place's shape: anything from that large to the largest there is."""
    sides = place[2] - place[0], place[3] - place[1]
    shrunk = rng.uniform(max(side / most for side, most in zip(sides, size, strict=True)), 1)
    new = [min(most, max(1, round(side / shrunk))) for side, most in zip(sides, size, strict=True)]
    left, top = (int(rng.integers(0, most - side + 1)) for side, most in zip(new, size, strict=True))
    return left, top, left + new[0], top + new[1]


def _cropped(tile: Tensor, window: Window, place: Window) -> Tensor:
    size = place[3] - place[1], place[2] - place[0]
    crop = tile[None, :, window[1] : window[3], window[0] : window[2]]
    return F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True)[0]


def _moved(objects: Tensor, window: Window, place: Window) -> Tensor:
    """Objects [M, 7] in a window as they are where the window is shown."""
    scale = torch.tensor([(place[i + 2] - place[i]) / (window[i + 2] - window[i]) for i in (0, 1)])
    boxes = (objects[:, :4] - torch.tensor(window[:2] * 2)) * scale.repeat(2) + torch.tensor(place[:2] * 2)
    return torch.cat([boxes, objects[:, 4:6], objects[:, 6:] * scale.prod()], 1)
