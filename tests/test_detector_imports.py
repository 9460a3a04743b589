"""torch-dag's detectors are imported with what their heads mean; a narrowed yolov8 becomes a plan over that."""

from pathlib import Path

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file

import zoo
from zoo import catalog
from zoo.errors import CheckpointError
from zoo.hub.foreign import torch_dag
from zoo.models.heads import check_detector, detections
from zoo.models.settings import settings_of
from zoo.models.yolov8 import PUBLISHED
from zoo.structure.graph.exported import lift
from zoo.structure.graph.tracing import export
from zoo.structure.plan import Narrow, Plan, Width, apply_
from zoo.verbs import converting
from zoo.verbs.converting import converted

MINI = Path(__file__).parent / "data" / "torch_dag" / "miniyolo_pruned"
SIZES = {"width": 0.125, "class_width": 32}
ENTRY = catalog.info("yolov8n_pruned_43")
CUT = {  # inside blocks and heads, and where two layers follow each other alone
    "stem.conv": Width(5),
    "stem.bn": Width(5),
    "stage2.0.conv": Width(inputs=5),
    "stage2.1.m.0.cv1.conv": Width(3),
    "stage2.1.m.0.cv1.bn": Width(3),
    "stage2.1.m.0.cv2.conv": Width(inputs=3),
    "heads.2.classes.0.conv": Width(7),
    "heads.2.classes.0.bn": Width(7),
    "heads.2.classes.1.conv": Width(inputs=7),
}


def published(path):
    """A path of ours as torch-dag writes the published one."""
    prefix = next((each for each in PUBLISHED if path == each or path.startswith(f"{each}.")), "")
    return (PUBLISHED.get(prefix, "") + path.removeprefix(prefix)).replace(".", "_")


@pytest.fixture(scope="module")
def pruned():
    """A narrowed network, and its graph with the names of a checkpoint that torch-dag wrote."""
    model = apply_(zoo.create(zoo.Base("zoo/yolov8n", {**SIZES, "num_classes": 3})), Plan((Narrow(CUT),))).eval()
    program = export(model, torch.randn(2, 3, 64, 64))
    graph, tensors = lift(program, program.state_dict)
    nodes = tuple(
        structs.replace(node, name=published(node.name), inputs=tuple(map(published, node.inputs)))
        for node in graph.nodes
    )
    graph = structs.replace(graph, nodes=nodes, outputs=tuple(map(published, graph.outputs)))
    named = (path.rpartition(".") for path in tensors)
    return model, graph, {f"{published(path)}.{name}": tensors[f"{path}.{name}"] for path, _, name in named}


@pytest.fixture
def read(pruned, monkeypatch):
    """Lets whatever is converted be that checkpoint."""
    monkeypatch.setattr(torch_dag, "read_checkpoint", lambda folder: pruned[1:])
    monkeypatch.setattr(converting, "checked_hashes", lambda folder, entry: {})
    return pruned[0]


def test_a_checkpoint_of_a_narrowed_yolov8_becomes_a_plan_over_it(read, tmp_path):
    base = zoo.Base("zoo/yolov8n", SIZES)
    model = converted(tmp_path, "mine", structs.replace(ENTRY, base=base))
    assert model.zoo_entry.graph is None
    assert model.zoo_entry.base == zoo.Base("zoo/yolov8n", {**SIZES, "num_classes": 3})
    (edit,) = model.zoo_entry.plan.edits
    assert edit.widths["heads.2.classes.0.conv"].outputs == 7
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert all(map(torch.equal, model(x), read(x)))
    check_detector(model)


def test_what_the_catalog_knows_of_a_pruned_detector_is_said_of_it(read, tmp_path):
    model = converted(tmp_path, "mine", structs.replace(ENTRY, base=zoo.Base("zoo/yolov8n", SIZES)))
    config = model.pretrained_cfg
    assert (config["input_size"], config["license"], config["num_classes"]) == ((3, 640, 640), "agpl-3.0", 3)
    assert (config["detector"]["resize"], config["detector"]["strides"]) == ("letterbox", (8, 16, 32))
    assert "label_names" not in config
    assert model.zoo_entry.task == "object-detection"
    assert "apache-2.0" in ENTRY.note
    assert "AGPL-3.0" in ENTRY.note


