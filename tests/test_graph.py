"""Graph: structures as lists of nodes, run as plain torch modules."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zoo.errors import StructureError
from zoo.structure.graph import ops
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.tensors import tensors_of

NET = Graph(
    ("x",),
    (
        Node("stem.conv", "conv2d", ("x",), {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "padding": 1}),
        Node("norm", "batch_norm2d", ("stem.conv",), {"num_features": 4}),
        Node("scale", "parameter", (), {"shape": [4, 1, 1]}),
        Node("scaled", "mul", ("norm", "scale")),
        Node("act", "relu", ("scaled",)),
        Node("again", "conv2d", ("act",), {"in_channels": 4, "out_channels": 4, "kernel_size": 1}),
        Node("once_more", "conv2d", ("again",), {}, "again"),
        Node("sum", "add", ("act", "once_more")),
        Node("height", "size", ("sum",), {"dim": 2}),
        Node("rows", "reshape", ("sum", "height"), {"shape": ["batch", 4, "input", -1]}),
        Node("pooled", "mean", ("rows",), {"dim": [2, 3]}),
        Node("drop", "dropout", ("pooled",), {"p": 0.1}),
        Node("head", "linear", ("drop",), {"in_features": 4, "out_features": 5}),
    ),
    ("head",),
)


def filled(graph, seed=0):
    """The graph's model with random weights, and those by name."""
    model, generator = graph_module(graph), torch.Generator().manual_seed(seed)
    model.to_empty(device="cpu")
    for tensor in tensors_of(model).values():
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator))
        else:
            tensor.data.zero_()
    return model, dict(model.state_dict())


def by_hand(w, x):
    """What NET computes, in torch's own functions."""
    y = F.conv2d(x, w["stem.conv.weight"], w["stem.conv.bias"], padding=1)
    y = F.batch_norm(y, w["norm.running_mean"], w["norm.running_var"], w["norm.weight"], w["norm.bias"])
    y = F.relu(y * w["scale"])
    z = y
    for _ in range(2):
        z = F.conv2d(z, w["again.weight"], w["again.bias"])
    return F.linear((y + z).mean((2, 3)), w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_graph_computes_what_its_nodes_say_at_any_batch(batch):
    model, weights = filled(NET)
    x = torch.randn(batch, 3, 6, 7)

    assert torch.allclose(by_hand(weights, x), model(x), atol=1e-6)


def test_a_graph_survives_json():
    assert Graph.from_json(json.loads(json.dumps(NET.to_json()))) == Graph.from_json(NET.to_json())
    model, weights = filled(Graph.from_json(json.loads(json.dumps(NET.to_json()))))
    x = torch.randn(2, 3, 6, 6)

    assert torch.allclose(by_hand(weights, x), model(x), atol=1e-6)


def test_names_are_those_of_the_nodes():
    model, weights = filled(NET)

    assert {"stem.conv.weight", "scale", "again.bias", "head.weight"} < weights.keys()
    assert isinstance(model.stem.conv, nn.Conv2d)
    assert "Conv2d(3, 4" in str(model)
    assert sum(p.numel() for p in model.parameters()) == (3 * 9 + 1) * 4 + 8 + 4 + 20 + 25


def test_a_graph_trains():
    model, _ = filled(NET)
    model.train()
    model(torch.randn(4, 3, 6, 6)).square().sum().backward()

    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_graph_can_be_exported_with_any_batch():
    model, weights = filled(NET)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, 6, 6),), dynamic_shapes={"x": {0: batch}})
    x = torch.randn(7, 3, 6, 6)

    assert torch.allclose(by_hand(weights, x), program.module()(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_graph_runs_in_other_precisions(dtype):
    model, weights = filled(NET)
    x = torch.randn(2, 3, 6, 6)

    assert torch.allclose(by_hand(weights, x), model.to(dtype)(x.to(dtype)).float(), rtol=0.05, atol=0.05)


def test_products_are_counted():
    model, _ = filled(NET)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 6, 6))

    assert counter.get_total_flops() == 2 * (36 * (4 * 27 + 2 * 16) + 20)


