"""Licences: what is claimed of weights holds for them alone, so it goes where others took their place."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import ZooError
from zoo.hub import repository
from zoo.hub.remote import Access
from zoo.structure.base import CLAIMS, skeleton, tag, untagged
from zoo.structure.description import Description, config_of
from zoo.structure.tensors import tensors_of
from zoo.verbs.loading import folder_of, pretrained


def license_of(base: Base) -> str | None:
    """The licence of a dense base's weights, where its id names them."""
    return config_of(skeleton(base)).get("license") if base.source and tag(base) else None


def judged(model: nn.Module, description: Description, said: bool) -> tuple[Description, bool]:
    """The description of a model, without its base's tag where nobody said that its weights are of it; and `hold`.

    Args:
        model: from `described`.
        description: of it.
        said: somebody says what it is: who saves it, or the model itself, as it was loaded or compressed.
    """
    held = hold(model, description)
    return description if held or said else without_tag(description), held


def without_tag(description: Description) -> Description:
    """The description of a model whose weights never were those of its base's tag."""
    base = description.base
    return description if base is None or not base.source else replace(description, base=untagged(base))


def hold(model: nn.Module, description: Description) -> bool:
    """Whether what `pretrained_cfg` claims of a model's weights holds.

    It does where they are, tensor by tensor, those that it was said of: in the folder that the model was loaded from,
    or of its base's tag as they lie in the cache. What a recipe made in this process is under its base's.
    """
    made = description.recipe and not description.source
    if made or not any(config_of(model).get(key) for key in CLAIMS):
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
