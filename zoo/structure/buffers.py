"""Buffers that follow from a module's own attributes: relative positions, masks of windows, rotary frequencies.

timm keeps them out of state dicts and computes them again (`init_non_persistent_buffers`), so a file needn't hold them,
and one that plain tools read mustn't.
"""

from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor, nn

from zoo.errors import StructureError

MAX_ELEMENTS = 1 << 28  # of all that are computed: ten times what the largest of timm's networks needs


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
    held = [tensor for module in absent.values() for tensor in _own(module).values()]
    if sum(tensor.numel() for tensor in held) > MAX_ELEMENTS:
        raise StructureError(f"its buffers have more than {MAX_ELEMENTS:,} elements: refused")
    kept = {path: module._buffers.get(name) for path, (module, name) in computable(model).items() if path in given}
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    for module in absent.values():
        for name, tensor in _own(module).items():
            module._buffers[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        module.init_non_persistent_buffers()  # type: ignore[operator]
    for module in absent.values():  # blocks hold others of them
        module.to(place)
        if len(types) == 1:
            module.to(dtype=next(iter(types)))  # by its own rule: some keep frequencies in float32
    for path, (module, name) in computable(model).items():
        if path in kept:
            module._buffers[name] = kept[path]


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
