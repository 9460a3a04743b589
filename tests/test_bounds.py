"""Bounds: graphs that ask for more memory than there is are refused before any is taken."""

import json
import shutil
import time
from functools import partial

import pytest
import torch

import zoo
from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.hub import repository
from zoo.structure.base import skeleton
from zoo.structure.description import Description
from zoo.structure.graph import aten, bounds
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.plan import Factor, Plan, Rank, apply_
from zoo.structure.tensors import assign_, tensors_of

IMAGE = [3, 224, 224]
FLAT = Node("v", "reshape", ("x",), {"shape": [-1]})
COLUMN, ROW = Node("c", "reshape", ("x",), {"shape": [-1, 1]}), Node("r", "reshape", ("x",), {"shape": [1, -1]})
POINT = {"in_channels": 3, "out_channels": 3, "kernel_size": 1}
NO_BIAS = {"has_biases": False, "num_layers": 1, "bidirectional": False, "batch_first": False}


def held(name, *shape, dtype="int64"):
    return Node(name, "buffer", (), {"shape": list(shape), "dtype": dtype})


def each(count, *nodes):
    """Repeat nodes; `<` in a name is the number before, which is the input x at first."""

    def name(text, i):
        return "x" if text.endswith("<") and not i else text.replace("<", str(i - 1)).replace(">", str(i))

    return [
        Node(name(n.name, i), n.op, tuple(name(read, i) for read in n.inputs), n.attributes)
        for i in range(count)
        for n in nodes
    ]


SIZE = Node("n", "size", ("x",), {"dim": 0})


def recurrent(width):
    """A layer that takes every number of an image as a step."""
    return [
        held("i", 4 * width, 1, dtype="float32"),
        held("o", 4 * width, width, dtype="float32"),
        held("h", 1, 1, width, dtype="float32"),
        Node("l", "reshape", ("x",), {"shape": [-1, 1, 1]}),
        Node("b", "aten.lstm.input", ("l", *"hhio"), {**NO_BIAS, "hx": ["$1", "$2"], "params": ["$3", "$4"]}),
    ]


