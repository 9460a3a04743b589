"""Observing: what a model computes for the calibration images, in one pass over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoo.compression.integer.rounding import MAX_COLUMNS
from zoo.errors import DataError
from zoo.progress import shown
from zoo.structure.graph.graph import Graph, GraphModel

DRAWN = 16_384  # values of each node that its step is judged by
ROWS = 4_096  # inputs of each layer at least that its weights are rounded by, and as many as it has columns


@dataclass
class Seen:
    """What was seen of one node: the least and the largest value, and some drawn [N]."""

    low: float = math.inf
    high: float = -math.inf
    drawn: list[Tensor] = field(default_factory=list)

    def values(self) -> Tensor:
        """Those that were drawn."""
        return torch.cat(self.drawn)


@dataclass
class Inputs:
    """What was seen of a layer's inputs: of each group Σ xxᵀ [G, K, K], none of a wide one; Σ x [G, K]; how many."""

    squares: Tensor | None
    sums: Tensor
    count: int = 0


class Observer(fx.Interpreter):
    """Runs a graph's model and looks at every node.

    Args:
        model: of a folded graph.
        graph: that it runs.
        images: how many there are in all.
        seed: of what is drawn.
    """

    def __init__(self, model: fx.GraphModule, graph: Graph, images: int, seed: int) -> None:
        super().__init__(model)
        self.extra_traceback = False
        self.images, self.seen, self.inputs = images, dict[str, Seen](), dict[str, Inputs]()
        self.generator = torch.Generator().manual_seed(seed)
        ran = [node for node in model.graph.nodes if node.op != "output"]
        self.names = dict(zip(ran, [*graph.inputs, *(node.name for node in graph.nodes)], strict=True))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and look at what it gives; of a layer, at what it reads too."""
        result = super().run_node(n)
        if n in self.names and isinstance(result, Tensor) and result.is_floating_point():
            self._look(self.names[n], result)
        if n.op == "call_module":
            layer, (x, *_), _ = self.fetch_attr(str(n.target)), *self.fetch_args_kwargs_from_env(n)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                self._read(self.names[n], layer, x)
        return result

    def _look(self, name: str, values: Tensor) -> None:
        low, high = (float(each) for each in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"integer: node {name!r} isn't finite on the calibration images: look at these, or the weights"
            )
        seen = self.seen.setdefault(name, Seen())
        seen.low, seen.high = min(seen.low, low), max(seen.high, high)
        images = len(values) if values.ndim else 1
        count = max(1, DRAWN * images // self.images)
        at = torch.randint(values.numel(), (min(count, values.numel()),), generator=self.generator)
        seen.drawn.append(values.flatten()[at])

    def _read(self, name: str, layer: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        columns = layer.weight[0].numel()
        count = max(1, max(ROWS, columns) * len(x) // self.images)
        rows = self._patches(layer, x, count) if isinstance(layer, nn.Conv2d) else self._drawn(x, count)
        groups = rows.unflatten(1, (-1, columns)).transpose(0, 1)  # [G, n, K]
        held = self.inputs.get(name)
        if held is None:
            square = groups.new_zeros(groups.shape[0], columns, columns) if columns <= MAX_COLUMNS else None
            held = self.inputs[name] = Inputs(square, groups.new_zeros(groups.shape[0], columns))
        if held.squares is not None:
            held.squares.baddbmm_(groups.mT, groups)
        held.sums += groups.sum(1)
        held.count += groups.shape[1]

    def _drawn(self, x: Tensor, count: int) -> Tensor:
        rows = x.flatten(0, -2)
        return rows[torch.randint(len(rows), (min(count, len(rows)),), generator=self.generator)]

    def _patches(self, layer: nn.Conv2d, x: Tensor, count: int) -> Tensor:
        """What a convolution reads for outputs that are drawn [n, C·kh·kw]."""
        x = F.pad(x, layer._reversed_padding_repeated_twice).contiguous()  # of "same" too
        places = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
        ]
        b, c, h, w = x.stride()
        windows = x.as_strided(
            (x.shape[0], x.shape[1], *places, *layer.kernel_size),
            (b, c, h * layer.stride[0], w * layer.stride[1], h * layer.dilation[0], w * layer.dilation[1]),
        )
        count = min(count, x.shape[0] * math.prod(places))
        at = [torch.randint(size, (count,), generator=self.generator) for size in (x.shape[0], *places)]
        return windows[at[0], :, at[1], at[2]].flatten(1)


def observed(
    model: GraphModel, graph: Graph, batches: Sequence[Tensor], seed: int
) -> tuple[Mapping[str, Seen], Mapping[str, Inputs]]:
    """Run a graph's model over the calibration images.

    Args:
        model: of a folded graph, in eval mode.
        graph: that it runs.
        batches: images [B, C, H, W].
        seed: of what is drawn.

    Returns:
        Name of a node → what was seen of it, and of a layer, of its inputs.

    Raises:
        DataError: something isn't finite.
    """
    observer = Observer(model, graph, sum(map(len, batches)), seed)
    with torch.no_grad():
        for batch in shown(batches, "looking at the images", unit="batch"):
            observer.run(batch.contiguous())
    return observer.seen, observer.inputs
