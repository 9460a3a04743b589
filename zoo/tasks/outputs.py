"""What a model gives for a batch of images, as whoever evaluates it wants it computed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from zoo.measurement.divergence import as_one
from zoo.measurement.passes import pass_sizes

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Computing:
    """How a model is computed; its weights stay what they are.

    Args:
        precision: of convolutions and products, `bf16` or `fp16`, as autocast chooses; empty is that of the weights,
            never TF32.
        channels_last: whether images and weights lie in memory channels last.
        compile: whether the model is compiled by torch.compile.
    """

    precision: str = ""
    channels_last: bool = False
    compile: bool = False

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """A model as a function of images [B, C, H, W] to outputs [B, ...] in single precision."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        where = next(chain(model.parameters(), model.buffers()), None)
        called = torch.compile(model) if self.compile else model

        def outputs(images: Tensor) -> Tensor:
            images = _placed(images, images if where is None else where)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            on_cpu = images.device.type == "cpu"
            sizes = pass_sizes(len(images), images.shape[-2:].numel()) if on_cpu else len(images)
            with self._cast(images.device):
                return torch.cat([as_one(called(part)).float() for part in images.split(sizes)])

        return outputs

    def _cast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, PRECISIONS[self.precision]) if self.precision else _single()


@contextmanager
def _single() -> Iterator[None]:
    """Single precision where it is asked for: by itself cuDNN lets convolutions round to TF32's ten bits."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


AS_IT_IS = Computing()


def _placed(images: Tensor, where: Tensor) -> Tensor:
    """Images where a model's tensors are, and of their precision; token ids and integer pixels stay whole."""
    whole = images.dtype == torch.int64 or not where.is_floating_point()
    return images.to(where.device, images.dtype if whole else where.dtype, non_blocking=True)
