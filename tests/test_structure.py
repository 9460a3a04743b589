"""Plans and bases: what is written down, and what is built from it."""

import json

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.structure.base import skeleton
from zoo.structure.plan import Drop, Factor, Heads, Mask, Narrow, Plan, Rank, Swap, Width, apply_
from zoo.structure.replacements import REPLACEMENTS

SMALL = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]})
TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
# Channels cut inside a block: the layers whose outputs go (norms too), the layers that read them.
INNER = {
    "basic block": (SMALL, 32, ("layer2.0.conv1", "layer2.0.bn1"), "layer2.0.conv2"),
    "bottleneck": (
        Base("timm/resnet26", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}),
        32,
        ("layer3.0.conv2", "layer3.0.bn2"),
        "layer3.0.conv3",
    ),
    "depthwise": (
        Base("timm/mobilenetv2_035"),
        32,
        ("blocks.1.0.conv_pw", "blocks.1.0.bn1", "blocks.1.0.conv_dw", "blocks.1.0.bn2"),
        "blocks.1.0.conv_pwl",
    ),
    "mlp": (Base("timm/vit_tiny_patch16_224", TINY_VIT), 16, ("blocks.1.mlp.fc1",), "blocks.1.mlp.fc2"),
}
paths = st.text('abc.019é"\n', min_size=1, max_size=12)
counts = st.integers(1, 10**6)
some = st.none() | counts
edits = st.one_of(
    st.builds(
        Narrow,
        st.dictionaries(paths, st.builds(Width, some, some, some), max_size=3),
        st.dictionaries(paths, st.builds(Heads, counts, counts, some), max_size=3),
        st.dictionaries(paths, st.lists(counts, max_size=4).map(tuple), max_size=3),
    ),
    st.builds(Factor, st.dictionaries(paths, st.builds(Rank, counts, st.sampled_from(["first", "last"])), max_size=3)),
    st.builds(Mask, st.lists(paths, max_size=3).map(tuple)),
    st.builds(Drop, st.dictionaries(paths, st.sampled_from(["identity", "zero"]), max_size=3)),
    st.builds(Swap, st.dictionaries(paths, st.just("BeitAttention"), max_size=3)),
)
keys = st.sampled_from(["edit", "widths", "heads", "tensors", "layers", "paths", "classes", "other"])
SIZE = "expected a whole number from 1 to 2,147,483,647"
kinds = st.sampled_from(["narrow", "factor", "mask", "drop", "swap", "fold"])
anything = st.recursive(st.none() | st.integers() | kinds, lambda x: st.lists(x) | st.dictionaries(keys, x))
plans = st.builds(Plan, st.lists(edits, max_size=4).map(tuple))