@pytest.mark.parametrize(
    ("op", "expected", "inputs"),
    [
        ("pad_same", lambda x: F.pad(x, (1, 2, 0, 1)), [torch.randn(1, 2, 6, 5)]),
        ("scores", lambda q, k: q @ k.transpose(-2, -1) / 2, [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]),
        ("channel_affine", lambda x, w: x * w[None, :, None, None], [torch.randn(2, 3, 4, 4), torch.randn(3)]),
        ("channel_affine", lambda x, w, b: x * w + b, [torch.randn(2, 4, 3), torch.randn(3), torch.randn(3)]),
        ("prepend", lambda t, x: torch.cat([torch.cat([t, t]), x], 1), [torch.randn(1, 1, 3), torch.randn(2, 4, 3)]),
        ("gather", lambda x, i: x[:, i], [torch.randn(2, 5), torch.tensor([4, 0, 0])]),
        ("masked", lambda a, m: a + m[[0, 1, 0, 1]][:, None], [torch.randn(4, 3, 2, 2), torch.randn(2, 2, 2)]),
    ],
)
def test_an_op_of_our_own_equals_its_definition(op, expected, inputs):
    attributes = {"pad_same": {"kernel_size": [3, 4], "stride": [2, 1], "dilation": [1, 1]}, "gather": {"dim": 1}}

    assert torch.allclose(expected(*inputs), ops.FUNCTIONS[op].call(*inputs, **attributes.get(op, {})))


def test_windows_are_cut_and_put_together():
    x = torch.randn(2, 4, 6, 3)
    windows = ops.window_partition(x, [2, 3])

    assert torch.equal(x[0, :2, :3], windows[0])
    assert torch.equal(x[1, 2:, 3:], windows[7])
    assert torch.equal(x, ops.window_reverse(windows, [2, 3], [4, 6]))


def test_patches_are_merged_in_the_order_of_swin():
    x = torch.randn(1, 4, 4, 3)
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]

    assert torch.equal(torch.cat(corners, -1), ops.merge_patches(x))


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (3, 1, 2), (5, 3, 1), (2, 2, 1)])
def test_padding_same_gives_a_stride_th_of_the_pixels_rounded_up(size, kernel, stride, dilation):
    padded = ops.pad_same(torch.ones(1, 1, size, size), *([each] * 2 for each in (kernel, stride, dilation)))
    out = F.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride, dilation=dilation)

    assert out.shape[-1] == -(-size // stride)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": {}}, "graph: nodes is {}, expected a list of at most 10,000"),
        ({"extra": 1}, "graph: unknown key 'extra', known are inputs, nodes, outputs"),
        ({"nodes": [{"name": "a"}]}, "graph: nodes[0]: missing 'op'"),
        (
            {"nodes": [{"name": "a", "op": "os.system", "inputs": ["x"]}]},
            "node 'a' is a 'os.system', an operation this version",
        ),
        (
            {"nodes": [{"name": "a", "op": "relu", "inputs": ["b"]}]},
            "node 'a' reads 'b', which doesn't stand before it",
        ),
        ({"nodes": [{"name": "x", "op": "relu", "inputs": ["x"]}]}, "node 'x': the name is taken"),
        (
            {"nodes": [{"name": "a b", "op": "relu", "inputs": ["x"]}]},
            "the name is taken, or isn't one of dotted words",
        ),
        ({"nodes": [{"name": "a", "op": "relu", "inputs": "x"}]}, "graph: nodes[0].inputs is 'x', expected a list"),
        (
            {"nodes": [{"name": "a", "op": "relu", "inputs": ["x"], "attributes": {"inplace": True}}]},
            "relu has no attribute 'inplace'",
        ),
        (
            {"nodes": [{"name": "a", "op": "linear", "inputs": ["x"], "attributes": {"in_features": 10**12}}]},
            "in_features is 1000000000000, expected a whole number from -200,000 to 200,000",
        ),
        (
            {"nodes": [{"name": "a", "op": "linear", "inputs": ["x"], "attributes": {"in_features": 1e39}}]},
            "to 200,000 or a number that single precision holds",
        ),
        (
            {"nodes": [{"name": "a", "op": "mean", "inputs": ["x"], "attributes": {"dim": {"a": 1}}}]},
            "node 'a'.dim is {'a': 1}, expected true or false or text of at most 1,000 characters or a",
        ),
        ({"nodes": [{"name": "a", "op": "conv2d", "inputs": ["x"], "module": "b"}]}, "uses the module of 'b'"),
        (
            {"nodes": [{"name": "a", "op": "relu", "input": ["x"]}]},
            "nodes[0]: unknown key 'input', known are name, op, ",
        ),
        (
            {"nodes": [{"name": "a", "op": "permute", "attributes": {"dims": [[[[1]]]]}}]},
            "node 'a'.dims[0][0][0] is [1], expected ",
        ),
        ({"nodes": [], "outputs": ["y"]}, "output 'y' isn't a node"),
        ({"nodes": [], "outputs": []}, "no input or no output"),
        ({"keys": ["a", "b"]}, "keys aren't names of its 1 outputs, each once"),
        ({"outputs": ["x", "x"], "keys": ["a", "a"]}, "keys aren't names of its 2 outputs, each once"),
        ({"keys": [1]}, "keys[0] is 1, expected text"),
        ({"keys": ["\x1b[31m"]}, "keys have characters that can't be printed"),
    ],
)
def test_a_graph_that_cannot_be_understood_is_refused(change, message):
    data = {"inputs": ["x"], "outputs": ["x"], "nodes": [], **change}

    with pytest.raises(StructureError) as caught:
        Graph.from_json(data)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"in_features": 100_000, "out_features": 100_000_000},
            "is 100000000, expected a whole number from -200,000 to",
        ),
        ({"in_features": -1, "out_features": 3}, "no linear of"),
        ({}, "no linear of {}"),
    ],
)
def test_a_node_that_cannot_be_built_is_named_and_nothing_is_allocated(attributes, message):
    with pytest.raises(StructureError, match="node 'a'") as caught:
        graph_module(Graph(("x",), (Node("a", "linear", ("x",), attributes),), ("a",)))

    assert message in str(caught.value)


