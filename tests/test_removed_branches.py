"""Checkpoints from which whole branches were cut: plans that drop what is missing, in front of the narrowing.

torch-dag removes every vertex without a channel, then those that nothing reads or that read nothing; a sum or product
of which one operand is left passes it on. The cut is made here by those rules, on checkpoints of torch-dag and on ones
written as torch-dag writes them; what must come out is timm's own network with the branch taken out by hand.
"""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.models.metaformer import GroupNorm1NoBias, MetaFormer
from torch import fx, nn

from zoo.catalog.entry import Base, Entry, Origin
from zoo.hub import repository
from zoo.hub.foreign import torch_dag
from zoo.hub.foreign.torch_dag import view
from zoo.measurement.macs import measure
from zoo.structure.base import Meta, skeleton
from zoo.structure.plan import Drop, Narrow
from zoo.verbs.converting import converted

FOLDER = Path(__file__).parent / "data" / "torch_dag"
RESNET = Base("timm/resnet50d", {"layers": [1, 2, 1, 1], "channels": [8, 8, 16, 16], "num_classes": 10})
EFFICIENTNET = Base("timm/tf_efficientnetv2_b0", {"channel_multiplier": 0.2, "num_classes": 10})
CONVNEXT = Base("timm/convnextv2_atto", {"depths": [1, 1, 2, 1], "dims": [16, 24, 32, 48], "num_classes": 10})


def cut(folder, *names):
    """Remove vertices from a checkpoint's graph as torch-dag does: by the beginnings of their names."""
    path = folder / "config.dict.json"
    config = json.loads(path.read_text())
    vertices = {int(key): vertex for key, vertex in config.items() if key.isdigit()}
    constants = {number for number, vertex in vertices.items() if not vertex.get("predecessor_indices")}
    gone = {number for number, vertex in vertices.items() if vertex["name"].startswith(names)}
    assert gone
    while gone:
        for number in gone:
            del vertices[number]
        for vertex in vertices.values():
            if "predecessor_indices" in vertex:
                vertex["predecessor_indices"] = [p for p in vertex["predecessor_indices"] if p in vertices]
        read = {p for vertex in vertices.values() for p in vertex.get("predecessor_indices", ())}
        unread = {number for number in vertices if number not in read and number != config["output_index"]}
        gone = unread | {n for n, v in vertices.items() if not v.get("predecessor_indices") and n not in constants}
    place = {number: index for index, number in enumerate(vertices)}
    for vertex in vertices.values():
        if "predecessor_indices" in vertex:
            vertex["predecessor_indices"] = [place[p] for p in vertex["predecessor_indices"]]
    written = {str(place[number]): vertex for number, vertex in vertices.items()}
    path.write_text(json.dumps({**written, "name": "net", "output_index": place[config["output_index"]]}))


class Leaves(fx.Tracer):
    def is_leaf_module(self, module, path):
        return isinstance(module, BatchNormAct2d | Conv2dSame) or super().is_leaf_module(module, path)


def structured():
    """The source's classes that such networks need, under its names."""
    names = {"AddModule": {}, "MulModule": {}, "MeanModule": {"dim": (2, 3), "keepdim": True}}
    module = types.ModuleType("torch_dag.structured_modules")
    for name in names:
        setattr(module, name, type(name, (nn.Module,), {"__module__": module.__name__}))
    sys.modules[module.__name__] = module
    sys.modules["torch_dag"] = types.ModuleType("torch_dag")

    def made(name):
        vertex = getattr(module, name)()
        for key, value in names[name].items():
            setattr(vertex, key, value)
        return vertex

    return made