def images(size, batch=2, channels=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def shapes(model):
    return {name: tuple(value.shape) for name, value in (*model.named_parameters(), *model.named_buffers())}


def sizes(model):
    """How every module prints, and the plain values that it holds."""
    kinds = (bool, int, float, str, tuple)
    return {
        path: (repr(module), {key: value for key, value in vars(module).items() if isinstance(value, kinds)})
        for path, module in model.named_modules()
    }


@given(plans)
def test_a_plan_reads_back_from_its_json_as_it_was(plan):
    assert plan == Plan.from_json(json.loads(json.dumps(plan.to_json())))


@given(plans, plans)
def test_plans_compose_by_listing_the_edits_of_both(first, second):
    assert (first + second).to_json() == first.to_json() + second.to_json()
    assert set((first + second).paths()) == {*first.paths(), *second.paths()}


@given(anything | st.lists(st.dictionaries(keys, anything).map(lambda edit: {"edit": "narrow", **edit})))
def test_whatever_json_is_read_gives_a_plan_or_an_error_of_one_line(data):
    try:
        message = ""
        Plan.from_json(data)
    except StructureError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "plan is {}, expected a list of at most 100"),
        ([1], "plan[0] is 1, expected a table"),
        ([{"edit": "mask"}, {}], "plan[1]: unknown edit None, known are narrow, factor, mask, drop, swap"),
        ([{"edit": "fold"}], "plan[0]: unknown edit 'fold', known are narrow, factor, mask, drop, swap"),
        ([{"edit": ["mask"]}], "plan[0]: unknown edit ['mask'], known are narrow, factor, mask, drop, swap"),
        ([{"edit": "factor", "rank": 3}], "plan[0]: unknown key 'rank', known are edit, layers"),
        ([{"edit": "narrow", "layers": {}}], "plan[0]: unknown key 'layers', known are edit, widths, heads, tensors"),
        ([{"edit": "narrow", "widths": []}], "plan[0].widths is [], expected a table"),
        ([{"edit": "factor", "layers": {"fc": 3}}], "plan[0].layers.fc is 3, expected a table"),
        (
            [{"edit": "narrow", "widths": {"a": {"outputs": 2}, "fc": {"out": 3}}}],
            "plan[0].widths.fc: unknown key 'out', known are outputs, inputs, groups",
        ),
        (
            [{"edit": "narrow", "widths": {"fc": {"outputs": "3"}}}],
            f"plan[0].widths.fc.outputs is '3', {SIZE}",
        ),
        (
            [{"edit": "narrow", "widths": {"fc": {"outputs": True}}}],
            f"plan[0].widths.fc.outputs is True, {SIZE}",
        ),
        ([{"edit": "narrow", "widths": {"fc": {"outputs": 0}}}], f"plan[0].widths.fc.outputs is 0, {SIZE}"),
        ([{"edit": "narrow", "heads": {"a": {"num_heads": 1}}}], "plan[0].heads.a: missing 'head_dim'"),
        ([{"edit": "factor", "layers": {"fc": {}}}], "plan[0].layers.fc: missing 'rank'"),
        (
            [{"edit": "factor", "layers": {"fc": {"rank": 1, "spatial": "both"}}}],
            "plan[0].layers.fc.spatial is 'both', expected first or last",
        ),
        ([{"edit": "narrow", "tensors": {"a": 3}}], "plan[0].tensors.a is 3, expected a list"),
        ([{"edit": "narrow", "tensors": {"a": [2, 3.0]}}], f"plan[0].tensors.a[1] is 3.0, {SIZE}"),
        ([{"edit": "mask", "paths": "fc"}], "plan[0].paths is 'fc', expected a list"),
        ([{"edit": "mask", "paths": [1]}], "plan[0].paths[0] is 1, expected a path of at most 32 words"),
        ([{"edit": "drop", "paths": {"a\nb": "one"}}], r"plan[0].paths['a\nb'] is 'one', expected identity or zero"),
    ],
)
def test_json_that_is_no_plan_is_refused_by_name(data, message):
    with pytest.raises(StructureError) as caught:
        Plan.from_json(data)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Narrow({"nope": Width(1)}), "narrow: the base has no module 'nope'"),
        (Narrow({"conv1.weight": Width(1)}), "narrow: the base has no module 'conv1.weight'"),
        (Narrow({"act1": Width(1)}), "narrow: act1 is a ReLU, which has no width that can be narrowed"),
        (Narrow({"fc": Width(1001)}), "narrow: fc.outputs is 1001, expected 1 to 1000"),
        (Narrow({"fc": Width(inputs=25)}), "narrow: fc.inputs is 25, expected 1 to 24"),
        (Narrow({"fc": Width(0)}), "narrow: fc.outputs is 0, expected 1 to 1000"),
        (Narrow({"fc": Width(-1)}), "narrow: fc.outputs is -1, expected 1 to 1000"),
        (Narrow({"fc": Width("3")}), "narrow: fc.outputs is 3, expected 1 to 1000"),
        (Narrow({"fc": Width(True)}), "narrow: fc.outputs is True, expected 1 to 1000"),
        (Narrow({"fc": Width(2.0)}), "narrow: fc.outputs is 2.0, expected 1 to 1000"),
        (Narrow({"fc": Width(10**30)}), f"narrow: fc.outputs is {10**30}, expected 1 to 1000"),
        (Narrow({"conv1": Width(groups=2)}), "narrow: conv1.groups is 2, expected 1 to 1"),
        (
            Narrow(heads={"layer1": Heads(1, 1)}),
            "narrow: layer1 is a torch.nn.modules.container.Sequential, whose heads aren't known; "
            "narrow its layers by widths",
        ),
        (Factor({"fc": Rank(0)}), "factor: fc.rank is 0, expected 1 to 24"),
        (Factor({"fc": Rank(25)}), "factor: fc.rank is 25, expected 1 to 24"),
        (Factor({"conv1": Rank(65)}), "factor: conv1.rank is 65, expected 1 to 64"),
        (Factor({"conv1": Rank(2, "middle")}), "factor: conv1.spatial is 'middle', expected first or last"),
        (Factor({"bn1": Rank(2)}), "factor: bn1 is a BatchNorm2d, expected a Linear or an ungrouped Conv2d"),
        (Mask(("act1",)), "mask: act1 has no weight to mask"),
        (Mask(("nope",)), "mask: the base has no module 'nope'"),
        (Drop({"act1": "one"}), "drop: act1 becomes 'one', expected identity or zero"),
        (Drop({"nope": "zero"}), "drop: the base has no module 'nope'"),
        (Swap({"fc": "Evil"}), f"swap: fc names unknown class 'Evil', known are {', '.join(REPLACEMENTS)}"),
        (Swap({"fc": ["Evil"]}), f"swap: fc names unknown class ['Evil'], known are {', '.join(REPLACEMENTS)}"),
        (Narrow(tensors={"fc": (3,)}), "narrow: the base has no tensor 'fc'"),
        (Narrow(tensors={"fc.weight": (3,)}), "narrow: fc.weight has 2 dimensions, expected 1"),
        (Narrow(tensors={"fc.weight": (3, 25)}), "narrow: fc.weight[1] is 25, expected 1 to 24"),
        (
            Swap({"fc": "BeitAttention"}),
            "swap: fc is a torch.nn.modules.linear.Linear, which BeitAttention doesn't replace",
        ),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_by_name(edit, message):
    with pytest.raises(StructureError) as caught:
        apply_(skeleton(SMALL), Plan((edit,)))
    assert str(caught.value) == message