def test_what_is_absurd_in_sum_is_refused():
    nodes = tuple(Node(f"a{i}", "parameter", (), {"shape": [10_000, 9_999]}) for i in range(1_100))

    with pytest.raises(StructureError, match="asks for more than"):
        graph_module(Graph(("x",), nodes, ("x",)))


@pytest.mark.parametrize("p", [-0.1, 2, "a", [0.1], None])
def test_branches_are_dropped_by_a_share(p):
    with pytest.raises(StructureError, match="node 'a': no drop_path of"):
        graph_module(Graph(("x",), (Node("a", "drop_path", ("x",), {"p": p}),), ("a",)))


@pytest.mark.parametrize("key", ["a': print(1), 'b", 'a": print(1), "b', "a\\': print(1), 'b", "'''+print(1)+'''"])
def test_a_key_never_becomes_code(key, capsys):
    model = graph_module(Graph(("x",), (Node("a", "relu", ("x",)),), ("a",), (key,)))
    assert list(copy.deepcopy(model)(torch.ones(1))) == [key]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["x=print('run')", "x, y=1", "class", "a.class", "x y", "", ".".join(["a"] * 3000), "é.b c"], ids=ascii
)
def test_a_name_never_becomes_code(name):
    """torch.fx compiles source that holds the names of inputs and modules."""
    for graph in (
        Graph((name,), (), (name,)),
        Graph(("x",), (Node(name, "relu", ("x",)),), (name,)),
        Graph(("x",), (Node(name, "linear", ("x",), {"in_features": 1, "out_features": 1}),), ("x",)),
    ):
        with pytest.raises(StructureError):
            graph_module(graph)


def test_inputs_have_different_names():
    with pytest.raises(StructureError, match="inputs aren't words, each once"):
        graph_module(Graph(("x", "x"), (), ("x",)))