def checkpoint(model, folder, monkeypatch, *more):
    """A network of timm, and more modules, as torch-dag writes one: norms with an activation are two, numbered."""
    monkeypatch.setitem(sys.modules, "torch_dag", None)
    monkeypatch.setitem(sys.modules, "torch_dag.structured_modules", None)
    made, values, vertices, modules = structured(), {}, [], []

    def write(name, module, predecessors):
        vertices.append(
            {
                "name": name,
                "type": "inner",
                "predecessor_indices": list(dict.fromkeys(predecessors)),
                "is_atomic": True,
                "module_index": len(modules),
                "orbit": None,
            }
        )
        modules.append(module)
        return len(vertices) - 1

    functions = {"add": "AddModule", "iadd": "AddModule", "mul": "MulModule", "mean": "MeanModule"}
    norms = 0
    for node in Leaves().trace(model).nodes:
        read = [values[each] for each in node.all_input_nodes]
        if node.op == "placeholder":
            vertices.append({"name": node.name, "type": "input"})
            values[node] = len(vertices) - 1
        elif node.op == "output":
            output = read[0]
        elif node.op == "call_module" and isinstance(module := model.get_submodule(node.target), BatchNormAct2d):
            norm = nn.BatchNorm2d(module.num_features, module.eps)
            norm.load_state_dict(module.state_dict())
            values[node] = write(f"bn_{norms}", norm, read)
            values[node] = write(f"act_{norms}", module.act, [values[node]])
            norms += 1
        elif node.op == "call_module":
            values[node] = write(node.target.replace(".", "_"), model.get_submodule(node.target), read)
        elif node.target in ("flatten", torch.flatten):
            values[node] = write(node.name, nn.Flatten(), read)
        else:
            name = getattr(node.target, "__name__", node.target).strip("_")
            values[node] = write(node.name, made(functions[name]), read)
    for number, module in enumerate(more):
        output = write(f"more_{number}", module, [output])
    config = {str(number): vertex for number, vertex in enumerate(vertices)}
    folder.mkdir()
    (folder / "config.dict.json").write_text(json.dumps({**config, "name": "net", "output_index": output}))
    torch.save(nn.ModuleList(modules), folder / "modules.pt")  # noqa: TID251  # as the source does


def entry(base):
    origin = Origin("org/net", "torch-dag")
    return Entry(
        "net", "own", "net", base.architecture, "image-classification", "origin", base, input=(3, 64, 64), origin=origin
    )


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def off(model, expected):
    with torch.no_grad():
        found = model(images())
    return float((found - expected).abs().max() / expected.abs().max())


def shortcut_alone(model):
    """The second bottleneck of a stage without its branch."""
    block = model.layer2[1]
    block.forward = lambda x: block.act3(x)


def without_block(model):
    model.blocks[1][1] = nn.Identity()
    model.blocks[4][2] = nn.Identity()


def without_gate(model):
    model.blocks[5][1].se = nn.Identity()


TAKEN_OUT = {  # base, the vertices cut, the same by hand, and what must be dropped
    "a bottleneck": (RESNET, ("layer2_1_conv", "layer2_1_bn"), shortcut_alone, {"layer2.1": "identity"}),
    "two blocks of an efficientnet": (
        EFFICIENTNET,
        ("blocks_1_1_", "blocks_4_2_"),
        without_block,
        {"blocks.1.1": "identity", "blocks.4.2": "identity"},
    ),
    "a gate": (EFFICIENTNET, ("blocks_5_1_se_",), without_gate, {"blocks.5.1.se": "identity"}),
}


@pytest.mark.parametrize("case", TAKEN_OUT)
def test_a_branch_that_was_cut_is_dropped_by_the_plan(case, tmp_path, disturb, monkeypatch):
    base, names, by_hand, drops = TAKEN_OUT[case]
    model = disturb(base, 64)
    checkpoint(model, tmp_path / "net", monkeypatch)
    cut(tmp_path / "net", *names)
    by_hand(model)
    with torch.no_grad():
        expected = model(images())

    found = converted(tmp_path / "net", "net", entry(base))

    assert found.zoo_entry.graph is None
    assert found.zoo_entry.plan.edits == (Drop(drops),)
    assert off(found, expected) <= 1e-5
    repository.write_repository(tmp_path / "saved", found, found.zoo_entry, {})
    again = repository.rebuild(tmp_path / "saved")
    assert off(again, expected) <= 1e-5
    gone = tuple(f"{path}." for path in drops)
    left = sum(p.numel() for path, p in skeleton(base).named_parameters() if not path.startswith(gone))
    assert measure(again, (3, 64, 64)).params == left


@pytest.fixture
def published(tmp_path):
    """A function that copies a checkpoint of torch-dag and cuts vertices from it."""

    def copy(name, *names):
        shutil.copytree(FOLDER / name, tmp_path / name)
        cut(tmp_path / name, *names)
        return tmp_path / name

    return copy