def inner(name, keep):
    base, size, cut, reader = INNER[name]
    return base, size, Plan((Narrow({**{path: Width(keep) for path in cut}, reader: Width(inputs=keep)}),))


@pytest.mark.parametrize("width", [Width(4), Width(inputs=2), Width(4, 2), Width(4, 2, 2)], ids=str)
def test_a_depthwise_convolution_follows_from_either_side_whatever_its_multiplier(width):
    conv = nn.Conv2d(8, 16, 3, groups=8)
    apply_(nn.Sequential(conv), Plan((Narrow({"0": width}),)))
    assert (conv.groups, conv.in_channels, conv.out_channels, conv.weight.shape) == (2, 2, 4, (4, 1, 3, 3))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("keep", [1, 5])
@pytest.mark.parametrize("name", INNER)
def test_narrowed_layers_equal_the_dense_ones_whose_other_channels_are_zero(name, keep, batch, disturb):
    base, size, plan = inner(name, keep)
    masked = disturb(base, size)
    reader = masked.get_submodule(INNER[name][3]).weight
    reader.data[:, keep:] = 0  # nothing reads the channels that are cut
    x = images(size, batch)
    torch.testing.assert_close(masked(x), apply_(disturb(base, size), plan)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_fewer_groups_of_a_convolution_equal_the_dense_one_whose_other_groups_are_zero(batch):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1)).eval()
    x = images(6, batch, 8)
    narrow = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 5, 1)).eval()
    narrow.load_state_dict(dense.state_dict())
    apply_(narrow, Plan((Narrow({"0": Width(6, 4, 2), "1": Width(inputs=6)}),)))
    dense[1].weight.data[:, 6:] = 0
    assert narrow[0].groups == 2
    torch.testing.assert_close(dense(x), narrow(x[:, :4]))


@pytest.mark.parametrize("groups", [3, 8])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    plan = Plan((Narrow({"0": Width(8, 4, groups)}),))
    with pytest.raises(StructureError, match=r"^narrow: 0"):
        apply_(nn.Sequential(nn.Conv2d(8, 8, 1, groups=8)), plan)


