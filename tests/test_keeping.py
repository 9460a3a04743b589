"""What compression keeps of a model beside its shapes: precision, what is trained, and what is said of drop rates."""

import copy
import logging

import pytest
import torch
from conftest import CNN
from torch import nn

import zoo
from zoo.catalog.entry import Base
from zoo.structure.base import skeleton
from zoo.structure.description import Description

METHODS = {
    "prune": {"budget": 0.6, "criterion": "l2"},
    "low_rank": {"budget": 0.7, "round_to": 1},
    "falor": {"nsr_final_threshold": 9.0, "kl_final_threshold": 9.0},
}
X = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(cnn):
    cnn.zoo_entry = Description("cnn", CNN)
    return cnn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compressed_in_single_and_comes_back_in_half(method, dtype, network):
    """The oracle casts the model to and fro itself."""
    half = copy.deepcopy(network).to(dtype)
    before = copy.deepcopy(half.state_dict())
    found = zoo.compress(half, data=X.to(dtype), method=method, **METHODS[method])
    expected = zoo.compress(copy.deepcopy(half).float(), data=X.to(dtype), method=method, **METHODS[method])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), half.state_dict().values(), strict=True))
    for path, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected.to(dtype).state_dict()[path])
        assert tensor.dtype == (dtype if tensor.is_floating_point() else torch.int64)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_not_trained_is_not_trained_afterwards(method, network):
    network.layer2.requires_grad_(False)
    smaller = zoo.compress(network, data=X, method=method, **METHODS[method])
    trained = {path: tensor.requires_grad for path, tensor in smaller.named_parameters()}
    assert any(path.startswith("layer2") for path in trained)
    assert all(is_trained is not path.startswith("layer2") for path, is_trained in trained.items())
    assert not any(tensor.requires_grad for tensor in network.layer2.parameters())


@pytest.mark.parametrize("base", [CNN, Base(CNN.id, {**CNN.args, "drop_path_rate": 0.1})], ids=["lost", "of the base"])
def test_drop_rates_that_are_lost_are_named_and_those_of_the_base_are_kept(base, network, caplog):
    dropping = skeleton(Base(CNN.id, {**CNN.args, "drop_path_rate": 0.1}))
    dropping.load_state_dict(network.state_dict(), assign=True)
    dropping.pretrained_cfg, dropping.zoo_entry = network.pretrained_cfg, Description("cnn", base)
    with caplog.at_level(logging.WARNING, "zoo.compression.keeping"):
        smaller = zoo.compress(dropping.eval(), data=X, **METHODS["prune"])
    drops = [module for module in smaller.modules() if getattr(module, "drop_prob", 0)]
    assert bool(drops) is (base is not CNN)
    assert ("3 drop rates of the model, such as 0.0333333 of layer2.0.drop_path, aren't kept" in caplog.text) is (
        base is CNN
    )


def test_a_dropout_put_in_by_hand_is_named(network, caplog):
    network.layer1[0].act2 = nn.Sequential(nn.ReLU(), nn.Dropout(0.25))
    zoo.compress(network, data=X, **METHODS["prune"])
    assert "1 drop rates of the model, such as 0.25 of layer1.0.act2.1, aren't kept" in caplog.text
