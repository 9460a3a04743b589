"""Planning: which values of a graph become bytes, which of them share a step, and whether that is free.

What only moves values (reshapes, pooling by the largest) gives bytes of the step that it reads; what a concatenation
reads has one step, and so has what it gives. A step is free where layers and tables alone read the value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import cat

from zoo.compression.integer.observing import Seen
from zoo.compression.integer.steps import Step, best, wide
from zoo.structure.graph.graph import Graph, Node

LAYERS = ("conv2d", "linear")
CLAMPS = ("relu", "relu6", "clamp", "aten.relu6", "aten.hardtanh")
"""What becomes the range of the bytes that the op before it gives."""
TABLES = (
    *("silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "exp", "pow", "scale", "shift", *CLAMPS),
    *(f"aten.{name}" for name in ("leaky_relu", "elu", "tanh", "selu", "softplus", "mish", "celu", "abs", "neg")),
    *("aten.mul.Scalar", "aten.add.Scalar", "aten.sub.Scalar", "aten.div.Scalar", "aten.clamp_min", "aten.clamp_max"),
    *("aten.square", "aten.rsub.Scalar"),
)
"""Functions of one value."""
POOLS = ("adaptive_avg_pool2d", "avg_pool2d", "mean")
SUMS = ("add", "mul")
SHIFTED = {*SUMS, "concat"}  # ops whose values have steps that are powers of two of each other
MOVES = (
    *("flatten", "reshape", "permute", "transpose", "chunk", "item", "slices", "unsqueeze", "max_pool2d", "upsample"),
    *("gather", "pad_same", "aten.constant_pad_nd", "aten.pad", "aten.squeeze.dims", "aten.squeeze.dim", "unbind"),
    *("aten.slice.Tensor", "aten.select.int", "aten.split_with_sizes", "aten.split.Tensor", "aten.pixel_shuffle"),
    *("aten.pixel_unshuffle", "aten.upsample_nearest2d.vec", "expand", "roll", "aten.flip"),
)
SIZES = ("size", "int_mul", "int_add", "int_sub", "int_floordiv", "int_mod")
ABSORBING = {*LAYERS, "batch_norm2d", *TABLES, *POOLS}


@dataclass(frozen=True)
class Planned:
    """What a graph's values become.

    Args:
        steps: name of a node → step of the bytes that it shall give.
        wide: names of those that give 16 bits, as nothing but the output reads them.
        free: names of those whose step needn't be a power of two.
        clamped: name of a node → the clamp that alone reads it, and is done by its op.
    """

    steps: Mapping[str, Step]
    wide: frozenset[str]
    free: frozenset[str]
    clamped: Mapping[str, Node]


def planned(graph: Graph, seen: Mapping[str, Seen]) -> Planned:
    """Plan the bytes of a folded graph.

    Args:
        graph: of floats.
        seen: what was seen of its nodes.
    """
    nodes = {node.name: node for node in graph.nodes}
    readers = _readers(graph)
    clamped = {
        name: nodes[reader]
        for name, (reader, *others) in readers.items()
        if name in nodes and not others and reader in nodes and _clamps(nodes[name], nodes[reader])
    }
    origin = {clamp.name: nodes[name] for name, clamp in clamped.items()}
    kinds = _alike(graph)
    members: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        members.setdefault(kind, []).append(name)
    steps: dict[str, Step] = {}
    wides, frees = set[str](), set[str]()
    for names in members.values():
        looked = [seen[name] for name in names if name in seen and name not in clamped]
        if not looked:
            continue
        read = {nodes[each].op if each in nodes else "output" for name in names for each in readers[name]}
        own = {origin.get(name, nodes[name]).op for name in names if name in nodes}
        if read - set(MOVES) == {"output"} and own - set(MOVES) <= {*LAYERS, *POOLS}:
            step = wide(*_ends(looked))
            wides |= set(names)
        else:
            free = own.isdisjoint(SHIFTED) and read <= ABSORBING | set(MOVES)
            step = best(cat([each.values() for each in looked]), *_ends(looked), free=free)
            frees |= set(names) if free else set()
        steps |= dict.fromkeys(names, step)
    return Planned(steps, frozenset(wides), frozenset(frees), clamped)


def _ends(looked: list[Seen]) -> tuple[float, float]:
    return min(each.low for each in looked), max(each.high for each in looked)


def _readers(graph: Graph) -> dict[str, list[str]]:
    """Name → names of what reads it; "" is the output."""
    readers: dict[str, list[str]] = {name: [] for name in (*graph.inputs, *(node.name for node in graph.nodes))}
    for node in graph.nodes:
        for name in node.inputs:
            readers[name].append(node.name)
    for name in graph.outputs:
        readers[name].append("")
    return readers


def _clamps(before: Node, node: Node) -> bool:
    return node.op in CLAMPS and before.op in (*LAYERS, *SUMS, "batch_norm2d")


def _alike(graph: Graph) -> dict[str, str]:
    """Name → one name for all that share its step."""
    kinds = {name: name for name in (*graph.inputs, *(node.name for node in graph.nodes if node.op not in SIZES))}

    def kind(name: str) -> str:
        while kinds[name] != name:
            kinds[name] = name = kinds[kinds[name]]
        return name

    for node in graph.nodes:
        for name in _tied(node):
            if name in kinds:
                kinds[kind(name)] = kind(node.name)
    return {name: kind(name) for name in kinds}


def _tied(node: Node) -> Iterator[str]:
    if node.op == "concat":
        yield from node.inputs
    elif node.op in MOVES:
        yield node.inputs[0]
