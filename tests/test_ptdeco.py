"""ptdeco's checkpoints, read and written; the oracle is the real package."""

import json
from collections import OrderedDict

import pytest
import timm
import torch

import zoo
from zoo.catalog.entry import Base
from zoo.cli import main
from zoo.errors import CheckpointError, RepositoryError, StructureError
from zoo.hub.foreign import ptdeco
from zoo.structure.description import Description
from zoo.structure.plan import Drop, Factor, Plan, Rank, apply_
from zoo.structure.tensors import assign_

theirs = pytest.importorskip("ptdeco.utils")
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 5}
CNN = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 20], "num_classes": 5}
CASES = {
    "vit": ("vit_tiny_patch16_224", VIT, {"blocks.0.attn.qkv": Rank(8), "blocks.1.mlp.fc1": Rank(16)}),
    "kernel first": ("resnet18", CNN, {"layer2.0.conv1": Rank(5), "layer3.0.conv2": Rank(7)}),
    "kernel last": ("resnet18", CNN, {"layer2.0.conv1": Rank(5, "last"), "layer4.0.conv2": Rank(9, "last")}),
    "no bias": ("vit_tiny_patch16_224", {**VIT, "qkv_bias": False}, {"blocks.1.attn.qkv": Rank(8)}),
}


def models(case):
    """Return the dense model, the plan, and the factored model."""
    name, args, ranks = CASES[case]
    torch.manual_seed(0)
    dense, factored = (timm.create_model(name, **args).eval() for _ in range(2))
    plan = Plan((Factor(ranks),))
    return dense, plan, apply_(factored, plan)


@pytest.mark.parametrize("case", CASES)
def test_ptdeco_reads_what_is_written(case, tmp_path):
    dense, plan, factored = models(case)
    ptdeco.write_decomposition(tmp_path / "out", factored, plan)
    config = json.loads((tmp_path / "out" / ptdeco.CONFIG).read_text())
    theirs.apply_decompose_config_in_place(dense, config)
    dense.load_state_dict(torch.load(tmp_path / "out" / ptdeco.WEIGHTS, weights_only=True))  # noqa: TID251
    images = torch.randn(2, 3, 32, 32)

    assert torch.equal(dense.eval()(images), factored(images))
    assert all(0 < entry["__meta__"]["proportion"] <= 1 for entry in config.values())


@pytest.mark.parametrize("names", [("0", "1"), ("first", "second")])
@pytest.mark.parametrize("case", CASES)
def test_what_ptdeco_writes_is_read(case, names, tmp_path):
    """The file holds what ptdeco itself says of the modules, and torch's own state dict with its metadata."""
    dense, plan, factored = models(case)
    for path in CASES[case][2]:
        parent, _, name = path.rpartition(".")
        pair = dict(zip(names, factored.get_submodule(path), strict=True))
        setattr(factored.get_submodule(parent), name, torch.nn.Sequential(OrderedDict(pair)))
    config = {path: theirs.get_module_config(factored.get_submodule(path)) for path in CASES[case][2]}
    (tmp_path / ptdeco.CONFIG).write_text(json.dumps(config))
    torch.save(factored.state_dict(), tmp_path / ptdeco.WEIGHTS)  # noqa: TID251
    edit, tensors = ptdeco.read_decomposition(tmp_path, dense)
    images = torch.randn(2, 3, 32, 32)

    assert edit == plan.edits[0]
    assert torch.equal(assign_(apply_(dense, Plan((edit,))), tensors, "read")(images), factored(images))


LINEAR = {"type": "Linear", "in_features": 48, "out_features": 8, "bias": False}
SECOND = {"type": "Linear", "in_features": 8, "out_features": 144, "bias": True}


