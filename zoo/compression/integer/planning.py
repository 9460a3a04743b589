"""Planning: which values of a graph become bytes, which of them share a step, and whether that is free.

What only moves values (reshapes, pooling by the largest) gives bytes of the step that it reads; what a concatenation
reads has one step, and so has what it gives. A step is free where layers and tables alone read the value.

What a norm or a softmax reads are words, of 16 bits, and so is whatever is only added up to that: a transformer's
stream of residuals. Where something else reads it too, that is given bytes of it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import cat

from zoo.compression.integer.observing import Seen
from zoo.compression.integer.steps import Step, best, wide
from zoo.structure.graph.certificate import JOINS, MOVES, SIZES
from zoo.structure.graph.graph import Graph, Node

LAYERS = ("conv2d", "conv1d", "linear")
CLAMPS = ("relu", "relu6", "clamp", "aten.relu6", "aten.hardtanh")
"""What becomes the range of the bytes that the op before it gives."""
TABLES = (
    *("silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "exp", "pow", "scale", "shift", *CLAMPS),
    *(f"aten.{name}" for name in ("leaky_relu", "elu", "tanh", "selu", "softplus", "mish", "celu", "abs", "neg")),
    *("aten.mul.Scalar", "aten.add.Scalar", "aten.sub.Scalar", "aten.div.Scalar", "aten.clamp_min", "aten.clamp_max"),
    *("aten.square", "aten.rsub.Scalar"),
)
"""Functions of one value."""
POOLS = ("adaptive_avg_pool2d", "avg_pool2d", "mean", "aten.sum.dim_IntList")
SUMS = ("add", "mul", "sub")
SHIFTED = {*SUMS, *JOINS}  # ops whose values have steps that are powers of two of each other
NORMS = ("layer_norm", "layer_norm2d", "group_norm", "rms_norm")
PRODUCTS = ("matmul", "scores")
QUOTIENTS = ("div", "norm")
PASSING = ("add", "shift", "aten.add.Scalar", "clamp", "aten.clamp_min")
"""What reads words where it gives them."""
BLENDS = ("aten.upsample_bilinear2d.vec",)
STANDING = ("batch_norm2d", "batch_norm1d")
ABSORBING = {*LAYERS, *STANDING, *TABLES, *POOLS, *NORMS, *PRODUCTS, *QUOTIENTS, *BLENDS, "softmax"}
OF_WORDS = (*NORMS, *QUOTIENTS, "softmax")
"""What reads words where it can."""
GIVING = {
    *(*LAYERS, *NORMS, *PRODUCTS, *MOVES, *SIZES),
    *(*STANDING, "sub", *PASSING, *JOINS, "mean", "scale", "parameter", "buffer", *QUOTIENTS),
}
"""What can give words."""
SHARES = Step(2.0**-15, word=True), Step(2.0**-8)
"""What a softmax gives: words to a product, else bytes."""


@dataclass(frozen=True)
class Planned:
    """What a graph's values become.

    Args:
        steps: name of a node → step of the bytes or words that it shall give.
        narrow: name of a node that gives words → step of the bytes that some of its readers are given.
        free: names of those whose step needn't be a power of two.
        clamped: name of a node → the clamp that alone reads it, and is done by its op.
    """

    steps: Mapping[str, Step]
    narrow: Mapping[str, Step]
    free: frozenset[str]
    clamped: Mapping[str, Node]


def planned(graph: Graph, seen: Mapping[str, Seen], choose: Callable[..., Step] = best) -> Planned:
    """Plan the bytes of a folded graph.

    Args:
        graph: of floats.
        seen: what was seen of its nodes.
        choose: a step, given what `best` is.
    """
    nodes = {node.name: node for node in graph.nodes}
    readers = _readers(graph)
    clamped = {
        name: nodes[reader]
        for name, (reader, *others) in readers.items()
        if name in nodes and not others and reader in nodes and _clamps(nodes[name], nodes[reader])
    }
    origin = {clamp.name: nodes[name] for name, clamp in clamped.items()}
    groups = _groups(graph, nodes, readers, origin)
    steps: dict[str, Step] = {}
    narrow: dict[str, Step] = {}
    frees = set[str]()
    words = _words(groups)
    for kind, group in groups.items():
        looked = [seen[name] for name in group.names if name in seen and name not in clamped]
        if not looked:
            continue
        values, ends = cat([each.values() for each in looked]), _ends(looked)
        free = group.own.isdisjoint(SHIFTED) and group.read <= ABSORBING
        if "softmax" in group.own:
            step = SHARES[not group.read <= {"matmul", "mul"}]
        elif kind in words or "div" in group.own:  # of quotients some channels have far more than others
            step = wide(*ends)
            if others := group.read - {*OF_WORDS, *JOINS, *PASSING, "output", *(() if kind in words else ("mul",))}:
                narrow |= dict.fromkeys(group.names, choose(values, *ends, free=others <= ABSORBING))
        elif group.read == {"output"} and group.own <= {*LAYERS, *POOLS}:
            step = wide(*ends)
        else:
            step = choose(values, *ends, free=free)
            frees |= set(group.names) if free else set()
        steps |= dict.fromkeys(group.names, step)
    return Planned(steps, narrow, frozenset(frees), clamped)


@dataclass(frozen=True)
class _Group:
    """Values of one step: their names, the ops that give them and those that read them, without what moves them."""

    names: list[str]
    own: set[str]
    read: set[str]
    readers: set[str]


def _groups(
    graph: Graph, nodes: Mapping[str, Node], readers: Mapping[str, list[str]], origin: Mapping[str, Node]
) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    kinds = _alike(graph)
    for name, kind in kinds.items():
        group = groups.setdefault(kind, _Group([], set(), set(), set()))
        group.names.append(name)
        if name in nodes:
            group.own.add(origin.get(name, nodes[name]).op)
        for reader in readers[name]:
            group.read.add(nodes[reader].op if reader in nodes else "output")
            if reader in nodes and nodes[reader].op in PASSING:
                group.readers.add(kinds[reader])
    for group in groups.values():
        group.own.difference_update(MOVES)
        group.read.difference_update(MOVES)
    return groups


def _words(groups: Mapping[str, _Group]) -> set[str]:
    """The groups that are words: what a norm reads, and what is added up to that."""
    able = {kind for kind, group in groups.items() if group.own and group.own <= GIVING}
    words = {kind for kind in able if not groups[kind].read.isdisjoint(OF_WORDS)}
    while more := {kind for kind in able - words if groups[kind].readers & words}:
        words |= more
    return words


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
    if node.op in JOINS:
        yield from node.inputs
    elif node.op in MOVES:
        yield node.inputs[0]
