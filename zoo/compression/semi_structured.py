"""Linear layers computed by the sparse kernels of a GPU, where two of each four weights in a row are zero.

    y = W x + b,   where a kernel reads and multiplies half of W

`criterion="two_of_four"` of `magnitude` makes such weights. Source: Mishra et al., "Accelerating Sparse Deep Neural
Networks" (arXiv:2104.08378); the kernels are torch's, which has them for matrices alone, so not for convolutions.
"""

import copy
import warnings

from torch import nn
from torch.sparse import to_sparse_semi_structured

from zoo.compression.magnitude import ROW
from zoo.errors import StructureError, first_line


def semi_structured(model: nn.Module) -> nn.Module:
    """A copy of a model for inference, whose linear layers compute by sparse kernels where they can.

    Args:
        model: on a GPU, in a type and of sizes that its kernels take, such as float16 and multiples of 64; left as it
            was.

    Returns:
        The copy, which `zoo.bench` times as any module; it can't be saved.

    Raises:
        StructureError: no linear layer has two zeros in each four weights, or torch has no kernel for any that has.

    Example:
        >>> model = zoo.load("mine_two_of_four", device="cuda", dtype=torch.float16)  # doctest: +SKIP
        >>> print(zoo.bench(semi_structured(model), base=model, device="cuda").rows)  # doctest: +SKIP
    """
    found = copy.deepcopy(model)
    layers = {path: layer for path, layer in found.named_modules() if isinstance(layer, nn.Linear) and _is_half(layer)}
    if not layers:
        raise StructureError("semi_structured: no linear layer has two zeros in each four weights in a row")
    refused = {path: why for path, layer in layers.items() if (why := _refusal(layer))}
    if len(refused) == len(layers):
        path, why = next(iter(refused.items()))
        raise StructureError(f"semi_structured: torch has no kernel for any layer; of {path}: {why}")
    return found


def _is_half(layer: nn.Linear) -> bool:
    if layer.in_features % ROW:
        return False
    return bool(layer.weight.reshape(-1, ROW).count_nonzero(1).le(ROW // 2).all())


def _refusal(layer: nn.Linear) -> str | None:
    """Let a layer compute by a sparse kernel, in place; or why torch won't."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        try:
            layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            return first_line(error)
    return None
