"""torch-dag checkpoints: converted, they give what torch-dag gave, and nothing in them is run.

tests/data/torch_dag holds pruned networks that torch-dag 0.1.3 saved with torch 2.1 and timm 0.9, each with an input
and what it made of it.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

import zoo
from zoo.catalog.entry import Base, Entry, Origin
from zoo.errors import CheckpointError, StructureError, WeightsError
from zoo.files import sha256
from zoo.hub import repository
from zoo.hub.foreign import torch_dag, unpickle
from zoo.hub.foreign.torch_dag import checkpoint
from zoo.measurement.conventions import torch_dag as counted
from zoo.measurement.macs import measure
from zoo.structure.graph.graph import graph_module
from zoo.structure.tensors import assign_
from zoo.verbs.converting import converted

FOLDER = Path(__file__).parent / "data" / "torch_dag"
CHECKPOINTS = {  # parameters, classes, kmapp at 64 pixels: as torch-dag itself counted them
    "beit_tiny_pruned": (77_329, 10, 0.6150712890625),
    "convnextv2_atto_tiny_pruned": (26_620, 10, 0.3207109375),
    "deit3_tiny_pruned": (67_263, 10, 0.54837744140625),
    "miniyolo_pruned": (32_950, 5, 0.75647705078125),
    "poolformerv2_tiny_pruned": (40_726, 10, 0.393666259765625),
}
every = pytest.mark.parametrize("name", CHECKPOINTS)


def outputs(value):
    return value if isinstance(value, tuple) else (value,)


def reference(name):
    """The input and what torch-dag made of it."""
    data = load_file(FOLDER / name / "io.safetensors")
    return data.pop("input"), [data[key] for key in sorted(data)]


def off(model, images, expected):
    """The largest difference, as a share of the largest output."""
    with torch.no_grad():
        found = outputs(model(images))
    assert [tuple(y.shape) for y in expected] == [tuple(y.shape) for y in found]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@every
def test_a_converted_model_gives_what_the_checkpoint_gave(name):
    images, expected = reference(name)

    assert off(converted(FOLDER / name, name), images, expected) <= 1e-5


@every
def test_other_batch_sizes_give_the_same(name):
    images, expected = reference(name)
    model = converted(FOLDER / name, name)

    assert off(model, images[:1], [y[:1] for y in expected]) <= 1e-5
    assert off(model, torch.cat([images] * 3), [torch.cat([y] * 3) for y in expected]) <= 1e-5


@every
def test_a_saved_conversion_gives_the_same_bytes(name, tmp_path):
    model = converted(FOLDER / name, name)
    repository.write_repository(tmp_path / name, model, model.zoo_entry, {})
    again = zoo.load(tmp_path / name)
    images, _ = reference(name)

    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(outputs(model(images)), outputs(again(images)), strict=True))
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
        "config.json",
        "graph.json",
        "model.safetensors",
    ]
    assert (again.num_classes, again.zoo_entry.graph) == (model.num_classes, model.zoo_entry.graph)
    assert again.training is False


@every
def test_parameters_classes_and_counts_are_those_of_the_checkpoint(name):
    model = converted(FOLDER / name, name)
    params, classes, kmapp = CHECKPOINTS[name]

    assert (params, classes) == (measure(model, (3, 64, 64)).params, model.num_classes)
    # A module that torch-dag counted whole is several nodes here, whose elementwise work counts too.
    assert kmapp == pytest.approx(counted(model, (3, 64, 64)), rel=0.021)


@every
def test_no_node_fixes_the_batch_or_refers_to_other_packages(name):
    graph, tensors = torch_dag.read_checkpoint(FOLDER / name)
    model = converted(FOLDER / name, name)

    assert {type(module).__module__.partition(".")[0] for module in model.modules()} <= {"torch", "zoo", "abc"}
    assert "timm" not in json.dumps(graph.to_json())
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_a_converted_model_trains(tmp_path):
    model = converted(FOLDER / "convnextv2_atto_tiny_pruned", "net").train()
    images, _ = reference("convnextv2_atto_tiny_pruned")
    model(images).square().sum().backward()

    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.fixture
def damaged(tmp_path):
    """A function that changes a copy of a checkpoint's graph: change → the copy."""

    def copy(change):
        shutil.copytree(FOLDER / "convnextv2_atto_tiny_pruned", tmp_path / "net")
        path = tmp_path / "net" / "config.dict.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return tmp_path / "net"

    return copy