INDEX = (held("i", 100_000), held("j", 100_000, 1))
HOSTILE = {
    "outer product": [COLUMN, ROW, Node("b", "mul", ("c", "r"))],
    "outer product of matmul": [COLUMN, ROW, Node("b", "matmul", ("c", "r"))],
    "outer product of einsum": [
        FLAT,
        Node("b", "aten.einsum", ("v", "v"), {"equation": "i,j->ij", "tensors": ["$0", "$1"]}),
    ],
    "outer product of constants": [held("p", 100_000, 1), held("q", 1, 100_000), Node("b", "add", ("p", "q"))],
    "chained outer products": [
        held("w", 2000),
        Node("o", "aten.outer", ("w", "w")),
        Node("f", "reshape", ("o",), {"shape": [-1]}),
        Node("b", "aten.outer", ("f", "f")),
    ],
    "meshgrid": [FLAT, Node("b", "aten.meshgrid.indexing", ("v", "v"), {"tensors": ["$0", "$1"], "indexing": "ij"})],
    "pairs within an operation": [
        Node("p", "reshape", ("x",), {"shape": [-1, 1, 3]}),
        Node("q", "reshape", ("x",), {"shape": [1, -1, 3]}),
        Node("b", "aten.cosine_similarity", ("p", "q"), {"dim": 2}),
    ],
    "gather": [*INDEX, Node("h", "gather", ("x", "i"), {"dim": 2}), Node("b", "gather", ("h", "i"), {"dim": 3})],
    "index_select": [
        *INDEX,
        Node("h", "aten.index_select", ("x", "i"), {"dim": 2, "index": "$1"}),
        Node("b", "aten.index_select", ("h", "i"), {"dim": 3, "index": "$1"}),
    ],
    "index": [*INDEX, Node("b", "aten.index.Tensor", ("x", "j", "i"), {"indices": [None, None, "$1", "$2"]})],
    "embedding": [held("w", 10, 10_000), held("k", 1000, 1000), Node("b", "aten.embedding", ("w", "k"))],
    "itself appended forty times": each(
        40,
        Node("s>", "aten.slice.Tensor", ("b<",), {"dim": 0, "start": 0}),
        Node("b>", "concat", ("b<", "s>"), {"dim": 0}),
    ),
    "padding of a convolution": [Node("b", "conv2d", ("x",), {**POINT, "out_channels": 512, "padding": 4096})],
    "padding of convolutions": each(9, Node("b>", "conv2d", ("b<",), {**POINT, "padding": 4000})),
    "channels of a convolution": [Node("b", "conv2d", ("x",), {**POINT, "out_channels": 100_000})],
    "views of views": each(3, Node("b>", "aten.unfold", ("b<",), {"dimension": 3, "size": 112, "step": 1})),
    "much that is used later": [
        *each(60, Node("b>", "upsample", ("x",), {"scale_factor": 20})),
        Node("s", "concat", tuple(f"b{i}" for i in range(60)), {"dim": 1}),
    ],
    "many parts": [FLAT, Node("b", "unbind", ("v",), {"dim": 0})],
    "many parts of a size": [FLAT, Node("b", "aten.split.Tensor", ("v",), {"split_size": 1})],
    "many parts that nothing reads": each(500, Node("b>", "unbind", ("x",), {"dim": 3})),
    "many chunks of nothing": [
        Node("s", "aten.slice.Tensor", ("x",), {"dim": 3, "start": 224}),
        *each(2, Node("b>", "chunk", ("s",), {"dim": 3, "chunks": 70_000})),
    ],
    "steps that keep their gates": recurrent(5000),
    "the square of the batch": [
        Node("m", "upsample", ("x",), {"scale_factor": 20}),
        Node("c", "unsqueeze", ("m",), {"dim": 1}),
        Node("b", "mul", ("c", "m")),
    ],
    "zeros": [Node("b", "zeros", ("x",), {"size": [100_000, 100_000]})],
    "more zeros than can be counted": [Node("b", "zeros", ("x",), {"size": [100_000] * 9})],
    "full": [Node("b", "full", ("x",), {"size": [100_000, 100_000], "fill_value": 1})],
    "zeros of a size": [SIZE, Node("b", "zeros", ("x", "n"), {"size": ["$1", 100_000, 100_000]})],
    "zeros of multiplied sizes": [
        SIZE,
        Node("m", "int_mul", ("n",), {"b": 99_999}),
        Node("b", "zeros", ("x", "m"), {"size": ["$1", 99_999]}),
    ],
    "the square of what was made large": [
        FLAT,
        Node("a", "aten.repeat", ("v",), {"repeats": [2]}),
        Node("n", "size", ("a",), {"dim": 0}),
        Node("b", "zeros", ("x", "n"), {"size": ["$1", "$1"]}),
    ],
    "repeated": [Node("b", "aten.repeat", ("x",), {"repeats": [100_000, 1, 1, 1]})],
    "repeated again": each(2, Node("b>", "aten.repeat", ("b<",), {"repeats": [200, 1, 1, 1]})),
    "a view expanded": [Node("c", "mean", ("x",), {"dim": [0, 1]}), Node("b", "expand", ("c",), {
        "shape": [100_000, 224, 224]})],
    "upsample": [Node("b", "upsample", ("x",), {"size": [100_000, 100_000]})],
    "upsample to one side": [Node("b", "upsample", ("x",), {"size": 90_000})],
    "upsample by a factor": [Node("b", "upsample", ("x",), {"scale_factor": [50_000, 50_000]})],
    "upsampled again": each(2, Node("b>", "upsample", ("b<",), {"scale_factor": 20})),
    "upsample of ATen": [Node("b", "aten.upsample_nearest2d.vec", ("x",), {"scale_factors": [50_000.0, 50_000.0]})],
    "pooled to more": [Node("b", "adaptive_avg_pool2d", ("x",), {"output_size": 90_000})],
    "padding": [Node("b", "aten.pad", ("x",), {"pad": [4096] * 8})],
    "padding by a constant": [Node("b", "aten.constant_pad_nd", ("x",), {"pad": [4096] * 8})],
    "padding of a convolution of ATen": [
        held("w", 1, 3, 1, 1, 1, dtype="float32"),
        Node("y", "unsqueeze", ("x",), {"dim": 2}),
        Node("b", "aten.conv3d", ("y", "w"), {"padding": [4096] * 3}),
    ],
    "copies of copies": each(6, Node("b>", "concat", ("b<",) * 64, {"dim": 0})),
    "stride of a transposed convolution": [Node("b", "conv_transpose2d", ("x",), {**POINT, "stride": 90_000})],
    "as much as values say": [held("i", 3, dtype="bool"), Node("b", "aten.index.Tensor", ("x", "i"), {
        "indices": [None, "$1"]})],
    "as many classes as values say": [held("i", 3), Node("b", "aten.one_hot", ("i",))],
    "what fits nothing": [held("i", 5), Node("b", "add", ("x", "i"))],
}  # fmt: skip


