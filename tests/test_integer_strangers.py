"""Integer ops among strangers: what an altered file or another program gives them is refused, or computed rightly."""

import copy
import json

import pytest
import torch
from msgspec import structs

import zoo
from zoo import catalog
from zoo.catalog.entry import Base
from zoo.cli import main
from zoo.errors import StructureError
from zoo.onnx.integer import integer_program
from zoo.pages.card import INTEGER_LAYERS
from zoo.structure.graph.bounds import check_memory
from zoo.structure.graph.certificate import certificate, fixed_pixels, outputs_sha256
from zoo.structure.graph.graph import MODULES, Graph, Node, graph_module
from zoo.structure.graph.integer import QConv2d, QInput, QLayer
from zoo.structure.tensors import assign_, tensors_of
from zoo.verbs.building import make

INPUT = Node("a", "qinput", ("x",), {"mean": [0.0], "std": [1.0]})
LINEAR = {"in_features": 2, "out_features": 1, "low": -32767, "high": 32767}


def chain(*nodes):
    """A graph of nodes, each of which reads the one before it."""
    return Graph(("x",), nodes, (nodes[-1].name,))


def linear(weight, bias, exponent):
    """A model of one layer, whose pixels are its bytes."""
    model = graph_module(chain(INPUT, Node("b", "qlinear", ("a",), LINEAR)))
    told = {"weight": (weight, torch.int8), "bias": (bias, torch.int32), "exponent": (exponent, torch.int8)}
    values = {f"b.{key}": torch.tensor(value, dtype=dtype) for key, (value, dtype) in told.items()}
    return assign_(model, {"a.table": torch.arange(256, dtype=torch.uint8)[None], **values}, "here")


@pytest.mark.parametrize(("bias", "single"), [(0, True), (2**24 - 128 * 255 - 1, True), (2**24 - 128 * 255, False)])
def test_the_least_weight_that_a_byte_holds_counts_by_its_magnitude(bias, single):
    model = linear([[-128, 0]], [-bias], [9])
    held = certificate(model)["b"]
    assert held.bound == 128 * 255 + bias
    assert held.single is single
    pixels = torch.full((1, 1, 1, 2), 255, dtype=torch.uint8)
    assert int(model(pixels)) == max(round((-128 * 255 - bias) / 2**9), -32767)


def test_a_bias_that_overflows_beside_the_least_weight_is_refused():
    with pytest.raises(StructureError, match=r"b could reach 2,147,516,287, expected below 2\^31"):
        certificate(linear([[-128, 0]], [-(2**31 - 1)], [0]))


@pytest.mark.parametrize("exponent", [-128, -101, 101, 127])
def test_a_shift_that_no_number_survives_is_refused(exponent):
    with pytest.raises(StructureError, match=f"b has exponents of {exponent} to {exponent}, expected at most 100"):
        certificate(linear([[64, 64]], [0], [exponent]))


def test_a_shift_up_saturates():
    model = linear([[1, 0]], [0], [-100])
    certificate(model)
    assert model(torch.tensor([[[[0, 9], [3, 9]]]], dtype=torch.uint8)).flatten().tolist() == [0, 32767]


ABSURD = {
    "step is 0": Node("b", "qoutput", ("a",), {"step": 0}),
    "zero: found 0.5": Node("b", "qoutput", ("a",), {"step": 1.0, "zero": 0.5}),
    "exponent: found 2000": Node("b", "qavg_pool2d", ("a",), {"exponent": 2000}),
    "exponent: found 0.5": Node("b", "qmul", ("a", "a"), {"zeros": [0, 0], "exponent": 0.5}),
    "exponents: found -2000, -2000": Node("b", "qadd", ("a", "a"), {"zeros": [0, 0], "exponents": [-2000, -2000]}),
    "zeros: found 300, 0": Node("b", "qadd", ("a", "a"), {"zeros": [300, 0], "exponents": [0, 0]}),
    "multiplier: found 1.5": Node("b", "qrescale", ("a",), {"multiplier": 1.5, "exponent": 0}),
    "exponent: found 1.5": Node("b", "qdiv", ("a", "a"), {"zeros": [0, 0], "multiplier": 1, "exponent": 1.5}),
    r"channels: found \[1\]": Node("b", "qnorm", ("a",), {"channels": [1]}),
    "dim is empty": Node("b", "qsum", ("a",), {"dim": []}),
    r"kernel_size is \[2\]": Node("b", "qmean_pool2d", ("a",), {"kernel_size": [2], "stride": [2]}),
    "zeros: found 0.5, 0": Node("b", "mrt_mul", ("a", "a"), {"zeros": [0.5, 0], "multiplier": 1, "shift": 1}),
    "shift: found 1.5": Node("b", "mrt_mul", ("a", "a"), {"zeros": [0, 0], "multiplier": 1, "shift": 1.5}),
    "zero: found True": Node("b", "qlinear", ("a",), {**LINEAR, "zero": True}),
    "low, out_zero and high: found -32767, 0, 0.5": Node("b", "qlinear", ("a",), {**LINEAR, "high": 0.5}),
}