def zero_heads_(attention, heads, head_dim):
    """Let the projection ignore all but the first heads, and all but the first units of each."""
    weight = attention.proj.weight.data
    split = weight.view(weight.shape[0], attention.num_heads, -1)
    split[:, heads:] = 0
    split[:, :, head_dim:] = 0


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize(
    "base",
    [
        Base("timm/vit_tiny_patch16_224", TINY_VIT),
        Base("timm/vit_tiny_patch16_224", {**TINY_VIT, "qkv_bias": False, "init_values": 0.1}),
        Base("timm/beit_base_patch16_224", TINY_VIT),
        Base("timm/beitv2_base_patch16_224", TINY_VIT),
    ],
    ids=["vit", "vit without bias", "beit", "beitv2"],
)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_fewer_heads_equal_the_dense_ones_whose_other_heads_are_zero(base, heads, fused, disturb):
    timm.layers.set_fused_attn(fused)
    try:
        masked, narrow = disturb(base, 16), disturb(base, 16)
    finally:
        timm.layers.set_fused_attn(True)
    for block in masked.blocks:
        zero_heads_(block.attn, heads, 8)
    paths = [f"blocks.{i}.attn" for i in range(2)]
    swap = [Swap(dict.fromkeys(paths, "BeitAttention"))] if "beit" in base.id else []
    apply_(narrow, Plan((*swap, Narrow(heads=dict.fromkeys(paths, Heads(heads, 8))))))
    for batch in (1, 2):
        x = images(16, batch)
        torch.testing.assert_close(masked(x), narrow(x), rtol=1e-4, atol=1e-5)
    assert narrow.blocks[0].attn.num_heads == heads


def test_swapping_alone_changes_nothing(disturb):
    base = Base("timm/beit_base_patch16_224", TINY_VIT)
    swapped = apply_(disturb(base, 16), Plan((Swap({"blocks.0.attn": "BeitAttention"}),)))
    torch.testing.assert_close(disturb(base, 16)(images(16)), swapped(images(16)))