def resident():
    """Peak memory of this process, KiB."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("case", HOSTILE)
def test_what_grows_by_what_it_is_given_is_refused_at_once_and_nothing_is_allocated(case):
    graph = Graph(("x",), tuple(HOSTILE[case]), (HOSTILE[case][-1].name,))
    model = graph_module(graph)
    before, started = resident(), time.process_time()
    with pytest.raises(StructureError, match=r"node 'b\d*'.*; mend the graph") as caught:
        bounds.check_memory(graph, model, IMAGE)

    assert time.process_time() - started < 5
    assert resident() - before < 64 * 1024
    assert "\n" not in str(caught.value)


def graph_of(*nodes):
    return Graph(("x",), nodes, (nodes[-1].name,))


def wide(channels):
    """A graph whose largest tensors have so many channels of 1024 x 1024 pixels."""
    conv = Node("b", "conv2d", ("x",), {"in_channels": 3, "out_channels": channels, "kernel_size": 1})
    return graph_of(conv, Node("m", "mean", ("b",), {"dim": [2, 3]}))


def test_the_bound_is_of_bytes_per_image():
    """8 GiB hold 2048 channels of float32; the means take some too."""
    fits, exceeds = wide(2047), wide(2049)
    bounds.check_memory(fits, graph_module(fits), [3, 1024, 1024])
    with pytest.raises(StructureError, match=r"node 'b', given 1 x 3 x 1024 x 1024: .* takes 8\.0 GiB"):
        bounds.check_memory(exceeds, graph_module(exceeds), [3, 1024, 1024])


def test_what_a_plan_makes_of_a_graph_that_passed_is_bounded_too():
    """Between its factors a layer has two channels more than the 2047 that fit."""
    graph, size = wide(2047), [3, 1024, 1024]
    bounds.check_memory(graph, graph_module(graph), size)
    factored = apply_(graph_module(graph), Plan((Factor({"b": Rank(2)}),)))
    with pytest.raises(StructureError, match=r"node 'b', given 1 x 3 x 1024 x 1024: .* takes 8\.0 GiB"):
        bounds.check_memory(graph, factored, size)


def test_what_is_no_longer_used_takes_nothing():
    """Each of ten tensors takes 4 GiB: two of them at a time are accepted, which three wouldn't be."""
    chain = each(10, Node("b>", "relu", ("b<",)))
    graph = graph_of(*chain)

    bounds.check_memory(graph, graph_module(graph), [1024, 1024, 1024])


def test_the_weights_are_not_counted():
    graph = graph_of(*(held(f"w{i}", 10_000, 10_000) for i in range(30)), Node("b", "relu", ("x",)))

    bounds.check_memory(graph, graph_module(graph), [3, 8, 8])


