"""A network, data and a schedule that train in milliseconds."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from zoo.training.schedule import Schedule


def tiny(seed=0, width=8):
    torch.manual_seed(seed)
    hidden = nn.Linear(12, width), nn.BatchNorm1d(width), nn.Dropout(0.2)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 4))


def batches(epoch, count=6, size=4):
    generator = torch.Generator().manual_seed(epoch)
    images = torch.randn(count * size, 3, 2, 2, generator=generator)
    pairs = list(zip(images, torch.randint(0, 4, (count * size,), generator=generator).tolist(), strict=True))
    return DataLoader(pairs, size, drop_last=True, generator=torch.Generator())


QUICK = Schedule(epochs=2, batch_size=4, checkpoint_seconds=0)


def same(expected, found):
    assert expected.keys() == found.keys()
    return all(torch.equal(expected[name], found[name]) for name in expected)
