"""Rounding: which whole numbers stand for the weights of a layer, so that its outputs change least.

With H = E[xxᵀ] of the layer's inputs, the columns of w are rounded one after another; what each loses is made up for by
those that follow, as far as these read inputs that go along with its own:

    w_j → round(w_j);   w_k → w_k - (w_j - round(w_j))·U_jk/U_jj for k > j;   UᵀU = (H + λI)⁻¹, U upper triangular

Source: Frantar, Ashkboos, Hoefler, Alistarh, GPTQ (ICLR 2023), https://arxiv.org/abs/2210.17323
"""

import torch
from torch import Tensor

DAMPING = 0.01  # λ, of the mean of H's diagonal, as in the paper
MAX_COLUMNS = 8192  # of a layer; wider ones take minutes and gigabytes
BLOCK = 128  # columns that are made up for at once


def nearest(weight: Tensor, most: int) -> Tensor:
    """Round to the nearest whole number of at most `most`."""
    return weight.round().clamp(-most, most)


def gptq(weight: Tensor, hessian: Tensor, most: int) -> Tensor:
    """Round the weights of a layer.

    Args:
        weight: in the units of whole numbers, of each group, output and column [G, O, K].
        hessian: E[xxᵀ] of each group [G, K, K].
        most: the largest magnitude.

    Returns:
        Whole numbers [G, O, K]; those of columns whose inputs are always 0 are the nearest.
    """
    weight, upper = weight.to(hessian.dtype).clone(), _upper(hessian)
    rounded = torch.empty_like(weight)
    for start in range(0, weight.shape[2], BLOCK):
        end = min(start + BLOCK, weight.shape[2])
        lost = torch.zeros_like(weight[:, :, start:end])
        for j in range(start, end):
            column, row = weight[:, :, j], upper[:, j, j:end]
            rounded[:, :, j] = nearest(column, most)
            lost[:, :, j - start] = (column - rounded[:, :, j]) / row[:, :1]
            weight[:, :, j:end] -= lost[:, :, j - start, None] * row[:, None]
        weight[:, :, end:] -= lost @ upper[:, start:end, end:]
    return rounded


def _upper(hessian: Tensor) -> Tensor:
    """U of UᵀU = (H + λI)⁻¹."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    damped = diagonal.mean(1, keepdim=True).clamp(min=1e-12) * DAMPING
    known = hessian.clone()
    for _ in range(8):
        known.diagonal(dim1=1, dim2=2).add_(damped)
        lower, failed = torch.linalg.cholesky_ex(known)
        if not failed.any():
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed.any():
                return torch.as_tensor(upper)
        damped = damped * 10
    return torch.eye(hessian.shape[1], dtype=hessian.dtype).expand_as(hessian)  # each column for itself
