"""MnistCnn: four convolutions for grey images of 28 pixels.

    3x3 of 16 · pool 1 · 3x3 of 32 · pool 1 · 3x3 of 64 · pool 2 · 1x1 of 128 · pool 2 · flatten · linear

Each convolution, without padding, is followed by ReLU and a 2x2 max pool of the stride that is written. It is what
MRT's script for MNIST trains where no other network is asked for.

Source: https://github.com/CortexFoundation/cvm-runtime/blob/master/tests/mrt/train_mnist.py (the layers' sizes)
"""

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.classifier import Classifier

LAYERS = ((16, 3, 1), (32, 3, 1), (64, 3, 2), (128, 1, 2))  # channels, kernel, stride of the pool
SIDE = 28
LAST = 5  # side of the last maps


class MnistCnn(Classifier):
    """A small network without batch norms, for images of 28 pixels alone.

    Args:
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        super().__init__()
        inputs = in_chans
        for i, (outputs, kernel, _) in enumerate(LAYERS, 1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, kernel))
            inputs = outputs
        reductions = (1, 1, 2, 4)
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"conv{i}"}
            for i, ((width, _, _), reduction) in enumerate(zip(LAYERS, reductions, strict=True), 1)
        ]
        self.configure_("mnist_cnn", num_classes, inputs * LAST**2, (in_chans, SIDE, SIDE), "conv1")
        self.pretrained_cfg["fixed_input_size"] = True

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, 28, 28] → the pooled maps of each convolution."""
        maps = []
        for i, (_, _, stride) in enumerate(LAYERS, 1):
            x = F.max_pool2d(F.relu(self.get_submodule(f"conv{i}")(x)), 2, stride)
            maps.append(x)
        return maps

    def vector(self, x: Tensor) -> Tensor:
        """Feature maps → all of their values [B, 3200]."""
        return x.flatten(1)
