"""Settings of a detector: which kind of heads it has, where they lie, and what is kept of what they find.

They are data, `pretrained_cfg["detector"]`: `decode` names the kind, a row of `zoo.models.heads.DECODERS`.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from zoo.declarations import validated
from zoo.errors import StructureError

MAX_LEVELS = 8  # heads of a model
MAX_ANCHORS = 16  # of one head
MAX_PIXELS = 100_000
SURE = 0.25  # the score of what counts as found, where no average precision is measured

_levels, _anchors = Meta(min_length=1, max_length=MAX_LEVELS), Meta(min_length=1, max_length=MAX_ANCHORS)
Stride = Annotated[int, Meta(ge=1, le=4_096)]
Pixels = Annotated[float, Meta(gt=0, le=MAX_PIXELS)]
Sides = Annotated[tuple[Pixels, Pixels], Meta(description="width and height")]
Number = Annotated[float, Meta(gt=0, le=1_000)]
Threshold = Annotated[float, Meta(ge=0, le=1)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="decode"):
    """What all detectors say.

    Args:
        resize: how an image comes to the input's size: `letterbox` keeps its proportions and pads, `stretch` doesn't.
        score: what scores less is no detection, as average precision is measured.
        iou: what overlaps a better one of its class by more goes.
        candidates: how many pairs of a point and a class are looked at.
        most: how many objects of an image are given.
    """

    resize: Literal["letterbox", "stretch"]
    score: Threshold = 0.001
    iou: Threshold = 0.7
    candidates: Annotated[int, Meta(ge=1, le=1_000_000)] = 30_000
    most: Annotated[int, Meta(ge=1, le=10_000)] = 300

    @property
    def decode(self) -> str:
        """The kind of heads."""
        return str(self.__struct_config__.tag)


class YoloV8(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="yolov8"):
    """Of heads that give distributions of distances.

    Args:
        strides: of each head, in pixels.
        reg_max: bins of each distance.
    """

    strides: Annotated[tuple[Stride, ...], _levels]
    reg_max: Annotated[int, Meta(ge=1, le=64)]


class Ssd(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ssd"):
    """Of heads that give differences from anchors which follow from sizes and ratios.

    Args:
        steps: of each head, in pixels.
        sizes: of the anchors of each head, and one more, in pixels.
        ratios: of width to height, of each head.
        variances: of x, y, width and height.
    """

    steps: Annotated[tuple[Stride, ...], _levels]
    sizes: Annotated[tuple[Pixels, ...], Meta(min_length=2, max_length=MAX_LEVELS + 1)]
    ratios: Annotated[tuple[Annotated[tuple[Number, ...], _anchors], ...], _levels]
    variances: Annotated[tuple[Number, Number, Number, Number], Meta(description="four numbers above 0")]


class YoloV3(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="yolo3"):
    """Of heads that multiply anchors.

    Args:
        strides: of each head, in pixels.
        anchors: width and height in pixels, of each head.
    """

    strides: Annotated[tuple[Stride, ...], _levels]
    anchors: Annotated[tuple[Annotated[tuple[Sides, ...], _anchors], ...], _levels]


AnySettings = YoloV8 | Ssd | YoloV3


def settings_of(data: Any) -> AnySettings:
    """Read a detector's settings.

    Args:
        data: as they stand in `pretrained_cfg["detector"]`.

    Raises:
        StructureError: there are none, or they are malformed.

    >>> settings_of({"decode": "yolov8", "strides": [8, 16], "reg_max": 0, "resize": "stretch"})
    Traceback (most recent call last):
    zoo.errors.StructureError: pretrained_cfg: detector.reg_max is 0, expected a whole number from 1 to 64
    """
    if data is None:
        raise StructureError("the model's pretrained_cfg has no 'detector': nothing says what its heads mean")
    where = "pretrained_cfg: detector"
    settings: AnySettings = validated(AnySettings, data, where, StructureError)
    counts = {}
    if isinstance(settings, Ssd):
        counts = {"steps": len(settings.steps), "sizes": len(settings.sizes) - 1, "ratios": len(settings.ratios)}
    elif isinstance(settings, YoloV3):
        counts = {"strides": len(settings.strides), "anchors": len(settings.anchors)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{key} of {count}" for key, count in counts.items())
        raise StructureError(f"{where} has {told} heads, expected as many of each")
    return settings