# Importing.


def test_a_checkpoint_is_imported_with_a_card_and_counts(tmp_path):
    folder = zoo.convert(FOLDER / "deit3_tiny_pruned", tmp_path / "net", size=64)
    card = (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())

    assert sorted(path.name for path in folder.iterdir()) == sorted({*repository.FILES} - {repository.CONSTANTS})
    assert zoo.verify(folder, structure_only=True).passed
    assert "A graph of 88 operations" in card
    assert config["zoo"]["recipe"]["converted_from"]["sha256"]["modules.pt"] == sha256(
        FOLDER / "deit3_tiny_pruned" / "modules.pt"
    )


def test_a_softmax_at_the_end_is_left_out_unless_probabilities_are_wanted(tmp_path):
    source = tmp_path / "probable"
    shutil.copytree(FOLDER / "deit3_tiny_pruned", source)
    config = json.loads((source / "config.dict.json").read_text())
    inner = [config[key] for key in config if key.isdigit()]
    softmax = next(vertex for vertex in inner if vertex["name"] == "softmax")
    last = {**softmax, "name": "probabilities", "predecessor_indices": [config["output_index"]]}
    config = {**{str(i): vertex for i, vertex in enumerate([*inner, last])}, "output_index": len(inner)}
    (source / "config.dict.json").write_text(json.dumps(config))
    images, (logits,) = reference("deit3_tiny_pruned")

    assert off(converted(source, "net"), images, [logits]) <= 1e-5
    assert off(converted(source, "net", probabilities=True), images, [logits.softmax(-1)]) <= 1e-5
    assert converted(source, "net").num_classes == 10
    said = "- changed: the softmax at the end is left out: outputs are logits\n"
    assert said in (zoo.convert(source, tmp_path / "net", size=64) / "README.md").read_text()
    assert said not in (zoo.convert(source, tmp_path / "other", size=64, probabilities=True) / "README.md").read_text()


def entry(**origin):
    return Entry(
        "net",
        "own",
        "net",
        "deit3_small_patch16_224",
        "image-classification",
        "origin",
        Base("timm/deit3_small_patch16_224.fb_in1k"),
        "apache-2.0",
        input=(3, 64, 64),
        origin=Origin("org/net", "torch-dag", **origin),
    )


def test_preprocessing_is_that_of_the_base_at_the_entry_s_size():
    config = converted(FOLDER / "deit3_tiny_pruned", "net", entry()).pretrained_cfg

    assert config["input_size"] == (3, 64, 64)
    assert (config["mean"], config["interpolation"]) == ((0.485, 0.456, 0.406), "bicubic")
    assert (config["num_classes"], config["license"]) == (10, "apache-2.0")


def test_where_nobody_knows_the_size_one_is_stated_at_which_the_graph_runs():
    model = converted(FOLDER / "deit3_tiny_pruned", "net")

    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_another_file_than_the_catalog_s_is_refused():
    known = sha256(FOLDER / "deit3_tiny_pruned" / "modules.pt")
    converted(FOLDER / "deit3_tiny_pruned", "net", entry(sha256=known))

    with pytest.raises(CheckpointError, match="isn't the file that the catalog knows: sha256 000000000000"):
        converted(FOLDER / "deit3_tiny_pruned", "net", entry(sha256="0" * 64))


def test_a_graph_within_a_vertex_is_written_out(damaged):
    """The vertex reads what its own graph's inputs stand for, and is worth what that graph gives."""

    def nest(config):
        third = config["3"]
        inner = {"0": {"name": "in", "type": "input"}, "1": {**third, "predecessor_indices": [0]}, "output_index": 1}
        config["3"] = {**third, "is_atomic": False, "module_dict": inner}

    images, expected = reference("convnextv2_atto_tiny_pruned")
    folder = damaged(nest)

    assert off(converted(folder, "net"), images, expected) <= 1e-5