@pytest.mark.parametrize(("stage", "number"), [(2, 1), (0, 0)], ids=["one of two", "all of a stage"])
def test_a_pruned_network_without_a_block_is_dropped_and_narrowed(published, stage, number):
    """The block's vertices are its branch alone: what the sum passes on is the block's input."""
    folder = published("convnextv2_atto_tiny_pruned", f"stages_{stage}_blocks_{number}_")
    model = converted(folder, "net", entry(CONVNEXT))
    whole = converted(FOLDER / folder.name, "net", entry(CONVNEXT))
    whole.stages[stage].blocks[number] = nn.Identity()
    with torch.no_grad():
        expected = whole(images())

    drop, narrow = model.zoo_entry.plan.edits
    block = f"stages.{stage}.blocks.{number}"
    assert drop == Drop({block: "identity"})
    assert isinstance(narrow, Narrow)
    assert not [path for path in narrow.widths if path.startswith(block)]
    assert off(model, expected) <= 1e-5


@pytest.fixture
def metaformer(monkeypatch):
    """The architecture of the small checkpoint, which timm has in larger sizes only."""

    def small(base):
        args = {"depths": [1, 1, 2, 1], "dims": [16, 24, 32, 48], "num_classes": 10}
        with Meta():
            return MetaFormer(**args, norm_layers=GroupNorm1NoBias, use_mlp_head=False)

    monkeypatch.setattr(view, "skeleton", small)
    return Base("timm/poolformerv2_s12")


MLP = ("stages_2_blocks_0_mlp_", "pow_3", "mul_4", "add_7")
MIXER = ("stages_2_blocks_0_norm1", "stages_2_blocks_0_token_mixer_pool", "sub_2")


@pytest.mark.parametrize(
    ("names", "silent", "drops"),
    [
        (MLP, ["mlp"], ["norm2", "mlp"]),
        (MIXER, ["token_mixer"], ["norm1"]),
        (MLP + MIXER, ["mlp", "token_mixer"], ["norm1", "norm2", "mlp"]),
    ],
    ids=["the mlp", "the token mixer", "both, whose scaled shortcuts remain"],
)
def test_a_branch_beside_a_scaled_shortcut_becomes_zero(metaformer, published, names, silent, drops):
    folder = published("poolformerv2_tiny_pruned", *names)
    _, whole = torch_dag.plan_view(*torch_dag.read_checkpoint(FOLDER / folder.name), metaformer, (3, 64, 64))
    for name in silent:
        whole.stages[2].blocks[0].get_submodule(name).forward = torch.zeros_like
    with torch.no_grad():
        expected = whole(images())

    plan, model = torch_dag.plan_view(*torch_dag.read_checkpoint(folder), metaformer, (3, 64, 64))

    assert plan.edits[0] == Drop({f"stages.2.blocks.0.{name}": "zero" for name in drops})
    assert off(model, expected) <= 1e-5


def test_a_branch_beside_a_shortcut_of_another_shape_stays_a_graph(tmp_path, disturb, monkeypatch):
    model = disturb(RESNET, 64)
    checkpoint(model, tmp_path / "net", monkeypatch)
    cut(tmp_path / "net", "layer3_0_conv", "layer3_0_bn")
    block = model.layer3[0]
    block.forward = lambda x: block.act3(block.downsample(x))
    with torch.no_grad():
        expected = model(images())

    found = converted(tmp_path / "net", "net", entry(RESNET))

    assert found.zoo_entry.graph is not None
    assert off(found, expected) <= 1e-5


def test_a_plan_with_drops_that_gives_other_outputs_is_not_taken(published):
    """The same tensors in a network that norms with another epsilon."""
    graph, tensors = torch_dag.read_checkpoint(published("convnextv2_atto_tiny_pruned", "stages_2_blocks_1_"))
    other = Base(CONVNEXT.id, {**CONVNEXT.args, "norm_eps": 0.5})

    assert torch_dag.plan_view(graph, tensors, CONVNEXT, (3, 64, 64)) is not None
    assert torch_dag.plan_view(graph, tensors, other, (3, 64, 64)) is None


def test_a_plan_says_that_a_softmax_was_left_out(tmp_path, disturb, monkeypatch):
    model = disturb(RESNET, 64)
    checkpoint(model, tmp_path / "net", monkeypatch, nn.Softmax(-1))
    with torch.no_grad():
        logits = model(images())

    plain = converted(tmp_path / "net", "net", entry(RESNET))
    kept = converted(tmp_path / "net", "net", entry(RESNET), probabilities=True)

    assert plain.zoo_entry.graph is None
    said = "the softmax at the end is left out: outputs are logits"
    assert said in plain.zoo_entry.recipe["converted_from"]["changed"]
    assert said not in kept.zoo_entry.recipe["converted_from"]["changed"]
    assert off(plain, logits) <= 1e-5
    assert off(kept, logits.softmax(-1)) <= 1e-5
