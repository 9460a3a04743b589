"""ONNX files: onnxruntime is the oracle of what they compute, onnx of what they say."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn

import zoo
from zoo.catalog.entry import Base
from zoo.cli import cli
from zoo.errors import MissingExtra, RepositoryError, StructureError
from zoo.onnx.export import MAX_BYTES, named, onnx_program
from zoo.onnx.runtime import compared, session
from zoo.tasks.datasets import dataset
from zoo.verbs import exporting

VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2, "num_classes": 5}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return zoo.export("digits_cnn_pruned_25", onnx=tmp_path_factory.mktemp("onnx") / "digits.onnx")


def test_a_file_classifies_images_as_the_model_does_in_batches_of_any_size(file):
    model = zoo.load("digits_cnn_pruned_25")
    transform, digits = zoo.transform(model), dataset("digits", "test")
    run = session(file.read_bytes(), "digits")
    for batch in (1, 3, 64):
        images = torch.stack([transform(digits[i]["image"]) for i in range(batch)])
        (logits,) = run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-4, atol=1e-4)


def test_a_file_says_what_images_must_undergo_and_what_the_outputs_mean(file):
    program = onnx.load(file)
    onnx.checker.check_model(program, full_check=True)
    told = {each.key: each.value for each in program.metadata_props}
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*program.graph.input, *program.graph.output)
    ]

    assert [value.name for value in (*program.graph.input, *program.graph.output)] == ["images", "logits"]
    assert shapes == [["batch", 1, 32, 32], ["batch", 10]]
    assert [(each.domain, each.version) for each in program.opset_import] == [("", 18)]
    assert told["name"] == "digits_cnn_pruned_25"
    assert told["zoo_version"] == zoo.__version__
    assert json.loads(told["input_size"]) == [1, 32, 32]
    assert json.loads(told["label_names"]) == [str(digit) for digit in range(10)]
    assert {"mean", "std", "interpolation", "crop_pct", "license", "base", "task"} <= told.keys()
    assert "images [batch, 1, 32, 32], float32, grey" in program.doc_string


def test_a_file_holds_no_way_on_its_authors_disk(file):
    written = file.read_bytes()

    assert not [path for path in (".py", "site-packages", str(Path.home())) if path.encode() in written]


def test_attention_whose_heads_have_another_width_is_translated_too():
    """Fused attention's strides, as torch's own decomposition assumes them, aren't those that it gives."""
    torch.manual_seed(0)
    model = zoo.create(Base("timm/beit_base_patch16_224", VIT))
    program = onnx_program(model, torch.randn(2, 3, 32, 32))

    assert compared(program.SerializeToString(), model, (3, 32, 32)) < 1e-5


class Two(nn.Module):
    """Heads of a detector: several outputs, by key or by place."""

    def __init__(self, outputs):
        super().__init__()
        self.near, self.far, self.outputs = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3, stride=2), outputs

    def forward(self, x):
        return self.outputs(self.near(x), self.far(x))


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (lambda near, far: (near, far), ["output_0", "output_1"]),
        (lambda near, far: {"heads": [near, far], "none": None}, ["heads.output_0", "heads.output_1"]),
    ],
)
def test_several_outputs_are_written_by_their_keys(outputs, names):
    model = Two(outputs).eval()
    program = onnx_program(model, torch.randn(2, 3, 9, 9))

    assert [each.name for each in program.graph.output] == names == [*named(model(torch.randn(2, 3, 9, 9)))]
    assert compared(program.SerializeToString(), model, (3, 9, 9)) < 1e-5


def test_a_network_of_ones_own_is_written_with_the_keys_of_its_outputs(tmp_path):
    model = Two(lambda near, far: {"boxes": near, "scores": far}).eval()
    program = onnx.load(zoo.export(model, onnx=tmp_path / "two.onnx", example=(3, 9, 9)))

    assert [each.name for each in program.graph.output] == ["boxes", "scores"]
    assert {each.key: each.value for each in program.metadata_props}["input_size"] == "[3, 9, 9]"


def test_a_program_that_computes_something_else_is_not_written(file, tmp_path, monkeypatch):
    program = onnx.load(file)
    last = next(each for each in reversed(program.graph.initializer) if list(each.dims) == [10])
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) + 1, last.name))
    monkeypatch.setattr(exporting, "onnx_program", lambda model, images: program)
    with pytest.raises(StructureError, match=r"onnxruntime gives something else \(by 0\.\d+ of the largest output"):
        zoo.export("digits_cnn_pruned_25", onnx=tmp_path / "digits.onnx")
    assert [*tmp_path.iterdir()] == []


def test_what_no_file_holds_is_told_before_it_is_traced(tmp_path):
    model = zoo.load("digits_cnn_pruned_25", dtype=torch.float16)
    with pytest.raises(StructureError, match=r"is torch.float16, an ONNX file is written in float32: model.float\(\)"):
        zoo.export(model, onnx=tmp_path / "half.onnx")
    with torch.device("meta"):
        large = nn.Linear(2**15, 2**14 + 1)
    assert large.weight.nbytes > MAX_BYTES
    with pytest.raises(StructureError, match=r"Linear takes 2\.0 GiB, an ONNX file holds less than 2 GiB"):
        onnx_program(large, torch.empty(2, 2**15, device="meta"))
    with pytest.raises(RepositoryError, match="is a folder, expected the name of a file"):
        zoo.export("digits_cnn_pruned_25", onnx=tmp_path)


def test_what_onnx_does_not_know_is_one_line():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x @ x.mT)

    with pytest.raises(StructureError, match="Odd can't be written as ONNX of opset 18") as caught:
        onnx_program(Odd().eval(), torch.randn(2, 3, 4, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_loaded(package, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package} isn't installed; .*pip install 'compressed-zoo\[onnx\]'"):
        zoo.export("nothing", onnx=tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "arguments", [[], ["--onnx", "x.onnx", "--ptdeco", "--out", "y"], ["--ptdeco"], ["--out", "y"]]
)
def test_the_command_writes_one_format(arguments):
    run = CliRunner().invoke(cli, ["export", "digits_cnn_pruned_25", *arguments])

    assert run.exit_code == 2
    assert "expected --onnx FILE, or --ptdeco --out FOLDER" in run.output