def pair(*layers):
    return {"type": "Sequential", "modules": {str(i): layer for i, layer in enumerate(layers)}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"blocks.9.attn.qkv": pair(LINEAR, SECOND)}, "no module 'blocks.9.attn.qkv'"),
        ({"blocks.0.attn.qkv": pair(LINEAR)}, "isn't a Sequential of two layers"),
        ({"blocks.0.attn.qkv": LINEAR}, "isn't a Sequential of two layers"),
        ({"blocks.0.attn.qkv": pair(LINEAR, {**SECOND, "out_features": 145})}, "isn't the base's layer in two"),
        ({"blocks.0.attn.qkv": pair(LINEAR, {**SECOND, "bias": False})}, "isn't the base's layer in two"),
        ({"blocks.0.attn.qkv": pair({**LINEAR, "out_features": 0}, {**SECOND, "in_features": 0})}, "rank is 0"),
        ({"blocks.0.attn.qkv": pair(LINEAR, {**SECOND, "in_features": 10**9})}, "rank is 1000000000"),
        ({"blocks.0.attn.qkv": pair(LINEAR, {**SECOND, "in_features": "8"})}, "rank is 8"),
        ({"blocks.0": pair(LINEAR, SECOND)}, "expected a Linear or an ungrouped Conv2d"),
    ],
)
def test_a_configuration_that_does_not_fit_the_base_is_refused(config, message, tmp_path):
    (tmp_path / ptdeco.CONFIG).write_text(json.dumps(config))
    torch.save(models("vit")[2].state_dict(), tmp_path / ptdeco.WEIGHTS)  # noqa: TID251
    with pytest.raises(CheckpointError, match=message):
        ptdeco.read_decomposition(tmp_path, models("vit")[0])


def test_a_strided_convolution_that_lost_its_stride_is_refused(tmp_path):
    """ptdeco 0.5 leaves the stride of 1x1 convolutions out; such a model can't run."""
    point = {"kernel_size": 1, "groups": 1, "padding": 0, "padding_mode": "zeros", "stride": 1, "dilation": 1}
    first = {"type": "Conv2d", "in_channels": 8, "out_channels": 4, "bias": False, **point}
    second = {"type": "Conv2d", "in_channels": 4, "out_channels": 12, "bias": False, **point}
    (tmp_path / ptdeco.CONFIG).write_text(json.dumps({"layer2.0.downsample.0": pair(first, second)}))
    dense, _, factored = models("kernel first")
    torch.save(factored.state_dict(), tmp_path / ptdeco.WEIGHTS)  # noqa: TID251
    with pytest.raises(CheckpointError, match=r"layer2\.0\.downsample\.0 isn't the base's layer in two"):
        ptdeco.read_decomposition(tmp_path, dense)


@pytest.mark.parametrize("damage", ["no configuration", "no weights", "cut", "a list"])
def test_a_damaged_checkpoint_is_refused(damage, tmp_path):
    dense, plan, factored = models("vit")
    folder = tmp_path / "out"
    ptdeco.write_decomposition(folder, factored, plan)
    if damage == "no configuration":
        (folder / ptdeco.CONFIG).unlink()
    elif damage == "no weights":
        (folder / ptdeco.WEIGHTS).unlink()
    elif damage == "cut":
        (folder / ptdeco.WEIGHTS).write_bytes((folder / ptdeco.WEIGHTS).read_bytes()[:-100])
    else:
        torch.save([torch.zeros(2)], folder / ptdeco.WEIGHTS)  # noqa: TID251
    with pytest.raises(CheckpointError, match="isn't imported"):
        ptdeco.read_decomposition(folder, dense)


def test_what_ptdeco_cannot_say_is_not_exported(tmp_path):
    dense, plan, factored = models("vit")
    with pytest.raises(StructureError, match="the plan has a drop"):
        ptdeco.write_decomposition(tmp_path / "out", factored, plan + Plan((Drop({"blocks.0": "identity"}),)))
    with pytest.raises(StructureError, match="isn't decomposed"):
        ptdeco.write_decomposition(tmp_path / "out", dense, Plan())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    _, plan, factored = models("vit")
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RepositoryError):
        ptdeco.write_decomposition(tmp_path, factored, plan)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_an_export_that_is_imported_again_gives_the_same_outputs(tmp_path, capsys):
    """The command line both ways; ptdeco's files don't say which model was decomposed."""
    images = torch.randn(2, 3, 32, 32)
    dense, plan, factored = models("vit")
    dense.pretrained_cfg = factored.pretrained_cfg = {"input_size": (3, 32, 32), "num_classes": 5}
    factored.zoo_entry = Description("factored", Base("timm/vit_tiny_patch16_224", VIT), plan)
    zoo.save(factored, tmp_path / "first")
    assert command(f"export {tmp_path / 'first'} --ptdeco --out {tmp_path / 'theirs'}") == 0
    assert command(f"import {tmp_path / 'theirs'} --out {tmp_path / 'again'}") == 1
    assert "name it, --base" in capsys.readouterr().err
    zoo.convert(tmp_path / "theirs", tmp_path / "again", base=Base("timm/vit_tiny_patch16_224", VIT), size=32)
    assert torch.equal(zoo.load(tmp_path / "again")(images), factored(images))


def command(line):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    return end.value.code