@pytest.mark.parametrize("name", ["samvit_huge_patch16", "sam2_hiera_large", "efficientnet_l2", "maxvit_xlarge_tf_512"])
def test_the_largest_models_of_timm_take_less_than_half_of_what_is_accepted(name):
    model = skeleton(Base(f"timm/{name}")).eval()
    image = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")
    with torch.no_grad(), bounds._Live([*tensors_of(model).values(), image], bounds.MAX_IMAGE_BYTES // 2):
        model(image)


@pytest.mark.parametrize("size", [None, [3, 224], [3, 224, -1], [3, 224, "a"], [3, 224, 10**9], 224])
def test_a_graph_needs_an_input_size(size):
    graph = wide(1)
    with pytest.raises(StructureError, match="expected channels, height and width"):
        bounds.check_memory(graph, graph_module(graph), size)


def test_a_graph_runs_at_the_size_that_is_stated():
    conv = Node("b", "conv2d", ("x",), {"in_channels": 3, "out_channels": 4, "kernel_size": 1})
    graph = graph_of(conv, held("w", 64, 64, dtype="float32"), Node("s", "add", ("b", "w")))
    bounds.check_memory(graph, graph_module(graph), [3, 64, 64])
    with pytest.raises(StructureError, match=r"node 's', given 1 x 3 x 224 x 224: can't be run: .*; mend the graph"):
        bounds.check_memory(graph, graph_module(graph), IMAGE)


def test_many_steps_of_a_recurrent_layer_are_no_more_than_one():
    graph = graph_of(*recurrent(2))

    bounds.check_memory(graph, graph_module(graph), IMAGE)


class Peak(bounds._Live):
    """Notes the most bytes that were in use."""

    peak = 0

    def _add(self, tensor):
        super()._add(tensor)
        self.peak = max(self.peak, self.bytes)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_recurrent_layer_takes_what_its_steps_take_one_after_the_other(batch_first):
    layer = torch.nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=batch_first, device="meta")
    flags = {"has_biases": True, "num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    x, h = torch.empty(30, 70, 6, device="meta"), torch.empty(4, 30 if batch_first else 70, 5, device="meta")
    weights = list(layer.parameters())
    found, peaks = [], []
    for run in (aten.lstm, partial(bounds._abreast, aten.lstm)):
        with torch.no_grad(), Peak([x, h, *weights], 2**30) as live:
            found.append([tensor.shape for tensor in run(x, [h, h], weights, **flags)])
        peaks.append(live.peak)
    assert found[0] == found[1]
    assert peaks[0] <= peaks[1] <= 4 * peaks[0]


def saved(folder):
    """A repository of a graph."""
    graph = wide(4)
    model = assign_(graph_module(graph), {"b.weight": torch.ones(4, 3, 1, 1), "b.bias": torch.zeros(4)}, "made")
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    repository.write_repository(folder, model, Description("net", None, graph=graph), {})
    return folder


def altered(folder, nodes):
    data = json.loads((folder / "graph.json").read_text())
    data["nodes"] += [{"name": n.name, "op": n.op, "inputs": list(n.inputs)} for n in nodes]
    data["outputs"] = [nodes[-1].name]
    (folder / "graph.json").write_text(json.dumps(data))


def test_a_file_is_checked_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    folder, runs, run = saved(tmp_path / "net"), [], bounds._run
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(bounds, "_run", lambda *given: (runs.append(given), run(*given)))
    assert zoo.load(folder)(torch.ones(2, 3, 8, 8)).shape == (2, 4)
    zoo.load(folder)
    assert len(runs) == 2, "one image and many"

    altered(folder, [Node("t", "aten.t", ("m",)), Node("n", "aten.one_hot", ("t",))])
    for _ in range(2):
        with pytest.raises(StructureError, match="node 'n'"):
            zoo.load(folder)
    assert len(runs) == 4


def test_what_is_refused_is_not_saved(tmp_path):
    graph = graph_of(Node("b", "conv2d", ("x",), {**POINT, "padding": 4096, "out_channels": 50}))
    model = assign_(graph_module(graph), {"b.weight": torch.ones(50, 3, 1, 1), "b.bias": torch.ones(50)}, "made")
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    with pytest.raises(StructureError, match="node 'b'"):
        repository.write_repository(tmp_path / "net", model, Description("net", None, graph=graph), {})
    assert not (tmp_path / "net").exists()
