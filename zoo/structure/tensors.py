"""Module ↔ tensors, leaf by leaf, and the buffers that follow from a module's own attributes.

Those are relative positions, masks of windows, rotary frequencies. timm keeps them out of state dicts and computes them
again (`init_non_persistent_buffers`), so a file needn't hold them, and one that plain tools read mustn't.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import StructureError, WeightsError, in_one_line

MAX_COMPUTED = 50_000_000  # elements of all buffers that are computed, of 40 bytes meanwhile; timm's have 25,239,576


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a model must be given to compute: parameters and buffers, shared ones once.

    Non-persistent buffers are included: computing them again costs time, and other versions compute them otherwise.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def bytes_of(tensor: Tensor) -> Any:
    """A tensor's values as they lie in a file, a buffer."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


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
    computed = computable(model)
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
        raise WeightsError(f"{where}: {first}{more} there, but the plan has no such tensor: plan and weights differ")
    compute_(model, given)
    return model


def _fits(expected: Tensor | None, found: Tensor) -> bool:
    """Whether a computed buffer is of the size that it has before a forward pass grows it."""
    return expected is None or expected.shape == found.shape


def _checked(path: str, expected: Tensor, found: Tensor | None, where: str) -> Tensor:
    if found is None:
        raise WeightsError(f"{where}: {path} is missing, the plan expects {tuple(expected.shape)}: save it again")
    if found.shape != expected.shape:
        raise WeightsError(
            f"{where}: {path} is {tuple(found.shape)}, the plan expects {tuple(expected.shape)}: "
            f"plan and weights differ"
        )
    if found.dtype != expected.dtype and not (found.is_floating_point() and expected.is_floating_point()):
        raise WeightsError(f"{where}: {path} is {found.dtype}, the plan expects {expected.dtype}")
    return found


def computable(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Path → module and name, of the buffers that their module can compute; some aren't there on the meta device."""
    return {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in model.named_modules()
        if callable(getattr(module, "init_non_persistent_buffers", None))
        for name in sorted(module._non_persistent_buffers_set)
    }


def compute_(model: nn.Module, given: Container[str]) -> None:
    """Compute the buffers that a file doesn't hold.

    Args:
        model: with its parameters, of whose type and on whose device they shall be.
        given: paths of those that the model has already, which stay as they are.

    Raises:
        StructureError: they are absurdly large.
    """
    absent = {id(module): module for path, (module, _) in computable(model).items() if path not in given}
    check_computed(tensor for module in absent.values() for tensor in _own(module).values())
    kept = {path: module._buffers.get(name) for path, (module, name) in computable(model).items() if path in given}
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    for module in absent.values():
        for name, tensor in _own(module).items():
            module._buffers[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        with in_one_line(f"what a {type(module).__name__} computes doesn't fit it, as its plan cut the buffers"):
            module.init_non_persistent_buffers()  # type: ignore[operator]
    for module in absent.values():  # blocks hold others of them
        module.to(place)
        if len(types) == 1:
            module.to(dtype=next(iter(types)))  # by its own rule: some keep frequencies in float32
    for path, (module, name) in computable(model).items():
        if path in kept:
            module._buffers[name] = kept[path]


def check_computed(buffers: Iterable[Tensor]) -> None:
    """Bound what is computed, which takes several times its size meanwhile.

    Raises:
        StructureError: it is absurdly large.
    """
    if sum(tensor.numel() for tensor in buffers) > MAX_COMPUTED:
        raise StructureError(f"its buffers have more than {MAX_COMPUTED:,} elements: refused")


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {n: t for n in module._non_persistent_buffers_set if (t := module._buffers.get(n)) is not None}


def stored(rebuilt: nn.Module, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What a file must hold of a model: all but the buffers that are computed again bit for bit.

    Args:
        rebuilt: the structure with its parameters, and with these buffers computed.
        values: every tensor of the model; what a forward pass grew has another shape, and is left out.
    """
    computed = computable(rebuilt)
    for path, value in values.items():
        module, name = computed.get(path, (None, ""))
        again = None if module is None else module._buffers.get(name)
        if again is None or (again.shape == value.shape and not _equal(again, value)):
            yield path, value


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
