"""Parts: which parameter each multiply-accumulate of a model is done with."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from zoo.measurement.macs import forward_on_meta, meta_tensors

NO_WEIGHT = ""
"""Of products of two activations."""


def macs_of(model: nn.Module, input: Sequence[int] | None = None) -> Counter[str]:
    """Count a model's multiply-accumulates by the parameter that they are done with.

    Args:
        model: any module that takes one batch of images, on any device; left as it was.
        input: channels, height, width; None takes what `model.pretrained_cfg` says.

    Returns:
        Path of a parameter → multiply-accumulates of one image; they add up to what `measure` counts.

    Raises:
        StructureError: the input size isn't known, or the model refuses it.

    >>> macs_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), (3, 10, 10))
    Counter({'0.weight': 2400, '1.weight': 1600})
    """
    on_meta = meta_tensors(model)
    counter = _Counter({_place(held): path for path, held in on_meta.items() if held.ndim > 1})
    with _told(model, counter), sdpa_kernel(SDPBackend.MATH), counter:
        forward_on_meta(model, input, on_meta)
    return counter.macs


@contextmanager
def _told(model: nn.Module, counter: "_Counter") -> Iterator[None]:
    """Tell a counter which layer runs: some compute the weight that they multiply by."""
    hooks = []

    def tell(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counter.layer = path

        return hook

    for path, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), Tensor) and not [*module.children()]:
            name = f"{path}.weight" if path else "weight"
            hooks += [module.register_forward_pre_hook(tell(name)), module.register_forward_hook(tell(NO_WEIGHT))]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _place(tensor: Tensor) -> int:
    """Where a tensor lies: a view of it lies there too, and a tensor without values as well."""
    return int(tensor.untyped_storage()._cdata)


class _Counter(TorchDispatchMode):
    def __init__(self, paths: Mapping[int, str]) -> None:
        super().__init__()
        self.paths = paths
        self.macs: Counter[str] = Counter()
        self.layer = NO_WEIGHT

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        counted = flop_registry.get(func._overloadpacket)
        if counted is None and func is not torch.ops.prim.device.default:
            with self:  # what consists of others is counted by these
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        out = func(*args, **kwargs)
        if counted is not None:
            held = (self.paths.get(_place(each)) for each in args if isinstance(each, Tensor))
            path = next((path for path in held if path is not None), self.layer)
            self.macs[path] += int(counted(*args, **kwargs, out_val=out)) // 2
        return out
