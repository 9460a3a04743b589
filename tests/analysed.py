"""A model's groups, from the model itself."""

from zoo.compression.channels.analysis import analyse, exported


def analysed(model, image):
    return analyse(exported(model, image), model)
