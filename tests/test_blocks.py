"""Block classes of timm: whatever width is cut, the rebuilt model computes what the masked dense model computes."""

import json
import re
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo.catalog.entry import Base
from zoo.structure import base, blocks
from zoo.structure.plan import Heads, Plan, Swap, apply_, narrowing
from zoo.structure.replacements import REPLACEMENTS
from zoo.structure.tensors import assign_, tensors_of

VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
FAMILIES = {  # small members where the architecture takes no sizes
    "fbnetv3_b": {},
    "tf_efficientnetv2_b0": {},
    "deit3_small_patch16_224": VIT,
    "resnet50d": {"layers": [2, 1, 1, 1], "channels": [8, 12, 16, 20]},
    "convnextv2_nano": STAGES,
    "rexnet_100": {},
    "poolformerv2_s12": {},
    "beit_base_patch16_224": {**VIT, "init_values": 0.5},
    "efficientformerv2_s2": {"depths": (1, 1, 3, 3), "embed_dims": (8, 16, 24, 32), "num_vit": 1, "img_size": 64},
    "caformer_s18": {},
    "mobilevitv2_050": {},
    "swinv2_cr_tiny_ns_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 1), "num_heads": (4, 8)},
}
BESIDE = {
    "cait_xxs24_224": {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32},
    "davit_tiny": {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (4, 4)},
    "edgenext_xx_small": {"dims": (8, 16, 24, 32), "heads": (4, 4, 4, 4)},
    "levit_128s": {"img_size": 224},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (4, 4),
    },
    "swinv2_tiny_window8_256": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 1),
        "num_heads": (4, 4),
    },
    "vit_relpos_small_patch16_224": VIT,
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4},
    "pvt_v2_b0": {},
}
SIZES = {**FAMILIES, **BESIDE}
JOINED = {"PatchMerging": 4}  # classes whose layers read maps laid end to end: a channel is as many positions


@cache
def dense(name):
    """Return a small model in double precision whose norms, biases and scales all matter, its base and swaps."""
    torch.manual_seed(0)
    origin = Base(f"timm/{name}", {**SIZES[name], "num_classes": 3})
    model = base.initialised(origin).double().eval()
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            if tensor.is_floating_point() and max(tensor.shape, default=0) == tensor.numel():
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor)).add_(0.3 * torch.rand_like(tensor))
    found = {path: blocks.SWAPS.get(blocks.class_name(module)) for path, module in model.named_modules()}
    swaps = Swap({path: replacement for path, replacement in found.items() if replacement})
    return SimpleNamespace(base=origin, model=apply_(model, Plan((swaps,))), swaps=swaps)


def fewer(n):
    """Return two thirds of so many, not the first."""
    return torch.tensor([i for i in range(n) if i % 3 != 1])


def every_width(model, chosen):
    """Return the positions kept of each dimension that holds channels, (tensor, dimension) → positions."""
    kept, heads = {}, attentions(model)
    inside = {(f"{path}.{name}", dim) for path, row in heads.items() for name, dim in row.places}
    for path, tensor in tensors_of(model).items():
        layer = model.get_submodule(path.rpartition(".")[0])
        if not tensor.is_floating_point() or not re.search(chosen, path):
            continue
        dims = range(2) if isinstance(layer, nn.Linear | nn.Conv2d) else [tensor.ndim - 1]
        vector = max(tensor.shape, default=0) == tensor.numel()
        if not vector and not isinstance(layer, nn.Linear | nn.Conv2d) and not path.endswith("pos_embed"):
            continue
        for dim in dims:
            if dim < tensor.ndim and tensor.shape[dim] > 3 and (path, dim) not in inside:
                block = model.get_submodule(path.rpartition(".")[0].rpartition(".")[0])
                copies = JOINED.get(type(block).__name__, 1) if dim == tensor.ndim - 1 else 1
                n = tensor.shape[dim] // copies
                kept[path, dim] = torch.cat([fewer(n) + n * i for i in range(copies)])
    return kept


def attentions(model):
    found = {}
    for path, module in model.named_modules():
        layout = blocks.LAYOUTS.get(blocks.class_name(module))
        if layout:
            found[path] = SimpleNamespace(sizes=layout.lengths(module), places=layout.patterns(module))
    return found


def fewer_heads(model, letters):
    """Return the heads kept of each attention module, and the positions that they take."""
    heads, kept = {}, {}
    for path, row in attentions(model).items():
        units = {letter: fewer(n) if letter in letters else torch.arange(n) for letter, n in row.sizes.items()}
        module = model.get_submodule(path)
        keys = {"key_dim": len(units["k"])} if blocks.LAYOUTS[blocks.class_name(module)].keys else {}
        heads[path] = Heads(len(units["h"]), len(units["d"]), **keys)
        for (name, dim), pattern in row.places.items():
            at = [torch.isin(blocks.coordinate(pattern, x, row.sizes), units[x]) for x in "hdk" if x in pattern]
            kept[f"{path}.{name}", dim] = torch.stack(at).all(0).nonzero().flatten()
    return heads, kept


