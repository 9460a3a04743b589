"""A model's groups, from the model itself; and what a layer misses once some of its inputs are gone."""

import torch

from zoo.compression.channels.analysis import analyse, exported
from zoo.compression.channels.checking import halves, tried
from zoo.compression.prune.refit import fit


def analysed(model, image):
    return analyse(exported(model, image), model)


def checked(model, image):
    """Without those of which every second unit can't be cut."""
    return tried(exported(model, image), model, image, halves).analysis


def refitted(weight, seen, kept, ridge):
    """Return W', the shift of the bias, and the noise to signal that remains in the mean over outputs."""
    W, narrowed = weight.detach().flatten(1).double(), fit(weight, seen, kept, ridge)
    change = torch.zeros_like(W).index_copy(1, kept, narrowed) - W
    noise, signal = (((each @ seen.covariance) * each).sum(1) for each in (change, W))
    return narrowed, -(change @ seen.mean), float((noise / signal).mean())