@pytest.mark.parametrize("said", ABSURD)
def test_an_attribute_that_is_no_whole_number_in_its_range_is_named(said):
    with pytest.raises(StructureError, match=rf"node 'b': no \w+ of .*{said}"):
        graph_module(chain(INPUT, ABSURD[said]))


WORDS = Node("b", "qlinear", ("a",), LINEAR)
MISREAD = {
    "a layer reads words": [INPUT, WORDS, Node("c", "qlinear", ("b",), {"in_features": 1, "out_features": 1})],
    "a layer reads pixels": [Node("c", "qlinear", ("x",), {"in_features": 2, "out_features": 1})],
    "a sum reads pixels": [Node("c", "qadd", ("x", "x"), {"zeros": [0, 0], "exponents": [0, 0]})],
    "a pool reads pixels": [Node("c", "qavg_pool2d", ("x",), {})],
    "an embedding reads pixels": [Node("c", "qembedding", ("x",), {"num_embeddings": 9, "embedding_dim": 2})],
    "an output reads pixels": [Node("c", "qoutput", ("x",), {"step": 1.0})],
}


@pytest.mark.parametrize("case", MISREAD)
def test_what_reads_other_than_its_bound_is_of_is_refused_before_any_weight_is_read(case):
    graph = chain(*MISREAD[case])
    with pytest.raises(StructureError, match=r"node 'c'.*: what is read is torch\.\w+, expected bytes"):
        check_memory(graph, graph_module(graph), [1, 2, 2])


def test_a_concatenation_along_no_axis_is_refused_before_anything_reads_it():
    graph = chain(INPUT, Node("c", "concat", ("a", "a")))
    with pytest.raises(StructureError, match=r"node 'c'.* missing 1 required keyword-only argument: 'dim'"):
        check_memory(graph, graph_module(graph), [1, 2, 2])


FLOATS = Node("f", "cast", ("a",), {"dtype": "float32"})
MIXED = {
    "f": [INPUT, FLOATS, Node("c", "linear", ("f",), {"in_features": 2, "out_features": 1})],
    "s": [INPUT, Node("b", "qoutput", ("a",), {"step": 1.0}), Node("s", "softmax", ("b",), {"dim": -1})],
}


@pytest.mark.parametrize("named", MIXED)
def test_a_model_of_integers_has_no_floats_within(named):
    graph = chain(*MIXED[named])
    with pytest.raises(StructureError, match=f"node '{named}', given .*: gives floats within a model of integers"):
        check_memory(graph, graph_module(graph), [1, 2, 2])


HELD = Node("h", "buffer", (), {"shape": [1, 1], "dtype": "int32"})
BEYOND = {
    "add is an op that no certificate covers": [WORDS, Node("c", "add", ("b", "b"))],
    "aten.cumsum is an op": [WORDS, Node("c", "aten.cumsum", ("b",), {"dim": 1})],
    "aten.bitwise_or.Tensor is an op": [WORDS, Node("c", "aten.bitwise_or.Tensor", ("b", "b"))],
    "cast is an op": [WORDS, Node("c", "cast", ("b",), {"dtype": "uint8"})],
    "upsample by bilinear is an op": [Node("c", "upsample", ("a",), {"scale_factor": 2, "mode": "bilinear"})],
    "aten.constant_pad_nd puts 40000 around": [
        WORDS,
        Node("c", "aten.constant_pad_nd", ("b",), {"pad": [1, 1], "value": 40000}),
    ],
    "h holds 2,147,483,647 to 2,147,483,647, expected words, to 32,767": [
        WORDS,
        HELD,
        Node("c", "qadd", ("b", "h"), {"zeros": [0, 0], "exponents": [0, 0]}),
    ],
}