# As a plan over timm's model.

BASES = {
    "beit_tiny_pruned": Base(
        "timm/beit_base_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "num_classes": 10}
    ),
    "convnextv2_atto_tiny_pruned": Base(
        "timm/convnextv2_atto", {"depths": [1, 1, 2, 1], "dims": [16, 24, 32, 48], "num_classes": 10}
    ),
    "deit3_tiny_pruned": Base(
        "timm/deit3_small_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64}
    ),
}


@pytest.mark.parametrize("name", ["beit_tiny_pruned", "convnextv2_atto_tiny_pruned"])
def test_a_checkpoint_that_is_a_narrowed_timm_model_becomes_a_plan(name, tmp_path):
    source = replace(entry(), name=name, base=BASES[name])
    model = converted(FOLDER / name, name, source)
    repository.write_repository(tmp_path / name, model, model.zoo_entry, {})
    again = zoo.load(tmp_path / name)
    images, expected = reference(name)

    assert (model.zoo_entry.graph, len(model.zoo_entry.plan.edits)) == (None, 1)
    assert off(again, images, expected) <= 1e-5
    assert CHECKPOINTS[name][0] == measure(again, (3, 64, 64)).params


def test_such_a_model_takes_a_new_head_and_gives_features(tmp_path):
    name = "convnextv2_atto_tiny_pruned"
    model = converted(FOLDER / name, name, replace(entry(), name=name, base=BASES[name]))
    repository.write_repository(tmp_path / name, model, model.zoo_entry, {})
    images, _ = reference(name)

    assert zoo.load(tmp_path / name, num_classes=3)(images).shape == (2, 3)
    assert len(zoo.load(tmp_path / name, features_only=True)(images)) == 4


def test_heads_of_uneven_widths_stay_a_graph():
    source = replace(entry(), base=BASES["deit3_tiny_pruned"])

    assert converted(FOLDER / "deit3_tiny_pruned", "net", source).zoo_entry.graph is not None


def test_a_plan_that_gives_other_outputs_is_not_taken():
    """The same tensors in a network that norms with another epsilon."""
    name = "convnextv2_atto_tiny_pruned"
    graph, tensors = torch_dag.read_checkpoint(FOLDER / name)
    other = Base(BASES[name].id, {**BASES[name].args, "norm_eps": 0.5})

    assert torch_dag.plan_view(graph, tensors, BASES[name], (3, 64, 64)) is not None
    assert torch_dag.plan_view(graph, tensors, other, (3, 64, 64)) is None
    assert torch_dag.plan_view(graph, tensors, Base("timm/resnet18"), (3, 64, 64)) is None


# What is damaged, or dangerous.


def without_weights(config):
    gelu = next(config[key] for key in config if key.isdigit() and config[key]["name"] == "gelu")
    number = len([key for key in config if key.isdigit()])
    config.update({str(number): {**gelu, "name": "alone", "predecessor_indices": [0]}, "output_index": number})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["5"].update(predecessor_indices=[8]), "vertex 5 reads vertex 8, expected one before it, 0 to 4"),
        (lambda c: c["5"].update(predecessor_indices=[5]), "vertex 5 reads vertex 5"),
        (lambda c: c["5"].update(predecessor_indices=[-1]), "vertex 5 reads vertex -1"),
        (lambda c: c["5"].update(predecessor_indices=[True]), "vertex 5 reads vertex True"),
        (lambda c: c["5"].update(predecessor_indices="0"), "vertex 5: predecessor_indices isn't a list"),
        (lambda c: c["5"].update(module_index=10**6), "vertex 5: module_index is 1000000, expected 0 to"),
        (lambda c: c["5"].update(module_index=None), "vertex 5: module_index is None"),
        (lambda c: c["5"].update(name=None), "vertex 5 has no name"),
        (lambda c: c["1"].update(name=c["0"]["name"]), "the name is taken"),
        (lambda c: c["5"].update(is_atomic=False), "has 0 vertices of 71 so far, nested 1 deep"),
        (lambda c: c.pop("output_index"), "output_index is None"),
        (lambda c: c.update(output_index=10**6), "output_index is 1000000"),
        (dict.clear, "has 0 vertices"),
        (lambda c: c.update({"class": "Model"}), "class is 'Model', expected DagModule: not a torch-dag checkpoint"),
        (lambda c: c.update({"class": None}), "class is None, expected DagModule"),
        (lambda c: c.update(output_index=0), "the output 'x' is an input: nothing is computed"),
        (without_weights, "the output depends on none of the weights"),
        (
            lambda c: c["5"].update(is_atomic=False, module_dict={str(i): c["0"] for i in range(9_999)}),
            "has 9999 vertices of 10070 so far",
        ),
    ],
)
def test_a_graph_that_is_not_one_is_refused(damaged, change, message):
    with pytest.raises(CheckpointError) as caught:
        torch_dag.read_checkpoint(damaged(change))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_old_does_not_say_its_class(damaged):
    images, expected = reference("convnextv2_atto_tiny_pruned")
    folder = damaged(lambda config: config.pop("class"))

    assert off(converted(folder, "net"), images, expected) <= 1e-5


