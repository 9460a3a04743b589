"""A dense repository is read by plain tools: model.safetensors holds what a state dict does, and nothing else."""

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open

import zoo
from zoo.catalog.entry import Base
from zoo.hub import weights
from zoo.structure.tensors import computable

# One of each module of timm that computes buffers, small where its builder lets one: (architecture, arguments)
COMPUTING = {
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "embed_dim": 12, "num_heads": (2, 4), "img_size": 56},
    "swinv2_tiny_window8_256": {"depths": (2, 2), "embed_dim": 12, "num_heads": (2, 4), "img_size": 64},
    "swinv2_cr_tiny_224": {"depths": (2, 2), "embed_dim": 12, "num_heads": (2, 4), "img_size": 56},
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 32},
    "eva02_tiny_patch14_224": {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 28},
    "levit_128s": {},
    "efficientformerv2_s0": {},
    "efficientvit_m0": {},
    "tiny_vit_5m_224": {},
    "test_coatnet": {},
    "test_vit_relpos": {},
    "convit_tiny": {"depth": 2, "embed_dim": 24, "num_heads": 3},
    "gcvit_xxtiny": {},
    "csatv2": {},
}


def made(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **COMPUTING[name]).eval()


def outputs(model):
    size = model.pretrained_cfg["input_size"]
    with torch.no_grad():
        return model(torch.randn(1, *size, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", COMPUTING)
def test_timm_and_safetensors_read_what_is_saved_and_it_loads_bit_equal(name, tmp_path):
    model = made(name)
    computed = {path for path, _ in model.named_buffers()} - model.state_dict().keys()
    if not computed or computed - computable(model).keys():
        pytest.skip("an older timm, which keeps them in files or can't compute them again")
    zoo.save(model, tmp_path / "it", base=Base(f"timm/{name}", {"num_classes": 3, **COMPUTING[name]}))
    path = tmp_path / "it" / "model.safetensors"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == model.state_dict().keys()
    expected = outputs(model)
    by_timm = timm.create_model(name, num_classes=3, checkpoint_path=str(path), **COMPUTING[name]).eval()
    by_safetensors = timm.create_model(name, num_classes=3, **COMPUTING[name]).eval()
    safetensors.torch.load_model(by_safetensors, path, strict=True)
    loaded = zoo.load(tmp_path / "it")
    for each in (by_timm, by_safetensors, loaded):
        each.pretrained_cfg = model.pretrained_cfg
        assert torch.equal(expected, outputs(each))
    fresh = dict(made(name).named_buffers())
    for path, buffer in zoo.load(tmp_path / "it").named_buffers():
        if path in computed:
            assert torch.equal(fresh[path], buffer), path
            assert fresh[path].dtype == buffer.dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "eva02_tiny_patch14_224"])
def test_buffers_are_computed_in_the_precision_that_was_saved(name, dtype, tmp_path):
    model = made(name).to(dtype)
    zoo.save(model, tmp_path / "it", base=Base(f"timm/{name}", {"num_classes": 3, **COMPUTING[name]}))
    with safe_open(tmp_path / "it" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.state_dict().keys()
    expected = dict(model.named_buffers())
    for path, buffer in zoo.load(tmp_path / "it").named_buffers():
        assert expected[path].dtype == buffer.dtype, path
        assert torch.equal(expected[path], buffer), path


def test_a_buffer_that_would_be_computed_otherwise_is_kept(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    model = made(name)
    model.layers[0].blocks[1].attn_mask += 0.5
    zoo.save(model, tmp_path / "it", base=Base(f"timm/{name}", {"num_classes": 3, **COMPUTING[name]}))
    with safe_open(tmp_path / "it" / "model.safetensors", "pt") as file:
        assert set(file.keys()) - model.state_dict().keys() == {"layers.0.blocks.1.attn_mask"}
    assert torch.equal(outputs(model), outputs(zoo.load(tmp_path / "it")))


def test_a_buffer_that_a_forward_pass_grew_is_no_part_of_a_model(tmp_path):
    model = made("convit_tiny")
    expected = outputs(model)
    zoo.save(model, tmp_path / "it", base=Base("timm/convit_tiny", {"num_classes": 3, **COMPUTING["convit_tiny"]}))
    assert torch.equal(expected, outputs(zoo.load(tmp_path / "it")))


def test_files_that_hold_the_buffers_too_load_as_they_did(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    model = made(name)
    folder = zoo.save(model, tmp_path / "it", base=Base(f"timm/{name}", {"num_classes": 3, **COMPUTING[name]}))
    old = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    digest = weights.save_weights(folder / "model.safetensors", old)
    text = (folder / "config.json").read_text()
    now = zoo.hub.repository.read_config(folder)["zoo"]["weights_sha256"]
    (folder / "config.json").write_text(text.replace(now, digest))
    assert torch.equal(outputs(model), outputs(zoo.load(folder)))


@pytest.mark.skipif(
    not hasattr(timm.models.convit.GPSA, "init_non_persistent_buffers"), reason="older than timm 1.0.31"
)
def test_every_buffer_that_timm_keeps_out_of_files_can_be_computed():
    for name in COMPUTING:
        model = made(name)
        outside = {path for path, _ in model.named_buffers()} - model.state_dict().keys()
        assert outside <= computable(model).keys(), name
