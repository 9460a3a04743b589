"""Changes: a smaller model beside the dense one, layer by layer, as a value."""

from msgspec import Struct

Pair = tuple[int, int]
"""Of the dense model, and of the smaller one."""


class Layer(Struct, frozen=True):
    """One layer of the dense model, and what became of it.

    Args:
        path: of its module; of a parameter that is no layer's weight, its own.
        outputs: how many there are.
        inputs: how many each output reads; of a grouped convolution those of its group.
        rank: of the two layers that stand for it; None where it is one.
        macs: of one image.
        params: of its own.
        stays: why its outputs are as many as before; empty where they aren't, or where it was factored.
    """

    path: str
    outputs: Pair
    inputs: Pair
    rank: int | None
    macs: Pair
    params: Pair
    stays: str = ""

    @property
    def changed(self) -> bool:
        """Whether its shape is another."""
        return self.rank is not None or self.outputs[0] != self.outputs[1] or self.inputs[0] != self.inputs[1]


class Changes(Struct, frozen=True):
    """A smaller model beside the dense one, layer by layer.

    Args:
        dense: its name.
        smaller: its name.
        macs: of one image.
        params: of all layers and of what else there is.
        layers: in the dense model's order.
        other: macs and params of no layer: products of two activations, norms.
    """

    dense: str
    smaller: str
    macs: Pair
    params: Pair
    layers: tuple[Layer, ...]
    other: tuple[Pair, Pair]

    def __str__(self) -> str:
        """The totals, and where most was saved."""
        changed = [layer for layer in self.layers if layer.changed]
        most = sorted(changed, key=lambda layer: layer.macs[1] - layer.macs[0])[:3]
        parts = (
            f"{self.smaller}: {share('macs', self.macs)}, {share('params', self.params)}",
            f"{len(changed)} of {len(self.layers)} layers are smaller",
        )
        return "; ".join((*parts, *(f"{layer.path} {became(layer)}" for layer in most)))


def became(layer: Layer) -> str:
    """What became of a layer, in a few words."""
    if layer.rank is not None:
        return f"rank {layer.rank} of {min(layer.outputs[0], layer.inputs[0])}"
    outputs, inputs = (f"{was} → {now}" if was != now else "" for was, now in (layer.outputs, layer.inputs))
    return outputs or (f"inputs {inputs}" if inputs else "as it was")


def share(what: str, pair: Pair) -> str:
    """How much is left of a count."""
    return f"{what} {pair[1]:,} ({pair[1] / max(pair[0], 1):.1%} of {pair[0]:,})"
