"""Licences: what is claimed of weights holds for them alone, so it goes where others took their place."""

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import ZooError
from zoo.hub import repository
from zoo.hub.remote import Access
from zoo.structure.base import CLAIMS, skeleton, tag
from zoo.structure.description import Description, config_of
from zoo.structure.tensors import tensors_of
from zoo.verbs.loading import folder_of, pretrained


def license_of(base: Base) -> str | None:
    """The licence of a dense base's weights, where its id names them."""
    return config_of(skeleton(base)).get("license") if base.source and tag(base) else None


def hold(model: nn.Module, description: Description) -> bool:
    """Whether what `pretrained_cfg` claims of a model's weights holds.

    It does where they are, tensor by tensor, those that it was said of: in the folder that the model was loaded from,
    or of its base's tag as they lie in the cache. What was made by a recipe is under the licence of its base.
    """
    if description.recipe or not any(config_of(model).get(key) for key in CLAIMS):
        return True
    try:
        if description.source:
            given = repository.rebuild(folder_of(description.source))
        elif description.base is not None and description.base.source and tag(description.base):
            given = pretrained(description.base, access=Access(local_files_only=True))
        else:
            return False
    except ZooError:
        return False
    own, others = tensors_of(model), tensors_of(given)
    return own.keys() == others.keys() and all(_same(held, others[path]) for path, held in own.items())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach().cpu(), b.to(a.dtype))
