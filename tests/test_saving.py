"""What is saved gives what the model gave, or isn't saved."""

import shutil
from pathlib import Path

import pytest
import timm
import torch

import zoo
from zoo.catalog.entry import Base, Budget
from zoo.errors import StructureError

CHECKPOINT = Path(__file__).parent / "data" / "torch_dag" / "beit_tiny_pruned"
IMAGES = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x.flatten(1)[:, :7] * float("nan"), "gives what is no number"),
        (lambda x: x.mean((2, 3)).expand(4, -1), "doesn't run on 5 x 3 x 160 x 160"),
    ],
)
def test_what_gives_no_numbers_or_asks_for_a_batch_is_refused(forward, message, tmp_path):
    model = timm.create_model("test_resnet", num_classes=7).eval()
    model.forward = forward
    with pytest.raises(StructureError, match=message):
        zoo.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(StructureError, match=message):
        zoo.compress(model, budget=Budget(0.5), data=[IMAGES])


def test_arguments_that_are_named_are_kept(tmp_path):
    model = timm.create_model("test_resnet", num_classes=7, global_pool="max").eval()
    zoo.save(model, tmp_path, base=Base("timm/test_resnet", {"num_classes": 7, "global_pool": "max"}))
    with torch.no_grad():
        assert torch.equal(zoo.load(tmp_path)(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", ["test_resnet", "convit_tiny"])
def test_a_model_is_saved_as_it_was_and_stays_so(name, tmp_path):
    model = timm.create_model(name, drop_rate=0.1).train()
    before = {path: (tensor, tensor.clone()) for path, tensor in [*model.named_parameters(), *model.named_buffers()]}
    zoo.save(model, tmp_path / "model")
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(module.training for module in model.modules())
    assert after.keys() == before.keys()
    assert all(after[path] is held and torch.equal(held, was) for path, (held, was) in before.items())


def test_a_model_without_a_size_or_without_values_is_refused_in_a_line(tmp_path):
    model = timm.create_model("test_resnet").eval()
    with pytest.raises(StructureError, match="has no values"):
        zoo.save(timm.create_model("test_resnet").to("meta"), tmp_path / "model")
    del model.pretrained_cfg["input_size"]
    for act in (lambda: zoo.save(model, tmp_path / "model"), lambda: zoo.compress(model, budget=0.5, data=[IMAGES])):
        with pytest.raises(StructureError, match=r"names no input size.*or say example=\(CHANNELS, HEIGHT, WIDTH\)"):
            act()


def test_a_folder_whose_name_no_model_may_have_is_imported_under_another(tmp_path):
    source = shutil.copytree(CHECKPOINT, tmp_path / "mon modèle")
    with pytest.raises(StructureError, match="name, which --name gives, is 'mon modèle', expected a name of"):
        zoo.convert(source, tmp_path / "ours", size=64)
    assert zoo.load(zoo.convert(source, tmp_path / "ours", name="modele", size=64)).zoo_entry.name == "modele"
