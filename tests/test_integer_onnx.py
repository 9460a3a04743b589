"""Integer models as ONNX: torch is the oracle of every byte, whatever the batch, the threads and the optimiser."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import zoo
from zoo import catalog
from zoo.errors import MissingExtra, StructureError
from zoo.onnx import backend
from zoo.onnx.integer import integer_program
from zoo.onnx.lookup import _line
from zoo.onnx.padding import widths_of
from zoo.onnx.runtime import session
from zoo.structure.graph.certificate import fixed_pixels, outputs_sha256
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.graph.integer import QInput, QLayer
from zoo.structure.tensors import assign_, tensors_of
from zoo.verbs import exporting

CONV = {"in_channels": 6, "out_channels": 8, "kernel_size": [3, 3], "padding": [1, 1]}


def node(op, *inputs, **attributes):
    return Node("b", op, inputs or ("a",), attributes)


def conv(**attributes):
    return node("qconv2d", **{**CONV, **attributes})


def add(*zeros, exponents, **more):
    flipped = Node("c", "aten.flip", ("a",), {"dims": [3]})
    return [flipped, node("qadd", "a", "c", zeros=zeros, exponents=exponents, **more)]


CASES = {
    "a convolution": [conv()],
    "its zero points and range": [conv(zero=7, out_zero=128, low=60, high=250)],
    "a stride, dilation and groups": [conv(stride=[2, 1], dilation=[1, 2], groups=2, zero=255)],
    "a depthwise convolution": [conv(out_channels=6, groups=6, zero=9, out_zero=3, low=3)],
    "two outputs for each channel": [conv(out_channels=12, groups=6)],
    "a window of one row": [conv(kernel_size=[1, 5], padding=[0, 2], zero=100)],
    "widths that are padded": [
        Node("c", "qconv2d", ("a",), {**CONV, "out_channels": 20, "zero": 9, "out_zero": 7}),
        Node("d", "qconv2d", ("c",), {**CONV, "in_channels": 20, "out_channels": 20, "groups": 20, "zero": 7}),
        Node("t", "qtable", ("d",)),
        node("qconv2d", "t", **{**CONV, "in_channels": 20, "zero": 3}),
    ],
    "one channel, that a convolution keeps": [
        Node("s", "slices", ("a",), {"spec": [[None, None, None], [0, 1, None]]}),
        Node("c", "qconv2d", ("s",), {**CONV, "in_channels": 1, "out_channels": 20}),
        Node("d", "qconv2d", ("c",), {**CONV, "in_channels": 20, "out_channels": 1}),
        Node("e", "qconv2d", ("d",), {**CONV, "in_channels": 1, "out_channels": 1}),
        node("qavg_pool2d", "e", exponent=4),
    ],
    "words of a convolution": [conv(zero=3, low=-32767, high=32767)],
    "words of a depthwise convolution": [conv(out_channels=6, groups=6, low=-32767, high=32767)],
    "a linear layer": [node("qlinear", in_features=14, out_features=9, zero=5, out_zero=200)],
    "words of a linear layer": [node("qlinear", in_features=14, out_features=9, zero=5, low=-32767, high=32767)],
    "a sum": add(0, 0, exponents=[1, 2]),
    "a sum of what is far apart": add(128, 3, exponents=[-4, 11], out_zero=128, low=90, high=200),
    "a sum of whole numbers": add(128, 3, exponents=[0, -1], out_zero=100),
    "words of a sum": add(128, 3, exponents=[-3, 1], low=-32767, high=32767),
    "sums of words": [
        Node("w", "qconv2d", ("a",), {**CONV, "out_channels": 6, "low": -32767, "high": 32767}),
        Node("v", "qadd", ("a", "w"), {"zeros": [7, 0], "exponents": [-3, 1], "low": -32767, "high": 32767}),
        node("qadd", "v", "w", zeros=[0, 5], exponents=[3, 5], out_zero=100),
    ],
    "a product": [node("qmul", "a", "a", zeros=[5, 130], exponent=7, out_zero=30)],
    "a sum of windows": [node("qavg_pool2d", kernel_size=[3, 3], stride=[2, 2], padding=[1, 1], zero=9, exponent=3)],
    "a sum of maps": [node("qavg_pool2d", zero=120, exponent=5, out_zero=128)],
    "a sum of maps, whatever windows would have": [node("qavg_pool2d", padding=[1, 1], exponent=5)],
    "words of a sum of maps": [node("qavg_pool2d", zero=120, exponent=1, low=-32767, high=32767)],
    "a table": [node("qtable")],
    "the largest of windows": [node("max_pool2d", kernel_size=3, stride=2, padding=1)],
    "and of those that hang over": [node("max_pool2d", kernel_size=[3, 2], stride=[2, 3], ceil_mode=True)],
    "the nearest of twice as many": [node("upsample", scale_factor=2, mode="nearest")],
    "the nearest of another number": [node("upsample", size=[17, 9], mode="nearest")],
    "a flattened batch": [node("flatten", start_dim=1)],
    "a reshape": [node("reshape", shape=["batch", 3, 2, -1])],
    "a reshape by a size": [Node("n", "size", ("a",), {"dim": 0}), node("reshape", "a", "n", shape=["input", 2, -1])],
    "a shuffle": [
        Node("c", "reshape", ("a",), {"shape": ["batch", 2, 3, 11, 14]}),
        Node("d", "transpose", ("c",), {"dim0": 1, "dim1": -3}),
        node("reshape", "d", shape=["batch", 6, 11, 14]),
    ],
    "a permutation": [node("permute", dims=[0, 2, -1, 1])],
    "parts": [
        Node("c", "chunk", ("a",), {"chunks": 4, "dim": -1}),
        Node("d", "item", ("c",), {"index": 1}),
        Node("e", "item", ("c",), {"index": 3}),
        node("concat", "e", "d", "a", dim=3),
    ],
    "every other row": [node("slices", spec=["...", [1, None, 2], [None, -3, 1]])],
    "one more axis": [node("unsqueeze", dim=2)],
    "a margin": [node("aten.constant_pad_nd", pad=[1, 2, 0, 3], value=77)],
    "a margin that cuts": [node("aten.constant_pad_nd", pad=[-1, 2], value=0)],
    "the margin of a convolution": [node("pad_same", kernel_size=[3, 4], stride=[2, 2], dilation=[1, 1])],
    "a roll": [node("roll", shifts=[1, -2], dims=[2, 3])],
    "a constant": [
        Node("c", "buffer", (), {"shape": [1, 6, 1, 1], "dtype": "uint8"}),
        node("qadd", "a", "c", zeros=[0, 20], exponents=[1, 0]),
    ],
}


def network(nodes, size=(6, 11, 14), seed=0):
    """A model of these nodes over the pixels themselves, its weights drawn, extremes among them."""
    first = Node("a", "qinput", ("x",), {"mean": [0.0] * size[0], "std": [1.0] * size[0]})
    last = Node("y", "qoutput", ("b",), {"step": 0.3, "zero": 2})
    graph = Graph(("x",), (first, *nodes, last), ("y",))
    model, generator = graph_module(graph), torch.Generator().manual_seed(seed)

    def drawn(low, high, like):
        return torch.randint(low, high, like.shape, generator=generator).to(like.dtype)

    values = {path: drawn(0, 256, each) for path, each in tensors_of(model).items()}
    for path, module in model.named_modules():
        if isinstance(module, QLayer):
            weight = drawn(-64, 65, module.weight)
            values[f"{path}.weight"] = torch.where(weight % 4 == 0, weight.sign() * 64, weight)
            values[f"{path}.bias"] = drawn(-(2**14), 2**14, module.bias)
            values[f"{path}.exponent"] = drawn(4, 12, module.exponent)
        if isinstance(module, QInput):
            values[f"{path}.table"] = torch.arange(256).repeat(size[0], 1).to(torch.uint8)
    assign_(model, values, "drawn")
    model.pretrained_cfg = {"input_size": size}
    return model, graph


def pictures(size, batch):
    """Noise, noise of extremes alone, and both ends."""
    noise = torch.randint(0, 256, (batch, *size), generator=torch.Generator().manual_seed(batch)).to(torch.uint8)
    return noise, (noise > 127).to(torch.uint8) * 255, torch.zeros_like(noise), torch.full_like(noise, 255)


def check(model, graph, batches=(1, 2), threads=(1,)):
    """Compare every byte."""
    program = integer_program(model, graph)
    onnx.checker.check_model(program, full_check=True)
    for count in threads:
        runs = [session(program.SerializeToString(), "net", count, optimised=optimised) for optimised in (True, False)]
        for batch in batches:
            for images in pictures(model.pretrained_cfg["input_size"], batch):
                with torch.no_grad():
                    expected = model(images)
                for run in runs:
                    (found,) = run(None, {"images": images.numpy()})
                    assert torch.equal(torch.from_numpy(found), expected)
    return program


# Ops


def test_channels_of_nothing_are_added_where_convolutions_alone_read_them():
    wide = {**CONV, "out_channels": 20}
    deep = Node("d", "qconv2d", ("c",), {**CONV, "in_channels": 20, "out_channels": 20, "groups": 20})
    last = node("qconv2d", "d", **{**CONV, "in_channels": 20})
    beside = Node("e", "qadd", ("c", "c"), {"zeros": [0, 0], "exponents": [1, 1]})

    def widths(*nodes):
        program = integer_program(*network([Node("c", "qconv2d", ("a",), wide), *nodes]))
        weights = {each.name: tuple(each.dims) for each in program.graph.initializer}
        return [weights[each.input[3]][:2] for each in program.graph.node if each.op_type == "QLinearConv"]

    assert widths(deep, last) == [(32, 8), (32, 1), (8, 32)]
    assert widths(beside, deep, node("qconv2d", "d", **{**CONV, "in_channels": 20})) == [(20, 8), (20, 1), (8, 20)]


def test_tables_of_tables_are_written_however_many_they_are():
    tables = [Node(f"t{i}", "qtable", (f"t{i - 1}" if i else "a",)) for i in range(1200)]
    model, graph = network([*tables, node("qconv2d", "t1199", **CONV)], (6, 2, 2))
    assert len(widths_of(graph, lambda each: model.get_submodule(each.name), frozenset())) == 1201


@pytest.mark.parametrize("case", CASES)
def test_each_op_gives_the_bytes_of_its_torch_op(case):
    check(*network(CASES[case]))


def test_accumulators_beyond_what_single_precision_holds_are_exact():
    """4,000 products of 64·255 and their sign's: sums to 2^26, which saturate as bytes and don't as words."""
    for told in ({}, {"low": -32767, "high": 32767, "out_zero": 5}):
        model, graph = network([node("qlinear", in_features=4000, out_features=16, **told)], (1, 2, 4000))
        layer = model.get_submodule("b")
        layer.weight.copy_(layer.weight.sign() * 64)
        layer.weight[0], layer.weight[1] = 64, -64
        layer.exponent[:] = torch.arange(16).to(torch.int8)
        layer.exponent[:2] = 12
        assert layer.bound().max() > 2**25
        check(model, graph)


def test_a_node_that_has_no_form_is_named():
    ratios = {"zeros": [0, 0], "multipliers": [1, 1], "shifts": [1, 1]}
    model, graph = network([node("mrt_add", "a", "a", **ratios)])
    with pytest.raises(StructureError, match="ONNX: node 'b' is mrt_add, which has no form there that gives its bytes"):
        integer_program(model, graph)
    model, graph = network([node("roll", shifts=[1], dims=[0])])  # from one image to the next
    with pytest.raises(StructureError, match="node 'b' is roll"):
        integer_program(model, graph)


# Tables


@settings(max_examples=60)
@given(
    slope=st.floats(-3, 3) | st.floats(-250, 250),
    offset=st.floats(-200, 400) | st.floats(-60_000, 60_000),
    low=st.integers(0, 100),
    high=st.integers(101, 255),
)
def test_a_table_that_is_a_line_is_computed_in_single_precision_to_the_same_bytes(slope, offset, low, high):
    x = np.arange(256)
    table = (x * slope + offset).round().clip(low, high).astype(np.uint8)
    if (line := _line(table[None])) is not None:
        a, b = line[0][0], line[1][0]
        for found in (x.astype(np.float32) * a + b, (x * np.float64(a) + np.float64(b))):  # fused, or not
            assert (np.rint(found).clip(table.min(), table.max()) == table).all()


def test_most_tables_of_images_are_lines_and_those_of_curves_are_none():
    x = np.arange(256)
    for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225), (0.0, 1.0)):
        values = (x / 255 - mean) / std / 0.0175
        assert _line((values - values.min()).round().clip(0, 255).astype(np.uint8)[None]) is not None
    assert _line(np.round(255 * (x / 255) ** 2).astype(np.uint8)[None]) is None
    assert _line(np.roll(x, 1).astype(np.uint8)[None]) is None
    assert _line(np.full((1, 256), 7, np.uint8)) is not None


# Models


@pytest.fixture(scope="module")
def digits():
    return zoo.load("digits_cnn_int8")


def test_a_model_gives_the_same_bytes_in_any_batch_on_any_threads_optimised_or_not(digits):
    check(digits, digits.zoo_entry.graph, batches=(1, 7, 16, 17), threads=(1, 2))


def test_what_onnxruntime_computes_is_loaded_in_one_word_and_is_a_model_as_any_other(digits, tmp_path):
    model = zoo.load("digits_cnn_int8", backend="onnxruntime")
    floats = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for images in (floats, floats.double(), pictures((1, 32, 32), 3)[0]):
            assert torch.equal(model(images), digits(images))
    assert not model.training
    assert model.zoo_entry == digits.zoo_entry
    assert (model.pretrained_cfg, model.num_classes) == (digits.pretrained_cfg, 10)
    assert zoo.transform(model)(Image.new("L", (8, 8))).shape == (1, 32, 32)
    assert zoo.measure(model) == zoo.measure(digits)
    assert zoo.evaluate(model, "digits", images=20)["images"] == 20
    saved, file = zoo.save(model, tmp_path / "saved"), "model.safetensors"
    assert (saved / file).read_bytes() == (catalog.EMBEDDED / "digits_cnn_int8" / file).read_bytes()
    assert outputs_sha256(model) == outputs_sha256(digits)


def _altered(model, graph):
    """A program of twice the last ten numbers of a model."""
    program = integer_program(model, graph)
    last = next(each for each in reversed(program.graph.initializer) if list(each.dims) == [10])
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * 2, last.name))
    return program


def test_other_bytes_are_refused_with_the_processor_and_the_version(monkeypatch):
    monkeypatch.setattr(backend, "integer_program", _altered)
    with pytest.raises(StructureError, match=r"onnxruntime 1\.\S+ gives other bytes than the model on .*, 1 thread: "):
        zoo.load("digits_cnn_int8", backend="onnxruntime")


def test_a_file_that_is_wrong_about_its_bytes_isnt_blamed_on_the_processor(tmp_path):
    folder = shutil.copytree(catalog.EMBEDDED / "digits_cnn_int8", tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["outputs_sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StructureError, match=r"config.json says outputs_sha256 0{12}, torch gives \w{12}: that"):
        zoo.load(folder, backend="onnxruntime")


def test_a_copy_has_a_session_of_its_own_and_a_pickle_is_refused_in_one_line():
    model = zoo.load("digits_cnn_int8", backend="onnxruntime")
    copied, pixels = copy.deepcopy(model), fixed_pixels(model)
    assert copied.run.__self__ is not model.run.__self__
    assert copied.zoo_entry == model.zoo_entry
    assert torch.equal(copied(pixels), model(pixels))
    with pytest.raises(StructureError, match=r"can't be pickled: zoo\.save it, then zoo\.load the folder again"):
        pickle.dumps(model)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            lambda: zoo.load("digits_cnn", backend="onnxruntime"),
            "is a model of floats, .*: zoo export MODEL --onnx FILE",
        ),
        (lambda: zoo.load("digits_cnn_int8", backend="tvm"), "load: backend is 'tvm', expected onnxruntime"),
        (lambda: zoo.load("digits_cnn_int8", backend="onnxruntime", device="meta"), "computes on the CPU here"),
    ],
)
def test_what_a_backend_is_not_for_is_one_line(load, message):
    with pytest.raises(StructureError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_one_line():
    model = zoo.load("digits_cnn_int8", backend="onnxruntime")
    with pytest.raises(StructureError, match=r"onnxruntime refuses \[1, 1, 8, 8\]") as caught:
        model(torch.zeros(1, 1, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_missing_is_one_line(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package} isn't installed; .*pip install 'compressed-zoo\[fast\]'"):
        zoo.load("digits_cnn_int8", backend="onnxruntime")


def test_loading_imports_neither_package_before_it_is_asked_to():
    code = "import sys, zoo; zoo.load('digits_cnn_int8'); print({'onnx', 'onnxruntime', 'zoo.onnx'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "set()"


# Files


def test_a_file_takes_bytes_says_so_and_gives_the_models_own(digits, tmp_path):
    file = zoo.export("digits_cnn_int8", onnx=tmp_path / "digits.onnx")
    program = onnx.load(file)
    told = {each.key: each.value for each in program.metadata_props}
    images = pictures((1, 32, 32), 3)[0]
    (found,) = session(file.read_bytes(), "digits")(["logits"], {"images": images.numpy()})

    assert program.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert "images [batch, 1, 32, 32], uint8, grey, 0..255; what else" in program.doc_string
    assert told["pixels"] == "bytes 0..255"
    assert {"mean", "std"}.isdisjoint(told)
    assert torch.equal(torch.from_numpy(found), digits(images))


def test_a_program_that_gives_other_bytes_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "integer_program", _altered)
    with pytest.raises(StructureError, match="onnxruntime gives other bytes than the model, for 1 images: it isn't"):
        zoo.export("digits_cnn_int8", onnx=tmp_path / "digits.onnx")
    assert [*tmp_path.iterdir()] == []