@pytest.mark.parametrize("attributes", [{}, {"index": "0"}])
def test_an_item_needs_its_index(attributes):
    with pytest.raises(StructureError, match="node 'a': an item needs its index"):
        graph_module(Graph(("x",), (Node("a", "item", ("x",), attributes),), ("a",)))


WRITTEN = """{"inputs": ["x"], "outputs": ["head"], "nodes": [
 {"name": "stem", "op": "conv2d", "inputs": ["x"],
  "attributes": {"in_channels": 3, "out_channels": 4, "kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1],
                 "dilation": [1, 1], "groups": 1, "bias": false}},
 {"name": "norm", "op": "batch_norm2d", "inputs": ["stem"], "attributes": {"num_features": 4, "eps": 0.001}},
 {"name": "act", "op": "hardswish", "inputs": ["norm"]},
 {"name": "height", "op": "size", "inputs": ["act"], "attributes": {"dim": 2}},
 {"name": "rows", "op": "reshape", "inputs": ["act", "height"], "attributes": {"shape": ["batch", 4, "input", -1]}},
 {"name": "index", "op": "buffer", "attributes": {"shape": [2], "dtype": "int64"}},
 {"name": "kept", "op": "gather", "inputs": ["rows", "index"], "attributes": {"dim": 1}},
 {"name": "token", "op": "parameter", "attributes": {"shape": [1, 2, 1, 1]}},
 {"name": "sum", "op": "add", "inputs": ["kept", "token"]},
 {"name": "large", "op": "upsample", "inputs": ["sum"], "attributes": {"scale_factor": 2.0, "mode": "nearest"}},
 {"name": "pooled", "op": "mean", "inputs": ["large"], "attributes": {"dim": [2, 3], "keepdim": false}},
 {"name": "head", "op": "linear", "inputs": ["pooled"], "attributes": {"in_features": 2, "out_features": 5}}]}"""


def test_a_graph_written_by_the_first_version_loads_and_computes_the_same():
    graph = Graph.from_json(json.loads(WRITTEN))
    model, w = filled(graph)
    x = torch.randn(3, 3, 8, 8)
    y = F.conv2d(x, w["stem.weight"], stride=2, padding=1)
    y = F.batch_norm(y, w["norm.running_mean"], w["norm.running_var"], w["norm.weight"], w["norm.bias"], eps=0.001)
    y = F.hardswish(y)[:, w["index"]] + w["token"]

    assert torch.allclose(F.linear(y.mean((2, 3)), w["head.weight"], w["head.bias"]), model(x), atol=1e-5)
    assert Graph.from_json(graph.to_json()) == graph


def test_names_may_be_numbers_of_a_list_and_what_lies_below_a_module_may_come_first():
    linear = {"in_features": 2, "out_features": 2}
    nodes = (
        Node("blocks.0.weight", "parameter", (), {"shape": []}),
        Node("a", "mul", ("x", "blocks.0.weight")),
        Node("blocks.1.inner", "linear", ("a",), linear),
        Node("blocks.1", "linear", ("blocks.1.inner",), linear),
    )
    model, weights = filled(Graph(("x",), nodes, ("blocks.1",)))
    x = torch.randn(3, 2)
    y = F.linear(x * weights["blocks.0.weight"], weights["blocks.1.inner.weight"], weights["blocks.1.inner.bias"])

    assert torch.allclose(F.linear(y, weights["blocks.1.weight"], weights["blocks.1.bias"]), model(x))


def test_an_attribute_may_name_an_input_that_does_not_come_first():
    nodes = (
        Node("n", "size", ("x",), {"dim": 0}),
        Node("m", "int_floordiv", ("n",), {"b": 2}),
        Node("half", "aten.slice.Tensor", ("m", "x"), {"end": "$0"}),
        Node("low", "aten.clamp_min", ("half",), {"min": "-inf"}),
        Node("zeros", "zeros", ("x", "m"), {"size": ["$1", 3], "dtype": "int64"}),
    )
    half, zeros = graph_module(Graph(("x",), nodes, ("low", "zeros")))(x := torch.randn(5, 3))

    assert torch.equal(x[:2], half)
    assert torch.equal(torch.zeros(2, 3, dtype=torch.int64), zeros)