@pytest.mark.parametrize("said", BEYOND)
def test_what_no_certificate_covers_is_refused_by_its_name(said):
    model = graph_module(chain(INPUT, *BEYOND[said]))
    full = {path: torch.full(each.shape, 2**31 - 1).to(each.dtype) for path, each in tensors_of(model).items()}
    model = assign_(model, {path: each if path == "h" else each * 0 for path, each in full.items()}, "here")
    with pytest.raises(StructureError, match=said):
        certificate(model)


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_indices_are_no_activations(dtype):
    held = Node("h", "buffer", (), {"shape": [1, 1, 2, 2], "dtype": dtype})
    ratio = {"multiplier": 1, "exponent": 0}
    for op, inputs, told in (
        ("qrescale", ["h"], ratio),
        ("qsum", ["h"], {"dim": [1]}),
        ("qsoftmax", ["h"], {"dim": 1}),
        ("qroot", ["h"], {"dim": [1]}),
        ("qmean_pool2d", ["h"], {"kernel_size": [2, 2], "stride": [2, 2]}),
        ("qdiv", ["a", "h"], {"zeros": [0, 0], **ratio}),
    ):
        graph = chain(INPUT, held, Node("c", op, tuple(inputs), told))
        with pytest.raises(StructureError, match=rf"node 'c'.*: what is read is torch\.{dtype}, expected"):
            check_memory(graph, graph_module(graph), [1, 2, 2])


@pytest.mark.parametrize("keys", [None, ("first", "second")])
def test_all_outputs_of_a_model_are_hashed(keys):
    def hashed(step):
        ends = [Node(name, "qoutput", ("a",), {"step": step}) for name, step in (("b", 1.0), ("c", step))]
        graph = Graph(("x",), (INPUT, *ends), ("b", "c"), keys)
        model = assign_(graph_module(graph), {"a.table": torch.arange(256, dtype=torch.uint8)[None]}, "here")
        model.pretrained_cfg = {"input_size": (1, 4, 4)}
        return outputs_sha256(model)

    assert hashed(2.0) != hashed(3.0)


def test_a_layer_of_no_outputs_is_refused():
    with pytest.raises(StructureError, match="sizes of its weights: found 0, 2, expected whole numbers, 1 to"):
        graph_module(chain(INPUT, Node("b", "qlinear", ("a",), {"in_features": 2, "out_features": 0})))


def test_images_that_are_neither_bytes_nor_normalised_are_refused():
    op = QInput([0.5] * 3, [0.25] * 3)
    for dtype in (torch.int64, torch.int32, torch.int8, torch.bool):
        with pytest.raises(ValueError, match=rf"images are {dtype}, expected bytes"):
            op.pixels(torch.ones(1, 3, 2, 2, dtype=dtype))
    for shape in ((1, 1, 2, 2), (1, 4, 2, 2), (2, 2)):
        with pytest.raises(ValueError, match=r"expected \[B, 3, H, W\]"):
            op.pixels(torch.ones(shape))


def test_a_map_so_large_that_single_precision_rounds_its_sum_has_no_form_in_onnx():
    pool, last = Node("b", "qavg_pool2d", ("a",), {"exponent": 18}), Node("c", "qoutput", ("b",), {"step": 1.0})
    graph = chain(INPUT, pool, last)
    model = assign_(graph_module(graph), {"a.table": torch.arange(256, dtype=torch.uint8)[None]}, "here")
    model.pretrained_cfg = {"input_size": (1, 257, 257)}
    with pytest.raises(StructureError, match="node 'b' is qavg_pool2d, which has no form there"):
        integer_program(model, graph)


TRACED = {
    "exported": lambda model, pixels: torch.export.export(model, (pixels,)).module(),
    "compiled": lambda model, pixels: torch.compile(model, fullgraph=True, backend="aot_eager"),
    "traced": torch.jit.trace,
}


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("way", TRACED)
def test_a_program_that_was_traced_gives_the_same_bytes(way):
    window = {"in_channels": 1, "out_channels": 4, "kernel_size": [3, 3], "low": -32767, "high": 32767}
    ops = [
        Node("b", "qconv2d", ("a",), window),
        Node("c", "qnorm", ("b",), {"channels": 4, "axis": 1, "low": -32767, "high": 32767}),
        Node("d", "qsoftmax", ("c",), {"dim": 1, "bits": 8}),
        Node("e", "qavg_pool2d", ("d",), {}),
    ]
    model = graph_module(chain(INPUT, *ops, Node("y", "qoutput", ("e",), {"step": 1.0})))
    generator = torch.Generator().manual_seed(0)
    values = {
        path: torch.randint(1, 9, each.shape, generator=generator).to(each.dtype)
        for path, each in tensors_of(model).items()
    }
    values |= {"a.table": torch.arange(256, dtype=torch.uint8)[None], "d.table": torch.arange(512).view(2, 256).int()}
    assign_(model, values, "here")
    pixels = torch.randint(256, (2, 1, 8, 8), generator=generator).to(torch.uint8)
    with torch.no_grad():
        expected = model(pixels)
        program = TRACED[way](model, pixels)
        assert torch.equal(program(pixels), expected)
        assert torch.equal(program(pixels.flip(0)), expected.flip(0))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(program(pixels), expected)


