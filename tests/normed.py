"""Networks whose batch norms do something: their weights, biases and statistics are random."""

import torch
from torch import nn

import zoo


def disturbed(base, seed=0):
    """A model, or one of a base, with such batch norms."""
    model = base.eval() if isinstance(base, nn.Module) else zoo.create(base, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model
