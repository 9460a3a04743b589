"""What a plan leaves in the place of a module that it drops."""

from typing import Any

import torch
from torch import Tensor, nn


class Zero(nn.Module):
    """A dropped branch: zeros of its input's shape, so that only the shortcut remains."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return zeros like `x`, whatever else is passed."""
        return torch.zeros_like(x)


class Identity(nn.Module):
    """A dropped block: its first input, whatever else is passed (torch's own takes one argument only)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `x`."""
        return x
