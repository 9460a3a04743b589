"""Every class of a torch-dag checkpoint that needs no weights, beside what the source's own module computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.errors import StructureError
from zoo.hub.foreign.torch_dag.vertices import convert_vertex
from zoo.hub.foreign.torch_dag.writer import Writer
from zoo.hub.foreign.unpickle import Global, Record
from zoo.structure.graph.graph import Graph, graph_module
from zoo.structure.tensors import tensors_of

SWIN = "timm.models.swin_transformer_v2_cr."
IMAGE, TOKENS = (2, 4, 6, 6), (2, 9, 4)


def record(name, **state):
    name = name if "." in name else f"torch_dag.structured_modules.{name}"
    return Record(name, state=state)


def run(module, *inputs):
    """What a vertex of this module makes of its inputs."""
    writer = Writer()
    names = [f"x{number}" for number in range(len(inputs))]
    value = convert_vertex(writer, "vertex", module, list(names))
    model = graph_module(Graph(tuple(names), tuple(writer.nodes), (value,) if isinstance(value, str) else value))
    for path in tensors_of(model):
        parent, _, name = path.rpartition(".")
        held = writer.tensors[path]
        kind = nn.Parameter(held, held.is_floating_point()) if path in dict(model.named_parameters()) else held
        setattr(model.get_submodule(parent), name, kind)
    return model(*inputs)


def image(*shape):
    return torch.randn(*(shape or IMAGE))


def conv(**more):
    plain = {"groups": 1, "stride": (2, 2), "dilation": (1, 1), "padding": (0, 0), "padding_mode": "zeros"}
    weights = {"_parameters": {"weight": nn.Parameter(torch.randn(5, 4, 3, 3)), "bias": None}}
    return record(**{"name": "Conv2DSameModule", "kernel_size": (3, 3), **plain, **weights, **more})


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (record("AddModule"), [image()], lambda x: x),
        (record("MulModule"), [image()], lambda x: x),
        (record("ConcatModule", dim=1), [image()], lambda x: x),
        (record("AddModule"), [image(), image(), image()], lambda x, y, z: x + y),
        (record("SubModule"), [image(), image()], lambda x, y: x - y),
        (record("MulModule"), [image(), image(2, 4, 1, 1)], lambda x, y: x * y),
        (record("ConcatModule", dim=1), [image(), image()], lambda x, y: torch.cat([x, y], 1)),
        (record("TensorExtractorModule", index=1), [image()], lambda x: x[1]),
        (record("SliceModule", slice_spec=slice(0, 1)), [image()], lambda x: x[:1]),
        (record("SliceModule", slice_spec=(slice(None), 0)), [image(*TOKENS)], lambda x: x[:, 0]),
        (record("SliceModule", slice_spec=(slice(None), slice(1, None))), [image(*TOKENS)], lambda x: x[:, 1:]),
        (record("SliceModule", slice_spec=(Ellipsis, None)), [image(*TOKENS)], lambda x: x[..., None]),
        (
            record("SliceModule", slice_spec=(slice(None), slice(0, 2), slice(1, 3), slice(0, 6))),
            [image()],
            lambda x: x[:, :2, 1:3, 1:3],  # the source takes the third for both of the last axes
        ),
        (record("PermuteModule", perm=(0, 2, 3, 1)), [image()], lambda x: x.permute(0, 2, 3, 1)),
        (record("TransposeModule", dim0=1, dim1=2), [image()], lambda x: x.transpose(1, 2)),
        (record("FlattenModule", start_dim=2, end_dim=3), [image()], lambda x: x.flatten(2)),
        (record("MeanModule", dim=(2, 3), keepdim=True), [image()], lambda x: x.mean((2, 3), keepdim=True)),
        (record("GlobalMeanPool2DModule", dim=(2, 3), keepdim=False), [image()], lambda x: x.mean((2, 3))),
        (record("ReshapeModule", target_shape=(4, 36)), [image()], lambda x: x.reshape(2, 4, 36)),
        (record("ReshapeModuleV2", target_shape=(-1, 4, 36)), [image()], lambda x: x.reshape(2, 4, 36)),
        (
            record("ReshapeWithSpecModule", spec="(B, C, H, W)->(B, H*W, C)", target_shape=None),
            [image()],
            lambda x: x.reshape(2, 36, 4),
        ),
        (
            record("ReshapeWithSpecModule", spec="(B,N,C)->(B,N,target)", target_shape=(2, 2)),
            [image(*TOKENS)],
            lambda x: x.reshape(2, 9, 2, 2),
        ),
        (
            record("ReshapeWithSpecModuleV2", spec={0: -1, 1: 2, 2: 2, 3: 6, 4: 6}, target_shape=None),
            [image()],
            lambda x: x.reshape(2, 2, 2, 6, 6),
        ),
        (record("ScalarMul", scalar=0.5), [image()], lambda x: 0.5 * x),
        (record("PowerModule", pow=2), [image()], lambda x: x**2),
        (record("RollModule", shifts=(-1, 2), dims=(1, 2)), [image()], lambda x: torch.roll(x, (-1, 2), (1, 2))),
        (record("TfMatmulModule", transpose=False, normalize=False), [image(*TOKENS), image(2, 4, 5)], torch.bmm),
        (
            record("TfMatmulModule", transpose=True, normalize=False),
            [image(*TOKENS), image(*TOKENS)],
            lambda x, y: x @ y.transpose(1, 2),
        ),
        (
            record("TfMatmulModule", transpose=True, normalize=True),
            [image(*TOKENS), image(*TOKENS)],
            lambda x, y: x @ y.transpose(1, 2) / 2,
        ),
        (conv(), [image()], None),
        (record("torch.nn.modules.activation.Hardswish"), [image()], F.hardswish),
        (record("torch.nn.modules.activation.Hardsigmoid"), [image()], F.hardsigmoid),
        (record("torch.nn.modules.activation.ReLU6"), [image()], F.relu6),
        (record("torch.nn.modules.activation.Softmax", dim=-1), [image()], lambda x: x.softmax(-1)),
        (record("torch.nn.modules.linear.Identity"), [image()], lambda x: x),
        (record("timm.layers.drop.DropPath", drop_prob=0.1), [image()], lambda x: x),
        (
            record("torch.nn.modules.pooling.AdaptiveAvgPool2d", output_size=1),
            [image()],
            lambda x: x.mean((2, 3), True),
        ),
    ],
    ids=lambda value: value.name.rpartition(".")[2] if isinstance(value, Record) else "",
)
def test_a_module_computes_what_the_source_s_does(module, inputs, expected):
    if expected is None:  # TensorFlow's SAME for 6 pixels, a kernel of 3 and a stride of 2: one row right and below
        weight = module.state["_parameters"]["weight"]
        assert torch.allclose(
            F.conv2d(F.pad(inputs[0], (0, 1, 0, 1)), weight, stride=2), run(module, *inputs), atol=1e-5
        )
    else:
        assert torch.allclose(expected(*inputs), run(module, *inputs), atol=1e-6)


def test_chunks_are_taken_apart_by_their_number():
    writer = Writer()
    chunks = convert_vertex(writer, "chunks", record("ChunkModule", chunks=2, dim=1), ["x"])
    second = convert_vertex(writer, "second", record("TensorExtractorModule", index=1), [chunks])
    x = image()

    assert torch.equal(x[:, 2:], graph_module(Graph(("x",), tuple(writer.nodes), (second,)))(x))


def test_a_shape_is_asked_for_when_the_model_runs():
    writer = Writer()
    shape = convert_vertex(writer, "shape", record("GetShapeModuleV2"), ["x"])
    batch = convert_vertex(writer, "batch", record("TensorExtractorModule", index=0), [shape])
    spec = {0: "predecessor", 1: -1}
    flat = convert_vertex(writer, "flat", record("ReshapeWithSpecModule", spec=spec, target_shape=None), ["x", batch])
    model = graph_module(Graph(("x",), tuple(writer.nodes), (flat,)))

    assert [model(image(n, 4, 6, 6)).shape for n in (1, 3)] == [(1, 144), (3, 144)]


def test_a_token_is_expanded_to_the_batch():
    writer = Writer()
    expanded = convert_vertex(writer, "expanded", record("ExpandTokenModule", sizes=(-1, -1)), ["token", "batch"])
    model = graph_module(Graph(("token", "batch"), tuple(writer.nodes), (expanded,)))
    token = image(1, 1, 4)

    assert torch.equal(token.expand(3, -1, -1), model(token, 3))


@pytest.mark.parametrize("function", ["window_partition", "window_reverse"])
def test_the_two_known_functions_are_written_out(function):
    spec = {0: "predecessor", 1: {0: 2, 1: 3}, **({2: {0: 6, 1: 6}} if function == "window_reverse" else {})}
    module = record("AutoWrapFunctionModule", function=Global(f"{SWIN}{function}"), spec=spec)
    x = image(2, 6, 6, 4)
    cut = x.reshape(2, 3, 2, 2, 3, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 2, 3, 4)

    assert torch.equal(cut, run(module, x)) if function == "window_partition" else torch.equal(x, run(module, cut))


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (record("torch.nn.modules.rnn.LSTM"), ["x"], "vertex is a torch.nn.modules.rnn.LSTM, which isn't known"),
        (
            record("AutoWrapFunctionModule", function=Global("os.system"), spec={}),
            ["x"],
            "'os.system') isn't known: re",
        ),
        (record("AddModule"), [], "vertex: expected tensors as inputs"),
        (record("ConcatModule"), ["x", "y"], "dim is None, expected int"),
        (record("ConcatModule", dim=True), ["x", "y"], "dim is True, expected int"),
        (record("SliceModule", slice_spec=("a",)), ["x"], "'a' can't index a tensor"),
        (record("ReshapeWithSpecModule", spec="(A)->(B)"), ["x"], "the reshape '(A)->(B)' isn't known"),
        (record("ParameterModule"), [], "vertex: param is None, expected a tensor"),
        (record("TfMatmulModule", transpose=False, normalize=True), ["x", "y"], "isn't known"),
        (conv(padding_mode="reflect"), ["x"], "padding 'reflect' isn't known"),
    ],
)
def test_what_is_not_known_is_refused(module, inputs, message):
    with pytest.raises(StructureError) as caught:
        convert_vertex(Writer(), "vertex", module, inputs)

    assert message in str(caught.value)
