"""Weights of a user's own: a state dict and what it is of, in; a model out, which `save` writes."""

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError, UnknownName, in_one_line
from zoo.hub.state_dicts import StateDict, fill_, read_state_dict, unwrapped
from zoo.structure.base import skeleton, without_claims
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.structure.tensors import tensors_of
from zoo.verbs.loading import create, description_named, load

SEEN = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")  # of an image
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def with_weights(
    base: str | os.PathLike[str] | Base,
    weights: str | os.PathLike[str],
    *,
    key: str | None = None,
    num_classes: int | None = None,
    input: Sequence[int] | None = None,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model and give it the weights in a file.

    Args:
        base: what the weights are of: an id such as `timm/resnet50` or `torchvision/resnet18`, a name of the catalog, a
            repository, or a function of your own that returns the module, `package.module:function`.
        weights: a state dict, `.pth`, `.pt`, `.bin` or `.safetensors`; names may begin with what wrapped the model
            (`module.`, `_orig_mod.`), and the whole may lie in a checkpoint.
        key: where in the checkpoint; None takes the only one, or `state_dict` or `model` before their averages.
        num_classes: of the model; None takes it from the shape of the head in the file.
        input: channels, height and width of the images; None takes the base's own, and channels from the file.
        args: further arguments of the architecture, or of the function.

    Returns:
        The model in eval mode; nothing says under which licence its weights are.

    Raises:
        WeightsError: the file is refused, or its tensors aren't the model's: the first that isn't, and how many.
        UnknownName, StructureError, RepositoryError, HubError: no such base, or it can't be built.
    """
    found, args = read_state_dict(Path(weights), key), dict(args or {})
    args |= {} if num_classes is None else {"num_classes": num_classes}
    if isinstance(base, str) and FUNCTION.fullmatch(base):
        return fill_(called(base, args), found).eval()
    described, config = description_named(base)
    if described.base is not None and described.graph is None and not described.plan.edits:
        return _dense(described, config if described.source else {}, found, input, args)
    if others := args.keys() - {"num_classes"}:
        raise StructureError(f"{base}: its structure is known, so {', '.join(others)} can't be set: leave them out")
    assert not isinstance(base, Base)  # which has no edits
    model = load(base)
    classes = num_classes or _classes(found, model)
    model = fill_(model if classes is None else load(base, num_classes=classes), found)
    configure_(model, without_claims(config_of(model)))
    return model


def _dense(
    described: Description,
    config: Mapping[str, Any],
    found: StateDict,
    input: Sequence[int] | None,
    args: dict[str, Any],
) -> nn.Module:
    """A dense base of the sizes that its weights have, seen as the repository says where it is one."""
    assert described.base is not None
    named = Base(described.base.id, {**described.base.args, **args})
    fitted = Base(named.id, {**named.args, **_seen_in(found, named, input, args)})
    model = fill_(create(fitted), found)
    own = config_of(model)
    same = [*config.get("input_size", ())][:1] == [*own["input_size"]][:1]
    kept = {key: config[key] for key in SEEN if same and key in config}
    if own["num_classes"] == len(config.get("label_names") or ()):
        kept["label_names"] = config["label_names"]
    configure_(model, {**own, **kept})
    name = described.name if described.source else fitted.architecture
    attach_(model, Description(name, fitted, task=described.task))  # by the id that was said, with its tag
    return model


def called(name: str, args: Mapping[str, Any]) -> nn.Module:
    """The module that a function of the user's own code returns, which is imported from the current folder too.

    Args:
        name: `package.module:function`.
        args: it is called with.

    Raises:
        UnknownName: no such module or function.
        StructureError: it fails, or returns something else.
    """
    module, _, path = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        made: Any = importlib.import_module(module)
        for part in path.split("."):
            made = getattr(made, part)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UnknownName(f"{name}: no module {error.name!r} in {here} or where Python looks for packages") from None
    except AttributeError as error:
        raise UnknownName(f"{name}: {error}") from None
    with in_one_line(f"{name} can't be called with {args or 'nothing'}"):
        model = made(**args)
    if not isinstance(model, nn.Module):
        raise StructureError(f"{name} returns a {type(model).__name__}, expected a torch.nn.Module")
    return model


def _seen_in(found: StateDict, base: Base, input: Sequence[int] | None, said: Mapping[str, Any]) -> dict[str, Any]:
    """Classes, channels and image size that a base must have for weights; nothing where it has them by itself."""
    dense = skeleton(base)
    config, own = config_of(dense), tensors_of(dense)
    values = unwrapped(found.values, [*own])
    sizes: dict[str, Any] = {}
    if "num_classes" not in said and (classes := _classes(found, dense)) is not None:
        sizes["num_classes"] = classes
    first = _weight(config.get("first_conv"), values)
    if first is not None and "in_chans" not in said:
        there = own[f"{config['first_conv']}.weight"].shape[1]
        channels = first.shape[1] * config["input_size"][0] // there
        sizes |= {"in_chans": channels} if channels != config["input_size"][0] else {}
    if input is not None and config.get("fixed_input_size") and tuple(input[1:]) != tuple(config["input_size"][1:]):
        sizes |= {"img_size": [*input[1:]]} if base.source == "timm" else {"image_size": input[1]}
    return sizes


def _classes(found: StateDict, model: nn.Module) -> int | None:
    """How many classes the head in a state dict has, where the model has another number."""
    config = config_of(model)
    head = _weight(config.get("classifier"), unwrapped(found.values, [*tensors_of(model)]))
    return None if head is None or head.shape[0] == getattr(model, "num_classes", None) else head.shape[0]


def _weight(paths: Any, values: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of the first layer that `pretrained_cfg` names."""
    path = paths[0] if isinstance(paths, list | tuple) and paths else paths
    weight = values.get(f"{path}.weight")
    return weight if weight is not None and weight.ndim >= 2 else None
