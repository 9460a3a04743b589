"""Dense models with the weights that their library publishes: a row of WEIGHTS for each library that does."""

from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.catalog.entry import Base
from zoo.errors import RepositoryError, as_cause, first_line
from zoo.hub import remote, repository, torchvision_weights
from zoo.hub.remote import Access
from zoo.hub.state_dicts import fill_
from zoo.structure.base import skeleton, tag
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.structure.sources import timm
from zoo.structure.torchvision_models import default
from zoo.verbs import adaptation


def _timms(base: Base, revision: str | None, access: Access) -> nn.Module:
    name = base.id.removeprefix("timm/")
    overlay = _weights_of(name, revision, access)
    try:
        model: nn.Module = timm().create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=access.cache_dir, **base.args
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise RepositoryError(f"the weights of {base.id} can't be fetched by timm: {first_line(error)}") from as_cause(
            error
        )
    # where the weights lay isn't what they are
    configure_(model, {key: value for key, value in config_of(model).items() if key != "file"})
    attach_(model, Description(base.architecture, base))
    return model


def _weights_of(name: str, revision: str | None, access: Access) -> dict[str, Any] | None:
    """The file with timm's weights as an overlay of its configuration; None where timm must fetch them itself."""
    config = timm().get_pretrained_cfg(name)
    file = None
    if config is not None and config.hf_hub_id:
        file = remote.fetch_weights(
            config.hf_hub_id, config.hf_hub_filename or repository.WEIGHTS, revision, access=access
        )
    if file is None and (revision or access.local_files_only or access.refresh or access.token):
        raise RepositoryError(
            f"timm/{name} has no {repository.WEIGHTS} on the Hub, and what timm fetches itself takes neither revision, "
            f"token, local_files_only nor refresh: leave them out"
        )
    return None if file is None else {"file": str(file), "custom_load": False}


def _torchvisions(base: Base, revision: str | None, access: Access) -> nn.Module:
    """Without a tag those that torchvision takes by default; other classes and channels are adapted as in `load`."""
    if revision or access.token:
        raise RepositoryError(f"{base.id} doesn't lie on the Hub: leave revision and token out")
    if tag(base) is None:
        base = Base(f"{base.id}.{default(base.architecture)}", base.args)
    own = {"num_classes", "in_chans"}
    dense = Base(base.id, {key: value for key, value in base.args.items() if key not in own})
    model = fill_(skeleton(dense), torchvision_weights.fetch_state_dict(dense, access))
    attach_(model, Description(base.architecture, dense))
    if "in_chans" in base.args:
        adaptation.set_in_chans_(model, base.args["in_chans"])
    if "num_classes" in base.args:
        adaptation.set_num_classes_(model, base.args["num_classes"])
    return model


WEIGHTS: dict[str, Callable[[Base, str | None, Access], nn.Module]] = {"timm": _timms, "torchvision": _torchvisions}
"""By source; what `pretrained` calls."""