def test_narrower_heads_scale_by_their_own_width(disturb):
    base = Base("timm/vit_tiny_patch16_224", TINY_VIT)
    masked = disturb(base, 16)
    attention = masked.blocks[0].attn
    zero_heads_(attention, 2, 5)
    qk = attention.qkv.weight.data.view(3, 3, 8, 24)[:2], attention.qkv.bias.data.view(3, 3, 8)[:2]
    for tensor in qk:
        tensor[:, :, 5:] = 0
        tensor[0] *= (8 / 5) ** 0.5  # what the dense model divides by too much
    narrow = apply_(disturb(base, 16), Plan((Narrow(heads={"blocks.0.attn": Heads(2, 5)}),)))
    assert narrow.blocks[0].attn.scale == 5**-0.5
    torch.testing.assert_close(masked(images(16)), narrow(images(16)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", [Heads(0, 8), Heads(4, 8), Heads(2, 0), Heads(2, 9), Heads("2", 8)], ids=str)
def test_heads_that_the_base_does_not_have_are_refused(asked):
    plan = Plan((Narrow(heads={"blocks.0.attn": asked}),))
    with pytest.raises(StructureError, match=r"^narrow: blocks.0.attn.(num_heads|head_dim) is \d, expected 1 to [38]$"):
        apply_(skeleton(Base("timm/vit_tiny_patch16_224", TINY_VIT)), plan)


ALL_EDITS = Plan(
    (
        Narrow({"layer2.0.conv1": Width(5), "layer2.0.bn1": Width(5), "layer2.0.conv2": Width(inputs=5)}),
        Factor({"layer2.0.conv2": Rank(3), "layer3.0.conv1": Rank(7, "last"), "fc": Rank(4)}),
        Narrow({"fc.0": Width(2), "fc.1": Width(inputs=2)}),
        Mask(("conv1",)),
        Drop({"layer4.0.conv2": "zero", "layer1.0.act1": "identity"}),
    )
)


@pytest.mark.parametrize(
    ("base", "size", "plan"),
    [(SMALL, 32, ALL_EDITS), *(inner(name, 3) for name in INNER)],
    ids=["every edit", *INNER],
)
def test_a_plan_gives_the_same_structure_with_and_without_values(base, size, plan, disturb):
    on_meta, real = apply_(skeleton(base), plan), apply_(disturb(base, size), plan)
    assert shapes(on_meta) == shapes(real)
    assert sizes(on_meta.eval()) == {**sizes(real), "": sizes(on_meta)[""]}
    assert {"meta"} == {tensor.device.type for tensor in on_meta.parameters()}


def test_a_narrowed_layer_prints_the_widths_that_it_has():
    model = apply_(skeleton(SMALL), ALL_EDITS)
    block = model.layer2[0]
    assert (block.conv1.out_channels, block.bn1.num_features, block.conv2[0].in_channels) == (5, 5, 5)
    assert (model.fc[0].out_features, model.fc[1].in_features) == (2, 2)


def svd_(layers, dense, spatial):
    """Give two factors the values that reproduce a dense layer, by singular value decomposition."""
    first, second = layers
    m, n, *kernel = dense.weight.shape
    matrix = dense.weight.data.flatten(1)
    if spatial == "last":  # rows: outputs and kernel; columns: inputs
        matrix = dense.weight.data.movedim(1, -1).reshape(-1, n)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    first.weight.data = v.view(first.weight.shape)
    second.weight.data = (
        (u * s).view(second.weight.shape) if spatial == "first" else (u * s).view(m, *kernel, -1).movedim(-1, 1)
    )
    if dense.bias is not None:
        second.bias.data = dense.bias.data


@pytest.mark.parametrize(
    ("dense", "rank", "spatial"),
    [
        (nn.Linear(6, 4), 4, "first"),
        (nn.Linear(4, 6, bias=False), 4, "first"),
        (nn.Conv2d(3, 20, 3, stride=2, padding=1), 20, "first"),
        (nn.Conv2d(2, 20, 3, padding=2, dilation=2), 18, "first"),
        (nn.Conv2d(4, 5, (1, 3), padding=(0, 1), bias=False, padding_mode="circular"), 5, "first"),
        (nn.Conv2d(5, 6, 3, stride=(2, 1), padding=1), 5, "last"),
        (nn.Conv2d(3, 9, 5, padding=2, padding_mode="reflect"), 3, "last"),
    ],
    ids=str,
)
def test_factors_of_full_rank_reproduce_the_layer(dense, rank, spatial):
    model = apply_(nn.Sequential(dense), Plan((Factor({"0": Rank(rank, spatial)}),)))
    svd_(model[0], dense, spatial)
    x = images(9, 2, dense.in_channels) if isinstance(dense, nn.Conv2d) else torch.randn(2, 5, dense.in_features)
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_bias_of_a_factored_layer_stays_in_the_second():
    first, second = apply_(nn.Sequential(nn.Linear(6, 4)), Plan((Factor({"0": Rank(2)}),)))[0]
    assert (first.bias, tuple(second.bias.shape)) == (None, (4,))


def test_a_dropped_branch_leaves_the_shortcut(disturb):
    base = Base("timm/vit_tiny_patch16_224", TINY_VIT)
    dropped = apply_(disturb(base, 16), Plan((Drop({"blocks.0.attn": "zero", "blocks.0.mlp": "zero"}),)))
    without = apply_(disturb(base, 16), Plan((Drop({"blocks.0": "identity"}),)))
    assert torch.equal(dropped(images(16)), without(images(16)))
    dense = disturb(base, 16)
    del dense.blocks[0]
    assert torch.equal(dense(images(16)), without(images(16)))


def test_a_mask_changes_neither_structure_nor_values(disturb):
    masked = apply_(disturb(SMALL, 32), Plan((Mask(("conv1", "fc")),)))
    assert shapes(masked) == shapes(disturb(SMALL, 32))
    assert torch.equal(masked(images(32)), disturb(SMALL, 32)(images(32)))


def test_edits_leave_training_mode_and_gradients_as_they_were(disturb):
    model = disturb(SMALL, 32)
    model.conv1.weight.requires_grad_(False)
    apply_(model, Plan((Narrow({"conv1": Width(3)}), *ALL_EDITS.edits)))
    assert not model.conv1.weight.requires_grad
    assert not any(module.training for module in model.modules())
