"""Sparse kernels take the layers whose weights have two zeros in each four, and no others."""

import pytest
import torch
from torch import nn

from zoo.compression import semi_structured as module
from zoo.compression.magnitude import Magnitude, magnitude
from zoo.compression.semi_structured import semi_structured
from zoo.errors import StructureError


def net(**only):
    """Five linear layers; of those that `only` names two of each four weights are zero."""
    torch.manual_seed(0)
    sizes = [(128, 128), (128, 128), (128, 6), (6, 128), (128, 64)]
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes)).eval()
    _, tensors = magnitude(model, Magnitude("two_of_four", **only))
    model.load_state_dict(tensors)
    return model


def test_layers_are_taken_by_their_zeros_and_those_that_torch_refuses_stay(monkeypatch):
    taken = []

    def kernel(weight):
        if weight.shape[0] % 32:
            raise RuntimeError(f"shape {weight.shape} is not supported!")
        taken.append(weight)
        return weight.clone()

    monkeypatch.setattr(module, "to_sparse_semi_structured", kernel)
    model = net(exclude="1")
    found, images = semi_structured(model), torch.randn(2, 128)
    assert [(tuple(weight.shape), float((weight == 0).double().mean())) for weight in taken] == [
        ((128, 128), 0.5),
        ((64, 128), 0.5),
    ]
    assert torch.equal(found(images), model(images))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(64, 64)), "no linear layer has two zeros in each four weights in a row"),
        (net(), r"torch has no kernel for any layer; of 0: .*Only CUDA tensors are currently supported"),
    ],
    ids=["dense", "on the CPU"],
)
def test_where_no_kernel_fits_one_line_says_why(model, why):
    with pytest.raises(StructureError, match=why) as found:
        semi_structured(model)
    assert "\n" not in str(found.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here, which has sparse kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_the_outputs_are_those_of_the_dense_layers(dtype):
    model = net().to("cuda", dtype)
    images = torch.randn(64, 128, device="cuda", dtype=dtype)
    found = semi_structured(model)
    torch.testing.assert_close(found(images), model(images), rtol=2e-2, atol=2e-2)
    assert sum(type(layer.weight) is not nn.Parameter for layer in found) == 3
