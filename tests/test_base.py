"""Dense architectures, built without values: what is accepted, what is refused, and what is left as it was."""

import re
import resource
import threading
import time

import pytest
import timm
import torch
from torch import nn

import zoo
from zoo.catalog.entry import Base
from zoo.deadline import deadline
from zoo.errors import FingerprintError, StructureError, UnknownName
from zoo.structure import base
from zoo.structure.base import check_fingerprint, fingerprint, initialised, skeleton

SMALL = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]})
FAMILIES = [
    "resnet18", "mobilenetv3_small_050", "efficientnet_b0", "vit_tiny_patch16_224", "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224", "convnext_atto", "densenet121", "deit_tiny_patch16_224", "levit_128s",
    "mixer_s32_224", "resnest14d", "repvgg_a0", "tf_efficientnetv2_b0", "vgg11", "xcit_nano_12_p16_224",
    "edgenext_xx_small", "maxvit_tiny_tf_224", "ghostnet_050", "dm_nfnet_f0",
]  # fmt: skip


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_skeleton_has_the_shapes_of_the_model_and_no_values(architecture):
    found = tensors(skeleton(Base(f"timm/{architecture}")))
    with torch.device("meta"):
        expected = tensors(timm.create_model(architecture))
    assert {"meta"} == {tensor.device.type for tensor in found.values()}
    assert {name: (value.shape, value.dtype) for name, value in expected.items()} == {
        name: (value.shape, value.dtype) for name, value in found.items()
    }


def test_a_skeleton_leaves_torch_as_it_was():
    functions = {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_")}
    methods = [torch.Tensor.normal_, torch.empty, nn.Linear.reset_parameters, torch.get_default_device()]
    state = torch.get_rng_state()
    skeleton(SMALL)
    with pytest.raises(StructureError):
        skeleton(Base("timm/resnet18", {"unknown": 1}))
    assert functions == {name: getattr(nn.init, name) for name in functions}
    assert methods == [torch.Tensor.normal_, torch.empty, nn.Linear.reset_parameters, torch.get_default_device()]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.zeros(1).device.type == "cpu"
    assert nn.Linear(9, 9).weight.std() > 0


def test_other_threads_initialise_as_ever_while_skeletons_are_built():
    stop, failures = threading.Event(), []

    def elsewhere():
        while not stop.is_set():
            layer = nn.init.ones_(nn.Linear(3, 3).weight)
            if layer.is_meta or layer.detach().min() != 1:
                failures.append(layer)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    for _ in range(5):
        skeleton(SMALL)
    stop.set()
    thread.join()
    assert not failures


def test_initial_values_follow_the_seed_and_leave_the_random_state():
    state = torch.get_rng_state()
    first, second, other = (initialised(SMALL, seed).conv1.weight for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("architecture", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 1_000_000}),
        ("vit_tiny_patch16_224", {"embed_dim": 999_936}),
        ("vit_tiny_patch16_224", {"img_size": 1_000_000}),
        ("beit_base_patch16_224", {"img_size": 100_000}),
        ("swin_tiny_patch4_window7_224", {"img_size": 100_000, "window_size": 50_000}),
        ("resnet18", {"layers": [1_000_000, 1, 1, 1]}),
        ("resnet18", {"channels": [1_000_000] * 4}),
        ("resnet18", {"layers": [1] * 1001}),
        ("resnet18", {"num_classes": 10**9}),
        ("resnet18", {"num_classes": float("inf")}),
        ("resnet18", {"num_classes": float("nan")}),
        ("resnet18", {"layers": {"deep": {"er": 10**9}}}),
        ("maxvit_tiny_tf_224", {"img_size": 4_000}),
        ("convnext_tiny", {"depths": [100_000] * 1000}),
        ("resnet18", {"norm_layer": "x" * 1001}),
        ("resnet18", {"layers": [[1] * 900] * 2}),
        ("vit_tiny_patch16_224", {"num_heads": 0}),
        ("vit_tiny_patch16_224", {"mlp_ratio": -3}),
    ],
    ids=str,
)
def test_an_absurd_base_is_refused_soon_and_without_memory(architecture, args):
    started = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StructureError) as caught:
        skeleton(Base(f"timm/{architecture}", args))
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 10  # seconds; building it would take hours
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


@pytest.mark.parametrize(
    "key",
    ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable",
     "exportable", "no_jit", "features_only", "device", "dtype", "model_name", "pruned", "pretrained_strict"],
)  # fmt: skip
@pytest.mark.parametrize("build", [skeleton, initialised], ids=["skeleton", "initialised"])
def test_arguments_for_files_and_weights_are_refused(build, key):
    message = f"base timm/resnet18: argument '{key}' isn't part of an architecture; remove it"
    with pytest.raises(StructureError, match=f"^{message}$"):
        build(Base("timm/resnet18", {key: True}))


def test_what_timm_computes_in_loops_of_its_own_is_broken_off(monkeypatch):
    monkeypatch.setattr(base, "deadline", lambda what: deadline(what, 0.5))
    with pytest.raises(StructureError, match=r"^base timm/efficientvit_m0 takes more than 0\.5 s of CPU: refused; ZOO"):
        skeleton(Base("timm/efficientvit_m0", {"img_size": 2_048, "window_size": [2_048] * 3}))


