"""Module ↔ tensors, leaf by leaf."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.errors import WeightsError
from zoo.structure import buffers


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a model must be given to compute: parameters and buffers, shared ones once.

    Non-persistent buffers are included: computing them again costs time, and other versions compute them otherwise.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assign_(model: nn.Module, values: Mapping[str, Tensor], where: str) -> nn.Module:
    """Put tensors in the place of a model's own, without a copy.

    Args:
        model: usually on the meta device.
        values: what `tensors_of` the saved model held; half precision is accepted where a float is expected. Buffers
            that their module computes may be missing, and are computed.
        where: their file, for messages.

    Returns:
        The same model.

    Raises:
        WeightsError: naming the first path that is missing, misshapen, of another kind, or that the model lacks.
    """
    computed = buffers.computable(model)
    left = {
        path: value
        for path, value in values.items()
        if path not in computed or _fits(computed[path][0]._buffers.get(computed[path][1]), value)
    }
    given = set(left)
    seen: dict[int, Tensor] = {}
    held: dict[str, Any]
    for prefix, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, expected in held.items():
                path = f"{prefix}.{name}" if prefix else name
                if expected is None:
                    if name in module._non_persistent_buffers_set and path in left:
                        held[name] = left.pop(path)  # timm leaves some out on the meta device
                    continue
                if path in computed and path not in left:
                    continue
                if id(expected) not in seen:
                    value = _checked(path, expected, left.pop(path, None), where)
                    if isinstance(expected, nn.Parameter):
                        value = nn.Parameter(value, expected.requires_grad)
                    seen[id(expected)] = value
                held[name] = seen[id(expected)]
    if left:
        first, more = next(iter(left)), f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise WeightsError(f"{where}: {first}{more} on disk, but the plan has no such tensor: plan and weights differ")
    buffers.compute_(model, given)
    return model


def _fits(expected: Tensor | None, found: Tensor) -> bool:
    """Whether a computed buffer is of the size that it has before a forward pass grows it."""
    return expected is None or expected.shape == found.shape


def _checked(path: str, expected: Tensor, found: Tensor | None, where: str) -> Tensor:
    if found is None:
        raise WeightsError(f"{where}: {path} is missing, the plan expects {tuple(expected.shape)}: save it again")
    if found.shape != expected.shape:
        raise WeightsError(
            f"{where}: {path} is {tuple(found.shape)} on disk, the plan expects {tuple(expected.shape)}: "
            f"plan and weights differ"
        )
    if found.dtype != expected.dtype and not (found.is_floating_point() and expected.is_floating_point()):
        raise WeightsError(f"{where}: {path} is {found.dtype} on disk, the plan expects {expected.dtype}")
    return found
