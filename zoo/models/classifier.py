"""Classifier: what the image classifiers of this room have in common, in timm's manners.

    stages of feature maps → a vector of the last ones → a linear layer

A network says its stages, and where the vector isn't the mean of the maps what else it is.
"""

from collections.abc import Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._features import feature_take_indices  # not among timm.models' exported names
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network of stages and a linear layer.

    A subclass calls `configure_` once its layers are there, and writes `maps`.
    """

    head = "linear"  # the attribute that is the classifier
    num_classes: int

    def configure_(
        self, architecture: str, num_classes: int, features: int, input_size: tuple[int, int, int], first_conv: str
    ) -> None:
        """Add the classifier, and say of the network what timm's say.

        Args:
            architecture: its name.
            num_classes: of the classifier; 0 leaves it out.
            features: length of the vector that the classifier reads.
            input_size: channels, height and width of an image.
            first_conv: the layer that reads it.
        """
        self.num_features = self.head_hidden_size = features
        self.reset_classifier(num_classes)
        self.pretrained_cfg = self.default_cfg = config(architecture, num_classes, input_size, first_conv, self.head)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → the feature maps of each stage."""
        raise NotImplementedError

    def last(self, x: Tensor) -> Tensor:
        """What the last stage's maps still go through: nothing."""
        return x

    def vector(self, x: Tensor) -> Tensor:
        """Feature maps → the vector that the classifier reads [B, F]: their mean."""
        return x.mean((2, 3))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.head)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, randomly initialised classifier in its place; of 0 classes, the identity."""
        self.num_classes = num_classes
        setattr(self, self.head, nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] → the last feature maps."""
        return self.last(self.maps(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps → logits [B, num_classes], or the vector that the classifier reads [B, F]."""
        x = self.vector(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] → logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, intermediates_only: bool = False, **_: Any
    ) -> Any:
        """Feature maps of the stages that `indices` names, as timm's models give them."""
        maps = self.maps(x)
        wanted = [maps[i] for i in feature_take_indices(len(maps), indices)[0]]
        return wanted if intermediates_only else (self.last(maps[-1]), wanted)


def stages(widths: Mapping[str, int], first: int) -> list[dict[str, Any]]:
    """What timm calls `feature_info`: of each stage its module, its channels and how far images are reduced.

    Args:
        widths: module → channels, each stage of half the side of the one before.
        first: reduction of the first stage.
    """
    return [
        {"num_chs": width, "reduction": first * 2**i, "module": module}
        for i, (module, width) in enumerate(widths.items())
    ]


def imagenet(channels: int) -> dict[str, tuple[float, ...]]:
    """ImageNet's mean and std of so many channels."""
    means, stds = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return {"mean": tuple(means[i % 3] for i in range(channels)), "std": tuple(stds[i % 3] for i in range(channels))}


def config(
    architecture: str, num_classes: int, input_size: tuple[int, int, int], first_conv: str, classifier: str
) -> dict[str, Any]:
    """What timm calls `pretrained_cfg`, with ImageNet's mean and std; a small image isn't cropped."""
    channels, side, _ = input_size
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "input_size": input_size,
        "crop_pct": 0.875 if side > 32 else 1.0,
        "interpolation": "bicubic",
        **imagenet(channels),
        "first_conv": first_conv,
        "classifier": classifier,
    }