def test_what_is_compressed_of_it_is_under_its_licence_and_both_claims_stand_on_the_card(read, tmp_path):
    known = structs.replace(ENTRY, base=zoo.Base("zoo/yolov8n", SIZES), input=(3, 64, 64))
    model = converted(tmp_path, "mine", known)
    smaller = zoo.compress(model, budget=0.8, criterion="l2", data=[torch.randn(4, 3, 64, 64)])
    for made in (model, smaller):
        folder = zoo.save(made, tmp_path / made.zoo_entry.name)
        again = zoo.load(folder)
        card = (zoo.save(again, tmp_path / "again") / "README.md").read_text()
        assert card == (folder / "README.md").read_text()
        assert again.pretrained_cfg["license"] == "agpl-3.0"
        assert "license: agpl-3.0\n" in card
        assert ENTRY.note in card


def test_cards_of_what_is_made_of_a_checkpoint_name_it_and_what_was_done_since(read, tmp_path):
    came = "converted from the torch-dag checkpoint TCLResearchEurope/yolov8n_pruned_43"
    commit = "- checkpoint: TCLResearchEurope/yolov8n_pruned_43 at 58e9cdc (torch-dag)"
    known = structs.replace(ENTRY, base=zoo.Base("zoo/yolov8n", SIZES), input=(3, 64, 64))
    model = zoo.load(zoo.save(converted(tmp_path, ENTRY.name, known), tmp_path / ENTRY.name), mmap=False)
    assert "reported" in (tmp_path / ENTRY.name / "README.md").read_text()
    with torch.no_grad():
        model.stem.conv.weight += 0.1
    smaller = zoo.compress(model, budget=0.8, criterion="l2", data=[torch.randn(4, 3, 64, 64)])
    pruned = f"{came}, then channels pruned to a budget of 80 % of the multiply-accumulates of its base."
    for made, sentence in ((model, f"{came}, altered since."), (smaller, pruned)):
        folder = zoo.save(made, tmp_path / "made", name=ENTRY.name)
        card = (folder / "README.md").read_text()
        assert sentence in card.split("\n\n")[2]
        assert commit in card
        assert "license: agpl-3.0\n" in card
        assert "reported" not in card
        assert card == (zoo.save(zoo.load(folder), tmp_path / "again") / "README.md").read_text()


def test_a_checkpoint_of_the_hubs_cache_is_named_by_its_repository_and_commit(read, tmp_path):
    folder = tmp_path / "models--org--net" / "snapshots" / ("ab" * 20)
    folder.mkdir(parents=True)
    came = converted(folder, "mine", structs.replace(ENTRY, base=zoo.Base("zoo/yolov8n", SIZES))).zoo_entry.recipe
    assert (came["converted_from"]["repo"], came["converted_from"]["commit"]) == ("org/net", "ab" * 20)


def test_one_that_is_no_narrowed_yolov8_stays_a_graph(read, tmp_path):
    other = structs.replace(ENTRY, base=zoo.Base("zoo/yolov8n", {**SIZES, "depth": 1.0}))
    model = converted(tmp_path, "mine", other)
    assert model.zoo_entry.graph is not None
    check_detector(model)


def test_of_heads_that_are_no_yolov8s_an_entry_that_says_so_is_refused(read, pruned, tmp_path, monkeypatch):
    graph = structs.replace(pruned[1], outputs=(*pruned[1].outputs[:2], "model_0_conv"))
    monkeypatch.setattr(torch_dag, "read_checkpoint", lambda folder: (graph, pruned[2]))
    with pytest.raises(CheckpointError, match="its heads are 67x80x80, 67x40x40, 5x320x320, expected of each 64 cha"):
        converted(tmp_path, "mine", ENTRY)


def test_a_detector_of_another_layout_keeps_its_outputs_and_gets_its_settings_from_its_heads():
    model, data = converted(MINI, "mini"), load_file(MINI / "io.safetensors")
    with torch.no_grad():
        heads = model(data["input"])
    for i, head in enumerate(heads):
        torch.testing.assert_close(head, data[f"output.{i}"], rtol=1e-5, atol=1e-5)
    config = model.pretrained_cfg
    assert (model.zoo_entry.task, config["num_classes"], config["input_size"]) == ("object-detection", 5, (3, 640, 640))
    settings = settings_of(config["detector"])
    assert settings.strides == (8, 16)
    check_detector(model)
    stored = [data[f"output.{i}"] for i in range(2)]
    for one, other in zip(detections(heads, settings, (64, 64)), detections(stored, settings, (64, 64)), strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-5, atol=1e-4)
