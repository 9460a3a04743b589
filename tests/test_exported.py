"""Exported: timm's models become graphs that need none of timm's code; the model itself is the oracle."""

import copy
import json
import math
from functools import cache

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from zoo.errors import StructureError
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import Graph, Node, check_graph, graph_module
from zoo.structure.graph.tracing import export
from zoo.structure.tensors import assign_, tensors_of

TOKENS = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 5}
WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 5}
NETWORKS = {
    "resnet18": ({"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 20], "num_classes": 5, "drop_rate": 0.1}, 32),
    "vit_base_patch16_224": ({**TOKENS, "qk_norm": True, "init_values": 0.5, "qkv_bias": False}, 32),
    "beit_base_patch16_224": ({**TOKENS, "init_values": 0.5}, 32),
    "swin_tiny_patch4_window7_224": (WINDOWS, 64),
    "swinv2_cr_tiny_224": (WINDOWS, 64),
    "mobilevitv2_050": ({"num_classes": 5}, 64),
    "levit_128s": ({"num_classes": 5, "img_size": 64}, 64),
    "xcit_nano_12_p16_224": ({"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}, 64),
    "convit_tiny": ({"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_classes": 5,
                     "local_up_to_layer": 1}, 32),
    "sequencer2d_s": ({"img_size": 56, "layers": (1, 1, 1, 1), "embed_dims": (16, 24, 24, 24),
                       "hidden_sizes": (4, 6, 6, 6), "num_classes": 5}, 56),
}  # fmt: skip


@cache
def network(name):
    """Return a small model whose norms, biases and scales are all at work, and its program."""
    torch.manual_seed(0)
    args, size = NETWORKS[name]
    model = timm.create_model(name, **args).eval()
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor)).add_(0.3 * torch.rand_like(tensor))
    return model, export(model, torch.randn(2, 3, size, size)), size


def written(program):
    """The graph through JSON, its tensors, and the model that they give."""
    graph, tensors = lift(program, {**program.state_dict, **program.constants})
    graph = Graph.from_json(json.loads(json.dumps(graph.to_json(), allow_nan=False)))
    return graph, tensors, assign_(graph_module(graph), {name: t.clone() for name, t in tensors.items()}, "lifted")


def of(module, image):
    """Export and lift a module of the test's own."""
    return written(export(module, image))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_of_a_model_computes_what_the_model_computes_at_any_batch(name):
    model, program, size = network(name)
    _, _, rebuilt = written(program)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            found, expected = rebuilt(images), model(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert sum(p.numel() for p in rebuilt.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "swinv2_cr_tiny_224", "convit_tiny"])
def test_gradients_are_those_of_the_model(name):
    model, program, size = network(name)
    model, (_, _, rebuilt) = copy.deepcopy(model), written(program)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    for each in (model, rebuilt):
        each.zero_grad()
        each(images).square().sum().backward()
    grads, expected = dict(rebuilt.named_parameters()), dict(model.named_parameters())
    assert grads.keys() == expected.keys()
    for path, parameter in expected.items():
        torch.testing.assert_close(grads[path].grad, parameter.grad, rtol=1e-3, atol=1e-4)


def test_batch_norms_move_in_train_mode_as_the_models_own():
    model, program, size = network("levit_128s")
    model, (_, _, rebuilt) = copy.deepcopy(model).train(), written(program)
    images = torch.randn(4, 3, size, size)
    model(images)
    before = {path: b.clone() for path, b in rebuilt.named_buffers() if path.endswith("running_mean")}
    rebuilt.train()(images)
    after, expected = dict(rebuilt.named_buffers()), dict(model.named_buffers())
    for path, value in before.items():
        assert not torch.equal(value, after[path])
    path = min(before)
    torch.testing.assert_close(after[path], expected[path])
    assert len(before) == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_dropout_is_at_work_in_train_mode_alone():
    _, program, size = network("resnet18")
    _, _, rebuilt = written(program)
    images = torch.randn(2, 3, size, size)
    assert [type(m) for m in rebuilt.modules() if isinstance(m, nn.Dropout)] == [nn.Dropout]
    assert torch.equal(rebuilt(images), rebuilt(images))


def test_layers_keep_their_paths_and_classes():
    model, program, _ = network("resnet18")
    graph, tensors, rebuilt = written(program)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in rebuilt.named_parameters()}
    assert tensors.keys() == model.state_dict().keys() == rebuilt.state_dict().keys()
    assert isinstance(rebuilt.get_submodule("layer2.0.conv1"), nn.Conv2d)
    assert isinstance(rebuilt.get_submodule("layer2.0.bn1"), nn.BatchNorm2d)
    assert not [node.op for node in graph.nodes if node.op.startswith("aten.")]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convit_tiny"])
def test_a_graph_can_be_exported_and_lifted_again(name):
    model, program, size = network(name)
    _, _, rebuilt = written(program)
    _, _, again = of(rebuilt, torch.randn(2, 3, size, size))
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(again(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_224", "swin_tiny_patch4_window7_224", "sequencer2d_s"])
def test_half_precision_stays_half(name):
    _, program, size = network(name)
    _, _, rebuilt = written(program)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = rebuilt(images)
    found = rebuilt.bfloat16()(images.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.detach().float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def test_a_cast_to_the_type_of_the_images_follows_the_images():
    model = Written(lambda x: x.double().sin().to(torch.float32) + torch.zeros(4, dtype=torch.float32)).eval()
    _, _, rebuilt = of(model, torch.randn(2, 3, 4))
    assert rebuilt.half()(torch.randn(2, 3, 4, dtype=torch.float16)).dtype == torch.float16


class Twice(nn.Module):
    """One layer used twice; one whose weight is read otherwise too."""

    def __init__(self):
        super().__init__()
        self.shared, self.tied = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        x = self.shared(self.shared(x).relu())
        return self.tied(x) + self.tied.weight.sum()


def test_a_shared_layer_is_stored_once_and_a_tied_weight_is_no_layer():
    model = Twice().eval()
    x = torch.randn(2, 3, 4)
    graph, tensors, rebuilt = of(model, x)
    torch.testing.assert_close(rebuilt(x), model(x))
    assert tensors.keys() == {"shared.weight", "shared.bias", "tied.weight"}
    assert [(node.op, node.module) for node in graph.nodes if node.op == "linear"] == [
        ("linear", None),
        ("linear", "shared"),
    ]


class Written(nn.Module):
    """Run a function of tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.function(x * self.weight)


def in_parts(x):
    x[:, 1:, :2] = 3 * x[:, :1, 2:]
    x[:, 0].add_(1)
    return x * 2


def painted(x):
    x = x.clone()
    x[:, :1].fill_(2.0)
    x[:, 2:].zero_()
    x[:, 1:, :2] = torch.tensor(3.0)
    return x.swapaxes(1, 2)


def in_place_of_a_place(x):
    y = x.relu_()
    y.add_(1)
    return x + y


@pytest.mark.parametrize(
    "function",
    [
        in_parts,
        in_place_of_a_place,
        painted,
        lambda x: x.view(-1, 4).mul_(2).view(x.shape[0], -1),
        lambda x: x.reshape(x.shape[0] * 2, -1)[: x.shape[0]],
        lambda x: torch.zeros(x.shape[0], 3, 4) + x + torch.arange(4) + torch.full((4,), 0.5),
        lambda x: x.masked_fill(x < 0, -math.inf).softmax(-1),
        lambda x: torch.cat([x.mean(0, keepdim=True).expand(x.shape[0], -1, -1), x], 1)[..., [1, 0]],
        lambda x: x * x.shape[0] + (x.shape[0] * 3 + 1) // 2,
        lambda x: torch.einsum("bij,bkj->bik", x, x).double().to(torch.float32),
        lambda x: torch.stack(x.split([1, 3], -1)[1].unbind(1), 1).max(1).values,
    ],
)
def test_what_a_function_does_is_written_down(function):
    model = Written(function).eval()
    _, _, rebuilt = of(model, torch.randn(2, 3, 4))
    for batch in (2, 5):
        x = torch.randn(batch, 3, 4)
        torch.testing.assert_close(rebuilt(x), model(x), equal_nan=True)


def late(x):
    y = x.view(-1)
    x.add_(1)
    return y + 1


class Counting(nn.Module):
    """Write to a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen.add_(1)
        return x + self.seen


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Written(lambda x: x + torch.rand_like(x)), "aten.rand_like"),
        (Written(lambda x: F.dropout(x, 0.5, training=True)), "aten.dropout"),
        (Written(lambda x: torch.linalg.inv(x @ x.mT)), "aten.linalg_inv"),
        (Written(late), "Written: .* changes what else is read of a tensor: let it make a new one"),
        (Counting(), "^Counting: aten.add_.* changes the state seen, which a graph doesn't keep"),
        (nn.Sequential(nn.ReLU(), Counting()), "^1: aten.add_.* changes the state 1.seen, which a graph doesn't keep"),
    ],
)
def test_what_cannot_be_told_by_a_pure_function_is_refused(model, message):
    program = export(model, torch.randn(2, 3, 4))
    with pytest.raises(StructureError, match=message) as caught:
        lift(program, {**program.state_dict, **program.constants})
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_exported_is_named_in_one_line():
    with pytest.raises(StructureError, match="Written can't be exported") as caught:
        export(Written(lambda x: x if x.sum() > 0 else -x), torch.randn(2, 3, 4))
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named():
    program = export(Twice(), torch.randn(2, 3, 4))
    with pytest.raises(StructureError, match=r"tied\.weight"):
        lift(program, {name: t for name, t in program.state_dict.items() if name != "tied.weight"})


def test_sizes_are_those_of_the_tensors_that_are_given():
    """Somebody cut the hidden channels of an exported network: the layers have the widths of the tensors."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)).eval()
    program = export(model, torch.randn(2, 3, 4, 4))
    kept = [0, 3, 4]
    cut = {name: t[kept] if t.shape[:1] == (8,) else t for name, t in program.state_dict.items()}
    cut["3.weight"] = cut["3.weight"][:, kept]
    graph, tensors = lift(program, cut)
    x = torch.randn(3, 3, 4, 4)
    expected = F.conv2d(model[:3](x)[:, kept], cut["3.weight"], cut["3.bias"])
    torch.testing.assert_close(assign_(graph_module(graph), tensors, "cut")(x), expected)


SIZE = Node("n", "size", ("x",), {"dim": 0})


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node("a", "aten.rand_like", ("x",))], "an operation this version doesn't know"),
        ([Node("a", "aten.relu_", ("x",))], "an operation this version doesn't know"),
        (
            [SIZE, *(Node("nmopq"[i + 1], "int_mul", ("nmopq"[i],) * 2) for i in range(3))],
            "node 'p': a size of more than",
        ),
        ([Node("a", "aten.repeat_interleave.self_int", ("x", "x"), {"repeats": "$1"})], "isn't a size"),
        ([SIZE, Node("a", "aten.repeat_interleave.self_int", ("x", "n"))], "inputs come first"),
        ([SIZE, Node("a", "int_mul", ("n",))], "takes two sizes"),
        ([Node("a", "int_mul", ("x", "x"))], "of what isn't a size"),
        ([Node("a", "aten.slice.Tensor", ("x",), {"dim": "$1"})], "an attribute names \\$1"),
        ([Node("a", "aten.slice.Tensor", ("x",), {"dim": "$-1"})], "otherwise than"),
        ([Node("a", "aten.slice.Tensor", ("x",), {"dim": "$x"})], "otherwise than"),
        ([Node("a", "cast", ("x",), {"dtype": "os.system"})], "expected one of"),
        ([Node("a", "aten.scaled_dot_product_attention", ("x", "x", "x"), {"dropout_p": 0.5})], "no attribute"),
    ],
)
def test_a_hostile_graph_is_refused_before_it_is_built(nodes, message):
    graph = Graph(("x",), tuple(nodes), ("x",))
    with pytest.raises(StructureError, match=message) as caught:
        check_graph(graph)
    assert "\n" not in str(caught.value)
    with pytest.raises(StructureError):
        graph_module(graph)
