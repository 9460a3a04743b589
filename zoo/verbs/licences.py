"""Licences: weights are under that of those they come from; a tag is of the very weights that it names.

What `zoo.load` gave stays under its licence however it is trained, cut or given another head. Of a model that says
nothing of where it was loaded, such as timm's own, nobody knows whether its weights are trained or random: it has the
licence of its tag where its weights are that tag's, and else none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import ZooError
from zoo.hub import repository
from zoo.hub.graph_view import Form
from zoo.hub.remote import Access
from zoo.printable import logger
from zoo.structure.base import CLAIMS, INHERITED, skeleton, tag, untagged, without_claims
from zoo.structure.description import Description, config_of
from zoo.structure.tensors import tensors_of
from zoo.verbs.loading import folder_of, pretrained

log = logger(__name__)


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


def claims(config: Mapping[str, Any], held: bool, carried: bool) -> dict[str, Any]:
    """`pretrained_cfg` without what it claims of other weights.

    Args:
        config: of the model.
        held: from `hold`.
        carried: the model says where its weights come from, as those that were loaded or compressed do.
    """
    if held:
        return dict(config)
    return {**without_claims(config), **{key: config[key] for key in INHERITED if carried and key in config}}


def relicensed(config: Mapping[str, Any], license: str, base: Base | None) -> dict[str, Any]:
    """`pretrained_cfg` of weights under another licence; that of those they come from is noted where it is another.

    Args:
        config: of the model.
        license: as whoever saves it says.
        base: of the model.
    """
    config, former = dict(config), config.get("license") or (license_of(base) if base else None)
    if former and former.lower() != license.lower():
        told = f"made of weights under {former}; that these are under {license} is said by whoever saved them"
        notes = [config["note"]] if config.get("note") else []
        config["note"] = " ".join(dict.fromkeys([*notes, told]))
        log.warning("the weights come from some under %s: the card says so beside %s", former, license)
    return {**config, "license": license}


def without_tag(description: Description) -> Description:
    """The description of a model whose weights never were those of its base's tag."""
    base = description.base
    return description if base is None or not base.source else replace(description, base=untagged(base))


def hold(model: nn.Module, description: Description) -> bool:
    """Whether a model's weights are those that its `pretrained_cfg` and its recipe tell of.

    They are where they are the same, tensor by tensor, in the folder that the model was loaded from, or of its base's
    tag as they lie in the cache. What a recipe made in this process is what that made.
    """
    if not description.source and (description.recipe or not any(config_of(model).get(key) for key in CLAIMS)):
        return True
    try:
        if description.source:
            form: Form | None = "graph" if description.graph else None
            given = repository.rebuild(folder_of(description.source), form=form)
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