def test_a_graph_within_itself_without_end_is_refused(damaged):
    def nest(config):
        inner = {key: config[key] for key in ("0", "1", "output_index") if key in config} | {"output_index": 1}
        for _ in range(9):
            inner = {
                "0": config["0"],
                "1": {**config["1"], "is_atomic": False, "module_dict": inner},
                "output_index": 1,
            }
        config["5"].update(is_atomic=False, module_dict=inner)

    with pytest.raises(CheckpointError, match="nested 9 deep"):
        torch_dag.read_checkpoint(damaged(nest))


@pytest.mark.parametrize(("file", "keep"), [("modules.pt", 0.5), ("modules.pt", 0.95), ("config.dict.json", 0.5)])
def test_a_truncated_file_is_refused(damaged, file, keep):
    path = damaged(lambda config: None) / file
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    with pytest.raises(CheckpointError, match="isn't imported"):
        torch_dag.read_checkpoint(path.parent)


@pytest.mark.parametrize("file", ["modules.pt", "config.dict.json"])
def test_a_missing_file_is_named(damaged, file):
    folder = damaged(lambda config: None)
    (folder / file).unlink()

    with pytest.raises(CheckpointError, match=f"has no {file}"):
        torch_dag.read_checkpoint(folder)


def mutated(value, rng):
    """A JSON value with one part replaced, removed or repeated."""
    others = [None, True, -1, 0, 1, 10**9, 1.5, float("nan"), "", "x", [], {}, [0], [[[]]], {"0": {}}]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        else:
            changed[key] = mutated(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(value[place], rng), *value[place + rng.randrange(2) :]]
    return rng.choice(others)


@pytest.mark.parametrize("seed", range(10))
def test_a_random_graph_is_read_or_refused(seed, monkeypatch):
    """Whatever a graph says, it is built on the meta device or refused with the one error."""
    rng = random.Random(seed)  # noqa: S311
    folder = FOLDER / "convnextv2_atto_tiny_pruned"
    config = json.loads((folder / "config.dict.json").read_text())
    modules = unpickle.load_pickle(folder / "modules.pt", checkpoint.NAMES)
    monkeypatch.setattr(checkpoint.unpickle, "load_pickle", lambda *_: modules)
    kept, refusals = 0, []
    for _ in range(60):
        changed = config
        for _ in range(rng.randrange(1, 4)):
            changed = mutated(changed, rng)
        monkeypatch.setattr(checkpoint, "read_json", lambda _, data=changed: data)
        try:
            graph, tensors = torch_dag.read_checkpoint(folder)
            assign_(graph_module(graph), tensors, "net")
            kept += 1
        except (CheckpointError, StructureError, WeightsError) as error:
            refusals.append(str(error))
    assert [text for text in refusals if "\n" in text] == []
    assert refusals
    assert kept + len(refusals) == 60