def test_inference_mode_gives_the_same_bytes():
    model = zoo.load("digits_cnn_int8")
    pixels = fixed_pixels(model)
    with torch.no_grad():
        expected = model(pixels)
    with torch.inference_mode():
        loaded = zoo.load("digits_cnn_int8")
        assert torch.equal(loaded(pixels), expected)
    assert torch.equal(copy.deepcopy(loaded)(pixels), expected)


def test_integers_are_refused_as_a_base_before_anything_is_evaluated(tmp_path):
    said: list[str] = []
    entry = catalog.info("digits_cnn_int8")
    again = structs.replace(entry, name="again", base=Base("digits_cnn_int8"))
    with pytest.raises(StructureError, match="digits_cnn_int8 computes in integers, and can't be compressed"):
        make(again, tmp_path / "again", say=said.append)
    assert said == ["1 load the base digits_cnn_int8"]


ASKED = {
    "coverage digits_cnn_int8": "computes in integers, which nothing draws at random or prunes: take digits_cnn",
    f"coverage {catalog.EMBEDDED / 'digits_cnn_int8'}": "computes in integers, and can't be pruned: do so",
    "convert digits_cnn_int8 --graph": "digits_cnn_int8 is a graph already, expected a plan over a base",
    "convert digits_cnn_int8": "expected --graph, the one other form; a checkpoint becomes a repository by zoo import",
    "import digits_cnn_int8 --out made": "digits_cnn_int8 has no origin to be converted from",
}


@pytest.mark.parametrize("command", ASKED)
def test_what_cant_be_done_with_integers_says_so_in_one_line(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code
    assert ASKED[command] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("onednn", [True, False])
def test_no_transform_computes_a_convolution_and_no_setting_of_the_process_is_touched(onednn, monkeypatch):
    model, enabled = zoo.load("digits_cnn_int8"), []
    computed = QConv2d.accumulated

    def watched(self, *args):
        enabled.append(torch._C._get_nnpack_enabled())
        return computed(self, *args)

    monkeypatch.setattr(QConv2d, "accumulated", watched)
    torch._C._set_mkldnn_enabled(onednn)
    try:
        with torch.no_grad(), torch.profiler.profile() as ran:
            model(torch.zeros(17, 1, 32, 32, dtype=torch.uint8))  # from 16 on NNPACK would be taken
    finally:
        torch._C._set_mkldnn_enabled(True)
    ops = {event.key for event in ran.key_averages()}
    assert ("aten::mkldnn_convolution" in ops) == onednn
    assert "aten::_nnpack_spatial_convolution" not in ops
    assert enabled == [torch._C._get_nnpack_enabled()] * len(enabled)


def test_a_repository_that_doesnt_say_which_bytes_are_given_is_not_verified(tmp_path):
    folder = zoo.save(zoo.load("digits_cnn_int8"), tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    del config["zoo"]["outputs_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    found = zoo.verify(folder, structure_only=True)
    assert {row.figure for row in found.rows if row.verdict == "differs"} == {"bytes"}


def test_a_card_promises_of_accumulators_what_its_model_has():
    bounds = [held.bound for held in certificate(zoo.load("digits_vit_int8")).values()]
    assert max(bounds) > 2**31  # of products of two activations
    assert "overflow 32 bits" not in (catalog.EMBEDDED / "digits_vit_int8" / "README.md").read_text()


def test_a_card_counts_the_layers_of_every_scheme():
    layers = {name for name, op in MODULES.items() if isinstance(op.call, type) and issubclass(op.call, QLayer)}
    assert layers == {*INTEGER_LAYERS}