def test_what_no_memory_holds_is_refused_before_it_is_allocated(monkeypatch):
    small, large = Base("timm/resnet18", {"num_classes": 3}), Base("timm/vit_tiny_patch16_224", {"depth": 200})
    monkeypatch.setattr(base, "_memory", lambda: 100 * 2**20)
    initialised(small)
    with pytest.raises(StructureError, match=r" takes 0\.333 GiB, this machine has 0\.0977$"):
        initialised(large)


@pytest.mark.parametrize("value", [nn.ReLU, object(), torch.ones(1), b"1"], ids=["class", "object", "tensor", "bytes"])
def test_arguments_are_plain_data(value):
    with pytest.raises(
        StructureError, match=r"args.act_layer is .*, expected true or false or text of .* or a whole number"
    ):
        skeleton(Base("timm/resnet18", {"act_layer": value}))


@pytest.mark.parametrize(
    ("id", "kind", "message"),
    [
        ("timm/resnet17", UnknownName, "has no architecture 'resnet17'; pip install -U timm"),
        ("resnet18", StructureError, "base 'resnet18' isn't known, expected timm/<architecture>"),
        ("hub/resnet18", StructureError, "base 'hub/resnet18' isn't known, expected timm/<architecture>"),
        ("timm/hf-hub:someone/model", StructureError, "isn't known, expected timm/<architecture>"),
        ("timm/local-dir:/etc", StructureError, "isn't known, expected timm/<architecture>"),
        ("timm/../resnet18", StructureError, "isn't known, expected timm/<architecture>"),
        ("timm/", StructureError, "isn't known, expected timm/<architecture>"),
        ("", StructureError, "isn't known, expected timm/<architecture>"),
    ],
)
def test_an_unknown_base_is_refused_by_name(id, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        skeleton(Base(id))


def test_an_argument_of_another_architecture_is_refused_by_name():
    with pytest.raises(StructureError, match=r"^base timm/resnet18 can't be built with {'depth': 3}: .*'depth'$"):
        skeleton(Base("timm/resnet18", {"depth": 3}))


def test_the_tag_of_a_base_names_weights_and_changes_nothing_of_the_structure():
    assert fingerprint(skeleton(Base("timm/resnet18.a1_in1k"))) == fingerprint(skeleton(Base("timm/resnet18")))


TAGS = {  # as timm's registry has them: the tag's classes and size, and the architecture's own where no tag is said
    "convnext_nano.r384_ad_in12k": ((11821, 384), (1000, 224)),
    "mixer_b16_224.miil_in21k": ((11221, 224), (1000, 224)),
    "vit_base_patch16_clip_224.openai": ((512, 224), (1000, 224)),
    "vit_base_patch16_224.augreg_in21k": ((21843, 224), (1000, 224)),
    "vit_base_patch16_224.bamboo": ((115217, 224), (1000, 224)),
    "tiny_vit_5m_224.dist_in22k_ft_in1k": ((1000, 224), (21841, 224)),
}


@pytest.mark.parametrize("name", TAGS)
def test_a_base_has_the_classes_and_the_image_size_of_its_tag(name):
    for id, (classes, size) in zip((name, name.partition(".")[0]), TAGS[name], strict=True):
        model = skeleton(Base(f"timm/{id}"))
        assert (classes, size) == (model.num_classes, model.pretrained_cfg["input_size"][1])


def test_what_a_base_says_itself_comes_before_its_tag():
    assert skeleton(Base("timm/convnext_nano.r384_ad_in12k", {"num_classes": 7})).num_classes == 7


def test_a_tag_that_timm_does_not_have_is_refused_where_someone_wrote_it():
    message = r"^base timm/resnet18\.nonsense: timm [\d.]+ has no weights 'nonsense' of it; known are a1_in1k, "
    for verb in (zoo.create, zoo.load):
        with pytest.raises(UnknownName, match=message):
            verb("timm/resnet18.nonsense")


def test_a_fingerprint_is_the_same_with_and_without_values():
    assert fingerprint(skeleton(SMALL), ["layer1"]) == fingerprint(initialised(SMALL), ["layer1"])
    assert fingerprint(skeleton(SMALL))["conv1"] == "Conv2d weight=64x3x7x7"
    assert fingerprint(skeleton(SMALL), ["layer1"])["layer1"] == "Sequential"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"conv1": "Conv2d weight=64x3x3x3"}, "conv1 is 'Conv2d weight=64x3x7x7' in timm {}, expected 'Conv2d "),
        ({"layer1": "ResNetStage"}, "layer1 is 'Sequential' in timm {}, expected 'ResNetStage'"),
        ({"stem": "Conv2d weight=1"}, "stem is 'absent' in timm {}, expected 'Conv2d weight=1'"),
        ({"fc": "Linear weight=1", "bn1": "BatchNorm2d weight=1"}, "bn1 is 'BatchNorm2d weight=64 "),
    ],
    ids=["shape", "class", "absent", "the first of two"],
)  # fmt: skip
def test_a_base_that_changed_is_refused_with_the_path_and_both_versions(changed, message):
    saved = {**fingerprint(skeleton(SMALL)), **changed}
    with pytest.raises(FingerprintError) as caught:
        check_fingerprint(SMALL, skeleton(SMALL), saved, "1.0.20")
    text = str(caught.value)
    assert message.format(timm.__version__) in text
    assert text.startswith("base timm/resnet18: ")
    assert text.endswith("as in timm 1.0.20; pip install timm==1.0.20")
    assert f"in timm {timm.__version__}, " in text


def test_an_unchanged_base_passes():
    check_fingerprint(SMALL, initialised(SMALL), fingerprint(skeleton(SMALL), ["layer1", "act1"]), "1.0.20")
