"""Images, outputs, and the model that a Factor edit and its tensors make."""

import copy

import torch

from zoo.structure.tensors import tensors_of


def images(count=2, size=8, side=8, channels=3):
    return list(torch.randn(count, size, channels, side, side, generator=torch.Generator().manual_seed(1)))


def outputs(model, batch):
    with torch.no_grad():
        return model(batch)


def built(model, edit, found):
    smaller = copy.deepcopy(model)
    edit.apply_(smaller)
    for name, tensor in tensors_of(smaller).items():
        assert tensor.shape == found[name].shape
        tensor.data.copy_(found[name])
    assert found.keys() == tensors_of(smaller).keys()
    return smaller.eval()
