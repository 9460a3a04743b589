"""A plan's structure once more as a graph beside it: the plan's own model is the oracle."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from client import point
from hub import serving
from safetensors import safe_open

import zoo
from zoo.catalog.entry import Base
from zoo.cli import cli
from zoo.errors import RepositoryError, StructureError, WeightsError
from zoo.files import sha256
from zoo.verbs.viewing import CLOSE, add_graph, views_apart

WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2], "num_heads": [2], "num_classes": 5}
COLD = """
import sys
for absent in ("timm", "torchvision", "torch._dynamo"):
    sys.modules[absent] = None  # as if it weren't installed
import torch, zoo
model = zoo.load(sys.argv[1], structure="graph")
print(model(torch.ones(1, *model.pretrained_cfg["input_size"])).tolist())
"""


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A model whose relative positions and masks no weights file holds."""
    model = zoo.create(Base("timm/swin_tiny_patch4_window7_224", WINDOWS))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    return add_graph(zoo.save(model, tmp_path_factory.mktemp("windows") / "plan"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return add_graph("digits_vit_pruned_25", tmp_path_factory.mktemp("tokens") / "plan")


@pytest.fixture
def folder(tokens, tmp_path):
    """A repository with a view that a test may change."""
    return shutil.copytree(tokens, tmp_path / "model")


@pytest.mark.parametrize("which", ["windows", "tokens"])
def test_both_structures_of_a_repository_compute_the_same_from_the_same_weights(which, request):
    repository = request.getfixturevalue(which)
    plan, graph = zoo.load(repository), zoo.load(repository, structure="graph")
    images = torch.randn(3, *plan.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(graph(images), plan(images), rtol=0, atol=1e-6)

    assert (plan.zoo_entry.graph is None, graph.zoo_entry.graph is None) == (True, False)
    assert graph.zoo_entry.base.id == plan.zoo_entry.base.id
    assert {name for name, _ in graph.named_parameters()} == {name for name, _ in plan.named_parameters()}
    assert graph.pretrained_cfg == plan.pretrained_cfg


def test_a_view_adds_files_and_leaves_those_that_were_there(tokens):
    embedded = zoo.catalog.EMBEDDED / "digits_vit_pruned_25"
    before, after = (json.loads((each / "config.json").read_text()) for each in (embedded, tokens))

    assert after["zoo"].pop("view") == {"graph": sha256(tokens / "graph.json")}
    assert after == before
    assert (tokens / "model.safetensors").read_bytes() == (embedded / "model.safetensors").read_bytes()


def test_what_no_weights_file_holds_lies_beside_the_graph(windows):
    with (
        safe_open(windows / "graph.safetensors", "pt") as constants,
        safe_open(windows / "model.safetensors", "pt") as w,
    ):
        names, weights = set(constants.keys()), set(w.keys())

    assert {name.rpartition(".")[2] for name in names} == {"relative_position_index", "attn_mask"}
    assert names.isdisjoint(weights)


def test_a_view_is_loaded_where_no_library_of_bases_is_installed(windows):
    run = subprocess.run([sys.executable, "-c", COLD, windows], capture_output=True, text=True, check=True)
    plan = zoo.load(windows)
    with torch.no_grad():
        expected = plan(torch.ones(1, *plan.pretrained_cfg["input_size"]))

    torch.testing.assert_close(torch.tensor(json.loads(run.stdout)), expected, rtol=0, atol=1e-6)


def test_a_view_that_was_altered_is_refused_and_its_plan_is_not(folder):
    graph = folder / "graph.json"
    graph.write_text(graph.read_text().replace('"gelu"', '"relu"'))

    assert zoo.load(folder).zoo_entry.graph is None
    for refused in (lambda: zoo.load(folder, structure="graph"), lambda: zoo.push(folder, folder.parent / "copy")):
        with pytest.raises(WeightsError, match=r"graph\.json has sha256 .*: fetch or save it again"):
            refused()
    graph.unlink()
    with pytest.raises(RepositoryError, match=r"has no graph\.json: fetch or save the repository again"):
        zoo.load(folder, structure="graph")


def test_constants_that_are_missing_are_told(windows, tmp_path):
    folder = shutil.copytree(windows, tmp_path / "model")
    (folder / "graph.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no graph\.safetensors"):
        zoo.load(folder, structure="graph")


def test_verify_compares_both_structures(folder):
    assert views_apart(folder) <= CLOSE
    assert [(row.figure, row.verdict) for row in zoo.verify(folder, structure_only=True).rows][-1] == (
        "graph",
        "agrees",
    )

    graph = folder / "graph.json"
    graph.write_text(graph.read_text().replace('"gelu"', '"relu"'))
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["view"]["graph"] = sha256(graph)
    (folder / "config.json").write_text(json.dumps(config))
    found = zoo.verify(folder, structure_only=True)
    assert [(row.figure, row.verdict) for row in found.rows][-1] == ("graph", "differs")
    assert not found.passed


def test_a_view_is_published_with_its_plan_and_a_view_is_saved_as_a_graph(tokens, tmp_path):
    copy = zoo.push(tokens, tmp_path / "copy")
    graph = zoo.load(copy, structure="graph")
    alone = zoo.save(graph, tmp_path / "alone")
    images = torch.randn(2, *graph.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(zoo.load(alone)(images), graph(images))
    for which in (None, "graph"):
        assert zoo.load(alone, structure=which).zoo_entry.graph is not None
    with pytest.raises(RepositoryError, match="is a graph, and no plan over a base: leave structure='plan' out"):
        zoo.load(alone, structure="plan")
    with pytest.raises(RepositoryError, match="is a graph already"):
        add_graph(alone)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own way of sending a file
def test_a_view_comes_from_the_hub_with_its_plan(windows, tmp_path, monkeypatch):
    with serving(tmp_path / "served") as address:
        point(monkeypatch, address, tmp_path / "cache")
        zoo.push(windows, "org/windows")
        fetched = zoo.load("org/windows", structure="graph")
    images = torch.randn(2, 3, 64, 64)

    with torch.no_grad():
        assert torch.equal(fetched(images), zoo.load(windows, structure="graph")(images))


@pytest.mark.parametrize(
    ("name", "structure", "kind", "message"),
    [
        (
            "digits_cnn",
            "graph",
            RepositoryError,
            r"has no graph.json beside its plan: zoo convert \S+ --graph writes it",
        ),
        ("digits_cnn", "onnx", StructureError, "structure is 'onnx', expected plan or graph"),
        ("timm/resnet18", "graph", StructureError, "timm/resnet18 is a base, which has no graph"),
    ],
)
def test_a_structure_that_is_not_there_is_one_line(name, structure, kind, message):
    with pytest.raises(kind, match=message):
        zoo.load(name, structure=structure)


def test_the_command_adds_to_a_folder_of_ones_own_in_place(tmp_path):
    folder = shutil.copytree(zoo.catalog.EMBEDDED / "digits_cnn_pruned_25", tmp_path / "mine")
    run = CliRunner().invoke(cli, ["convert", str(folder), "--graph"])

    assert (run.exit_code, run.stdout) == (0, f"{folder}\n")
    assert zoo.load(folder, structure="graph").zoo_entry.graph is not None
    with pytest.raises(RepositoryError, match="digits_cnn isn't a folder of yours: say where"):
        add_graph("digits_cnn")