def masked(origin, kept, images):
    """Return the dense model's outputs when cut channels are zero and norms take their statistics over the others."""

    def among(positions, dim):
        def forward(norm, args, _):
            x = args[0].index_select(dim, positions)
            cut = type(norm).__new__(type(norm))
            cut.__dict__ = {
                **norm.__dict__,
                "_parameters": {k: p if p is None else nn.Parameter(p[positions]) for k, p in norm._parameters.items()},
            }
            if hasattr(norm, "normalized_shape"):
                cut.normalized_shape = (len(positions),)
            return torch.zeros_like(args[0]).index_copy(dim, positions, cut.forward(x))

        return forward

    model = apply_(base.skeleton(origin.base), Plan((origin.swaps,)))
    tensors = {path: tensor.detach().clone() for path, tensor in tensors_of(origin.model).items()}
    for (path, dim), positions in kept.items():
        keep = torch.zeros(tensors[path].shape[dim], dtype=torch.float64).index_fill(0, positions, 1)
        tensors[path] *= keep.view([-1 if d == dim else 1 for d in range(tensors[path].ndim)])
        layer = model.get_submodule(path.rpartition(".")[0])
        kind = type(layer).__name__
        if path.endswith("weight") and (
            hasattr(layer, "normalized_shape") or kind.startswith(("GroupNorm1", "GlobalR"))
        ):
            last = (kind.startswith(("LayerNorm", "RmsNorm")) and "2d" not in kind) or getattr(
                layer, "channel_dim", 1
            ) == -1
            layer.register_forward_hook(among(positions, -1 if last else 1))
    assign_(model, tensors, "masked").eval()
    with torch.no_grad():
        return model(images)


def cut(origin, kept, heads):
    """Return the model rebuilt from the base, the written plan and the tensors that remain."""
    tensors = {path: tensor.detach() for path, tensor in tensors_of(origin.model).items()}
    for (path, dim), positions in kept.items():
        tensors[path] = tensors[path].index_select(dim, positions)
    edit = narrowing(origin.model, {path: tensor.shape for path, tensor in tensors.items()}, heads)
    plan = Plan.from_json(json.loads(json.dumps(Plan((origin.swaps, edit)).to_json())))
    model = apply_(base.skeleton(origin.base), plan)
    for path in heads:  # a dense head's logits keep their scale
        module, was = model.get_submodule(path), origin.model.get_submodule(path)
        for name in (
            "qkv.weight",
            "qkv.bias",
            "q_bias",
            "q.bn.weight",
            "q.bn.bias",
            "q.proj.bn.weight",
            "q.proj.bn.bias",
        ):
            if isinstance(getattr(was, "scale", None), float) and f"{path}.{name}" in tensors:
                held = tensors[f"{path}.{name}"].clone()
                held[: len(held) // (3 if "qkv" in name else 1)] *= was.scale / module.scale
                tensors[f"{path}.{name}"] = held
    return assign_(model, tensors, "cut").eval()


ATTENTION = (
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "efficientformerv2_s2",
    "caformer_s18",
    "swinv2_cr_tiny_ns_224",
)


@pytest.mark.parametrize(
    ("name", "letters", "chosen"),
    [
        *(pytest.param(name, "hdk", r"", id=f"{name}, every width") for name in FAMILIES),
        *(pytest.param(name, "h", r"$^", id=f"{name}, heads") for name in (*ATTENTION, *BESIDE)),
        *(pytest.param(name, "dk", r"$^", id=f"{name}, widths of heads") for name in (*ATTENTION, "mobilevitv2_050")),
    ],
)
def test_a_rebuilt_model_computes_what_the_masked_dense_model_computes(name, letters, chosen):
    origin = dense(name)
    heads, kept = fewer_heads(origin.model, letters)
    kept |= every_width(origin.model, chosen)
    narrow = cut(origin, kept, heads)
    side = SIZES[name].get("img_size", 32)
    for batch in (1, 2):
        images = torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        expected = masked(origin, kept, images)
        with torch.no_grad():
            torch.testing.assert_close(narrow(images), expected, rtol=0, atol=1e-9)
            assert (expected - origin.model(images)).abs().max() > 1e-6, "the cut channels mattered"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rebuilt_model_says_the_widths_that_it_has(name):
    origin = dense(name)
    heads, kept = fewer_heads(origin.model, "h")
    model = cut(origin, kept | every_width(origin.model, ""), heads)
    images = torch.randn(1, 3, *2 * [SIZES[name].get("img_size", 64)], dtype=torch.float64)
    with torch.no_grad():
        assert model.num_features in model.forward_features(images).shape
        maps = model.forward_intermediates(images, intermediates_only=True)
    said = [row["num_chs"] for row in getattr(model.feature_info, "info", model.feature_info)]
    assert said == [found.shape[1] for found in maps]
    classifier = model.get_classifier()
    classifier = classifier[0] if isinstance(classifier, tuple) else classifier
    reader = next(layer for layer in classifier.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    assert reader.weight.shape[1] in (model.head_hidden_size, model.num_features)


def test_a_swap_names_the_class_that_its_replacement_is_a_subclass_of():
    replaced = {name: kind.__mro__[1] for name, kind in REPLACEMENTS.items()}

    assert {f"{kind.__module__}.{kind.__qualname__}": name for name, kind in replaced.items()} == blocks.SWAPS
