"""Bounds: how much memory running a graph takes, told on the meta device before anything is allocated.

Attributes, indices, products and broadcasting make tensors grow. So the graph is run without values, on one image and
on a batch, and the storages that are alive are added up. A graph that passed is remembered: it takes as long as two
to six loads.
"""

import contextlib
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.declarations import validated
from zoo.errors import FOREIGN, StructureError, as_cause, first_line
from zoo.files import cache
from zoo.measurement.divergence import leaves
from zoo.structure.base import Size
from zoo.structure.graph.aten import RECURRENT
from zoo.structure.graph.certificate import is_integer
from zoo.structure.graph.graph import Graph
from zoo.structure.graph.integer import QOutput
from zoo.structure.tensors import tensors_of
from zoo.version import __version__

MAX_IMAGE_BYTES = 8 * 2**30  # beside it and the weights; timm's largest, samvit_huge at 1024 px, takes 3.1 GiB
MAX_MADE = 100_000  # tensors, in one run
BATCH = 64  # what grows with the square of the batch takes too much here
_Sizes = Annotated[tuple[Size, Size, Size], Meta(description="channels, height and width; mend its config")]
_PARTS: Mapping[Any, Callable[..., int]] = {  # one tensor's, counted before they are made
    torch.ops.aten.unbind.int: lambda x, dim=0: x.shape[dim],
    torch.ops.aten.split.Tensor: lambda x, size, dim=0: x.shape[dim] // size,
    torch.ops.aten.split_with_sizes.default: lambda x, sizes, dim=0: len(sizes),
}


def check_memory(graph: Graph, model: nn.Module, input: Any, *, ids: bool = False) -> None:
    """Bound the memory that a graph's model takes, in eval mode without gradients, for one image and for `BATCH`.

    At any time the storages made so far and still in use, with the tensor made last as if it were contiguous, are at
    most `MAX_IMAGE_BYTES` per image. Memory on images of further sizes isn't bounded.

    Args:
        graph: the structure.
        model: what `graph_module` made of it, and a plan of that, on the meta device.
        input: channels, height, width of the images, as a configuration states them.
        ids: they are token ids.

    Raises:
        StructureError: naming the node, what it takes and what is allowed; or what it can't be run for, of which a
            result whose size depends on values is one.
    """
    sizes = list(validated(_Sizes, input, "a graph's input_size", StructureError))
    shapes = {path: tuple(tensor.shape) for path, tensor in tensors_of(model).items()}  # as a plan left them
    told = repr((graph, shapes, sizes, ids, MAX_IMAGE_BYTES, MAX_MADE, BATCH, torch.__version__, __version__))
    passed = cache() / "bounded" / hashlib.sha256(told.encode()).hexdigest()
    if passed.exists():
        return
    for batch in (1, BATCH):
        _run(graph, model, [batch, *sizes], ids)
    with contextlib.suppress(OSError):  # a cache that can't be written costs time, not correctness
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


def _run(graph: Graph, model: nn.Module, shape: Sequence[int], ids: bool) -> None:
    weights = tensors_of(model)
    dtype = next((t.dtype for t in weights.values() if t.is_floating_point()), torch.float32)
    images = torch.empty(*shape, device="meta", dtype=torch.int64 if ids else dtype)
    nodes = _Nodes(model, [*graph.inputs, *(node.name for node in graph.nodes), "output"])
    try:
        with torch.no_grad(), _Live([*weights.values(), images], MAX_IMAGE_BYTES * shape[0]):
            nodes.run(images)
    except FOREIGN as error:
        said = first_line(error) if isinstance(error, StructureError) else f"can't be run: {first_line(error)}"
        here = f"node {nodes.name!r}, given {' x '.join(map(str, shape))}"
        raise StructureError(f"{here}: {said}; mend the graph or its input_size") from as_cause(error)


class _Nodes(fx.Interpreter):
    """Runs a model node by node, so that what is refused can be named; one of integers has floats at its ends alone."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__(model)
        self.extra_traceback = False
        self.names, self.name = iter(names), ""
        self.whole = is_integer(model)

    def run_node(self, n: fx.Node) -> Any:
        self.name = next(self.names)
        result = super().run_node(n)
        if self.whole and not self._ends(n) and any(each.is_floating_point() for each in leaves(result)):
            raise StructureError("gives floats within a model of integers")
        return result

    def _ends(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return isinstance(self.fetch_attr(str(n.target)), QOutput)
        return n.op in ("placeholder", "output")

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        steps = partial(_abreast, target) if target in RECURRENT.values() else target
        return super().call_function(steps, args, kwargs)


def _abreast(
    layer: Any, input: Tensor, hx: Any, params: Sequence[Tensor], batch_first: bool, **flags: Any
) -> tuple[Tensor, ...]:
    """Run a recurrent layer's steps side by side, as a larger batch: their memory in the time of one."""
    states, shape = list(hx) if isinstance(hx, list | tuple) else [hx], input.shape
    steps = math.prod(shape[:2]) // states[0].shape[1]
    wide = [h.repeat(1, steps, 1) for h in states]
    given = wide if isinstance(hx, list | tuple) else wide[0]
    output, *_ = layer(input.reshape(1, -1, shape[2]), given, params, batch_first=False, **flags)
    return output.reshape(*shape[:2], -1), *states


class _Live(TorchDispatchMode):
    """Adds up the bytes of what is alive, whoever made it."""

    def __init__(self, given: Iterable[Tensor], allowed: int) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in given}
        self.allowed, self.bytes, self.made = allowed, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.made += _PARTS[func](*args) if func in _PARTS else 1
        if self.made > MAX_MADE:
            raise StructureError(f"more than {MAX_MADE} tensors are refused")
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.bytes += size
            weakref.finalize(storage, self._free, key, size)
        taken = self.bytes + max(tensor.numel() * tensor.itemsize - size, 0)
        if taken > self.allowed:
            most = f"at most {self.allowed / 2**30:.0f} are accepted"
            raise StructureError(f"{list(tensor.shape)} takes {taken / 2**30:.1f} GiB with what is in use, {most}")

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size
