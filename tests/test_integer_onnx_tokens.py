"""The ops of transformers as ONNX: torch is the oracle of every byte, whatever the batch, threads and optimiser."""

import pytest
import torch
from test_integer_onnx import check, network, node

import zoo
from zoo.structure.graph.graph import Node
from zoo.structure.graph.tokens import MAX_TERMS, ONE, WORD, QNorm, QSoftmax

WORDS = {"low": -WORD, "high": WORD}
WIDE = Node("w", "qrescale", ("a",), {"multiplier": 2**14 + 77, "exponent": 7, "zero": 100, **WORDS})
LINEAR = Node("w", "qlinear", ("a",), {"in_features": 14, "out_features": 12, "zero": 5, **WORDS})
TURNED = Node("t", "transpose", ("a",), {"dim0": -1, "dim1": -2})
RATIO = {"multiplier": 25338, "exponent": 24}

CASES = {
    "a rescaled word": [WIDE, node("qrescale", "w", multiplier=32767, exponent=20, out_zero=128, low=3)],
    "a rescaled byte": [node("qrescale", multiplier=3, exponent=0, zero=9, **WORDS)],
    "a sum along axes": [node("qsum", dim=[1, 3], keepdim=True, zero=9, **RATIO)],
    "a sum of words": [WIDE, node("qsum", "w", dim=[-1], multiplier=20000, exponent=22, out_zero=128)],
    "a product of bytes": [TURNED, node("qmatmul", "a", "t", zeros=[121, 3], **RATIO, **WORDS)],
    "a product of words and bytes": [
        WIDE,
        TURNED,
        node("qmatmul", "w", "t", zeros=[0, 130], multiplier=17000, exponent=30, out_zero=111),
    ],
    "a softmax of bytes": [node("qsoftmax", dim=-1, bits=8)],
    "a softmax of words": [LINEAR, node("qsoftmax", "w", dim=3)],
    "a softmax along another axis": [LINEAR, node("qsoftmax", "w", dim=1)],
    "shares of bytes": [
        Node("s", "qsoftmax", ("a",), {"dim": -1}),
        TURNED,
        node("qmatmul", "s", "t", zeros=[0, 7], multiplier=30628, exponent=29, out_zero=50),
    ],
    "shares along another axis": [
        Node("s", "qsoftmax", ("a",), {"dim": 2}),
        TURNED,
        node("qmatmul", "s", "t", zeros=[0, 7], multiplier=30628, exponent=29, out_zero=50),
    ],
    "a norm of bytes": [node("qnorm", channels=14, zero=77, out_zero=100)],
    "a norm of words": [LINEAR, node("qnorm", "w", channels=12, **WORDS)],
    "a norm of each pixel": [WIDE, node("qnorm", "w", channels=6, axis=1, out_zero=100)],
    "a norm of groups": [WIDE, node("qnorm", "w", channels=6, axis=1, groups=2, out_zero=3, low=3)],
    "a norm that isn't centered": [LINEAR, node("qnorm", "w", channels=12, centered=False, **WORDS)],
    "an embedding": [node("qembedding", num_embeddings=256, embedding_dim=3)],
    "rows for each image": [
        WIDE,
        Node("n", "size", ("a",), {"dim": 0}),
        Node("k", "buffer", (), {"shape": [1, 6, 1, 14], "dtype": "int16"}),
        Node("e", "expand", ("k", "n"), {"shape": ["input", -1, -1, -1]}),
        Node("v", "concat", ("e", "w"), {"dim": 2}),
        node("qnorm", "v", channels=14, out_zero=128),
    ],
    "parts one by one": [
        Node("u", "unbind", ("a",), {"dim": 1}),
        Node("i", "item", ("u",), {"index": 4}),
        Node("j", "item", ("u",), {"index": 0}),
        node("qadd", "i", "j", zeros=[0, 20], exponents=[1, 0]),
    ],
    "a stack of what is turned, flattened and opened again": [
        Node("m", "aten.mT", ("a",)),
        Node("f", "flatten", ("m",), {"start_dim": 1}),
        Node("u", "aten.unflatten.int", ("f",), {"dim": 1, "sizes": [6, 11, 14]}),
        Node("v", "aten.reshape_as", ("m", "a")),
        node("aten.stack", "u", "v", tensors=["$0", "$1"], dim=-2),
    ],
    "margins of words": [WIDE, node("aten.constant_pad_nd", "w", pad=[1, 2], value=-300)],
}


def settled(model):
    """Tables that are exponentials, and norms within their bounds, of a model whose tensors were drawn."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, QSoftmax):
            units = torch.stack([torch.arange(256), 256 * torch.arange(256)]).double()
            module.table = (ONE * torch.exp(-units * 0.01)).round().to(torch.int32)
        if isinstance(module, QNorm):
            module.weight = torch.randint(-WORD, WORD, (module.channels,), generator=generator).to(torch.int16)
            module.bias = torch.randint(-(2**20), 2**20, (module.channels,), generator=generator).to(torch.int32)
            module.exponent = torch.randint(10, 24, (module.channels,), generator=generator).to(torch.int8)
            module.eps.fill_(65)
    return model


@pytest.mark.parametrize("case", CASES)
def test_each_op_gives_the_bytes_of_its_torch_op(case):
    model, graph = network(CASES[case])
    check(settled(model), graph)


@pytest.mark.parametrize("count", [64, 1024, 16384, 2**17])
def test_extreme_words_and_many_of_them_are_normalized_and_shared_alike(count):
    """One word against all others, and half against half: the most that squares, roots and sums can be."""
    scaled = Node("w", "qrescale", ("a",), {"multiplier": 257, "exponent": 0, "zero": 128, **WORDS})
    softmax = [node("qsoftmax", "w", dim=-1)] if count <= MAX_TERMS else []
    for each in (node("qnorm", "w", channels=count, **WORDS), *softmax):
        model, graph = network([scaled, each], (1, 2, count))
        check(settled(model), graph)


def test_a_transformer_gives_the_same_bytes_in_any_batch_on_any_threads_optimised_or_not():
    model = zoo.load("digits_vit_int8")
    check(model, model.zoo_entry.graph, batches=(1, 7, 17), threads=(1, 2))


def test_a_transformer_is_loaded_with_a_backend_and_exported(tmp_path):
    model, fast = zoo.load("digits_vit_int8"), zoo.load("digits_vit_int8", backend="onnxruntime")
    images = torch.randint(0, 256, (450, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        assert torch.equal(fast(images), model(images))
    assert zoo.export("digits_vit_int8", onnx=tmp_path / "vit.onnx").stat().st_size > 100_000
