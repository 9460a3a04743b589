"""A model's groups, from the model itself."""

from zoo.compression.channels.analysis import analyse, exported
from zoo.compression.channels.checking import halves, tried


def analysed(model, image):
    return analyse(exported(model, image), model)


def checked(model, image):
    """Without those of which every second unit can't be cut."""
    return tried(exported(model, image), model, image, halves).analysis
