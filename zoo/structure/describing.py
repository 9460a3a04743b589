"""A model in memory → what it is; or which module of it can't be rebuilt, and what to do about that."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from zoo.catalog.entry import Base
from zoo.errors import StructureError, WeightsError, in_one_line
from zoo.measurement.macs import input_size, unchanged, unwrapped
from zoo.printable import logger
from zoo.structure.base import fingerprint, skeleton, tag
from zoo.structure.description import Description, config_of, configure_, description_of, skeleton_of
from zoo.structure.sources import SOURCES, source_of
from zoo.structure.tensors import assign_, tensors_of

log = logger(__name__)


def described(model: nn.Module, base: Base | None = None) -> tuple[nn.Module, Description]:
    """A model without what wraps it, and what it is.

    Args:
        model: from `compress`, `load` or timm. What timm left in its `pretrained_cfg` of the weights that it started
            from (classes, channels, image size) becomes what it has now.
        base: the dense architecture; None reads it from the model.

    Returns:
        The model, and its description.

    Raises:
        StructureError: it isn't a model that can be rebuilt: which module is in the way, and what to do.
    """
    model = unwrapped(model)
    carried = description_of(model)
    for refuse in (_features, _holder, _parametrized):
        refuse(model)
    if base is None and carried is not None:
        return model, carried
    if base is not None:
        source_of(base)  # which says what an id looks like, before it is the model's name
    description = _dense(model) if base is None else Description(base.architecture, base)
    _settle_(model, description)
    return model, description


def describe(model: nn.Module) -> Description:
    """What `compress` or `load` left on a model, or what timm's own tells.

    Raises:
        StructureError: as for `described`.
    """
    return described(model)[1]


# What is refused whatever the architecture


def _features(model: nn.Module) -> None:
    if type(model).__module__.startswith("timm.models._features"):
        raise StructureError(
            f"the model is a {type(model).__name__}, which gives features only: save the whole classifier, "
            f"zoo.load(FOLDER, features_only=True) gives its features"
        )


def _holder(model: nn.Module) -> None:
    if config_of(model):
        return
    for path, module in model.named_modules():
        if path and config_of(module).get("architecture"):
            raise StructureError(
                f"the model is a {type(model).__name__} around timm's at {path!r}, whose other layers can't be "
                f"rebuilt: {_own_head(f'model.get_submodule({path!r})')}"
            )


def _own_head(timms: str) -> str:
    return (
        f"m = {timms}; m.reset_classifier(CLASSES); m.get_classifier().load_state_dict(YOUR_LINEAR.state_dict()) "
        f"gives timm's own head your weights; save m"
    )


def _parametrized(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            name = next(iter(module.parametrizations))
            remedy = f"torch.nn.utils.parametrize.remove_parametrizations(model.get_submodule({path!r}), {name!r})"
        elif hook := next(filter(None, map(_reparametrizing, module._forward_pre_hooks.values())), None):
            name, remove = hook
            remedy = f"{remove}(model.get_submodule({path!r}), {name!r})"
        else:
            continue
        raise StructureError(f"{path}.{name} is computed from other tensors, not rebuilt: {remedy}, then save")


def _reparametrizing(hook: Callable[..., Any]) -> tuple[str, str] | None:
    """The tensor that a hook of torch's older functions computes, and the function that ends it."""
    kind = type(hook)
    if kind.__module__ == "torch.nn.utils.prune":
        return str(getattr(hook, "_tensor_name")), "torch.nn.utils.prune.remove"  # noqa: B009  # declared in subclasses
    removes = {
        "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm",
        "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm",
    }
    remove = removes.get(kind.__module__)
    return None if remove is None else (str(getattr(hook, "name")), remove)  # noqa: B009


# What a library's own model is


def _dense(model: nn.Module) -> Description:
    config = config_of(model)
    architecture, named = config.get("architecture"), config.get("tag")
    if not architecture:
        raise StructureError(
            "the model doesn't say what it was made from; pass base='timm/<architecture>' to zoo.save, or load its "
            "weights into a model of timm.create_model"
        )
    source = next((source for source, row in SOURCES.items() if row.has(architecture)), "timm")
    tagged = Base(f"{source}/{architecture}.{named}")
    base = tagged if tag(tagged) else Base(f"{source}/{architecture}")
    base = Base(base.id, _arguments(model, base))
    rebuilt = skeleton(base)
    held = {path for each in (model, rebuilt) for path in fingerprint(each)}
    if differing := [(path, differs) for path, differs in _structural(model, rebuilt, source) if path in held]:
        path, differs = differing[0]
        raise StructureError(
            f"the model isn't what {source} builds as {architecture}: {differs}; {_remedy(model, base, path)}"
        )
    return Description(architecture, base)


def _arguments(model: nn.Module, base: Base) -> dict[str, Any]:
    """Classes, channels and image size where they are others than the architecture's, or its tag's, in any version."""
    tagged, usual = skeleton(base), skeleton(Base(f"{base.source}/{base.architecture}"))
    known = [_sizes(each, each) for each in (tagged, usual)]
    own = _sizes(model, usual)
    return {k: size for k, size in own.items() if size is not None and any(size != sizes[k] for sizes in known)}


def _sizes(model: nn.Module, usual: nn.Module) -> dict[str, Any]:
    config = config_of(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None and config.get("fixed_input_size"):
        size = config["input_size"][1:]
    return {
        "num_classes": _classes(model),
        "in_chans": _channels(model, usual),
        "img_size": None if size is None else [size, size] if isinstance(size, int) else [*size],
    }


def _classes(model: nn.Module) -> Any:
    get: Any = getattr(model, "get_classifier", None)
    head = get() if callable(get) else None
    if isinstance(head, nn.Linear | nn.Conv2d):  # who replaces a head leaves num_classes as it was
        return head.weight.shape[0]
    return 0 if isinstance(head, nn.Identity) else getattr(model, "num_classes", None)


def _channels(model: nn.Module, usual: nn.Module) -> int | None:
    """Channels of the images, read off the first convolution: some read each channel several times."""
    config = config_of(usual)
    path, channels = config.get("first_conv"), config["input_size"][0]
    both = [getattr(_at(each, path), "in_channels", None) for each in (model, usual)]
    return both[0] * channels // both[1] if both[0] and both[1] else None


def _at(model: nn.Module, path: Any) -> nn.Module | None:
    try:
        return model.get_submodule(path) if isinstance(path, str) else None
    except AttributeError:
        return None


def _settle_(model: nn.Module, description: Description) -> None:
    """Let `pretrained_cfg` say what the description does."""
    config = config_of(model)
    if description.base is None or "input_size" not in config:
        return
    args, (channels, *size) = description.base.args, config["input_size"]
    config["num_classes"] = args.get("num_classes", config.get("num_classes"))
    if len(config.get("label_names") or ()) != config["num_classes"]:  # they were the former head's
        config.pop("label_names", None)
    if "img_size" in args and not args.get("dynamic_img_size"):
        size = [args["img_size"]] * 2 if isinstance(args["img_size"], int) else args["img_size"]
    own = args.get("in_chans", channels)
    if own != channels:
        config |= {key: tuple(config[key][j % channels] for j in range(own)) for key in ("mean", "std")}
    configure_(model, {**config, "input_size": (own, *size)})


# What differs, and what to do


def _structural(model: nn.Module, rebuilt: nn.Module, source: str) -> Iterator[tuple[str, str]]:
    """Path and words for each module that has another class or other tensors than what is rebuilt."""
    found, expected = (fingerprint(each, dict(each.named_modules())) for each in (model, rebuilt))
    for path in dict.fromkeys((*expected, *found)):
        same = sorted(found.get(path, "").split()) == sorted(expected.get(path, "").split())
        if path and not same:
            yield path, f"{path} is {found.get(path, 'absent')!r}, {source}'s is {expected.get(path, 'absent')!r}"


def _attributes(model: nn.Module, rebuilt: nn.Module, source: str) -> Iterator[tuple[str, str]]:
    """The same for attributes of modules of the same class, as far as they are plain values."""
    others = dict(rebuilt.named_modules())
    for path, module in model.named_modules():
        if "forward" in vars(module):
            yield path, f"{path or 'the model'} has another forward"
        there = vars(others[path]) if path in others else {}
        for name, value in vars(module).items():
            plain = isinstance(value, bool | int | float | str | tuple)
            if plain and name not in ("training", "p", "drop_rate", "drop_prob") and there.get(name, value) != value:
                where = f"{path}.{name}" if path else name
                yield path, f"{where} is {value!r}, {source}'s is {there[name]!r}"


def _remedy(model: nn.Module, base: Base, path: str) -> str:
    """What to do about a module that differs."""
    given = {key: value for key, value in getattr(model, "_model_args", {}).items() if key not in base.args}
    if given and not next(_structural(model, skeleton(Base(base.id, {**base.args, **given})), base.source), None):
        return f"pass base=Base({base.id!r}, {dict(base.args) | given}) to zoo.save and load that"
    config = config_of(model)
    heads = config.get("classifier") or ()
    if any(f"{path}.".startswith(f"{head}.") for head in ((heads,) if isinstance(heads, str) else heads)):
        return _own_head("model")
    return (
        f"put {base.source}'s module back, or, if it was created with arguments, pass base=Base({base.id!r}, {{the "
        f"arguments}}) to zoo.save and load that"
    )


def check_outputs(model: nn.Module, description: Description) -> None:
    """Check that a model computes what its description rebuilds: for an image of noise both must give the same.

    What is rebuilt has the base's own modules and attributes. Where others were put into the model, or asked for by
    arguments that no tensor shows, they would be lost.

    Args:
        model: with values, and `pretrained_cfg`; left as it was.
        description: of it.

    Raises:
        StructureError: they differ, or the model doesn't run.
        WeightsError: the description is of another model.
    """
    name, held = description.name, tensors_of(model)
    weight = next((t for t in held.values() if t.is_floating_point()), torch.zeros(0))
    if weight.is_meta:
        raise StructureError(f"{name} has no values: it is on the meta device")
    try:
        rebuilt = assign_(skeleton_of(description), held, name)
    except WeightsError as error:
        raise WeightsError(
            f"{error}; what was put into a loaded model by hand isn't known: a new head comes with "
            f"zoo.load(..., num_classes=CLASSES), load its weights into that"
        ) from None
    image = torch.randn(1, *input_size(model), generator=torch.Generator().manual_seed(0)).to(weight)
    found, expected = (_outputs(each, image, name) for each in (model, rebuilt))
    a, b = (torch.cat([each.flatten().double() for each in some]) for some in (found, expected))
    same = [each.shape for each in found] == [each.shape for each in expected]
    off = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if same else float("inf")
    if not off <= max(1e-4, 8 * torch.finfo(weight.dtype).eps):
        source = description.base.source if description.base else "timm"
        differing = (*_structural(model, rebuilt, source), *_attributes(model, rebuilt, source))
        where = differing[0][1] if differing else "modules or attributes were changed"
        raise StructureError(
            f"{name} gives something else than what is rebuilt of it (by {off:.2g} of the largest output): {where}; "
            f"put {source}'s own back, or, if it was created with arguments, save(model, FOLDER, base=Base(id, {{the "
            f"arguments}})) takes these, and load(FOLDER) gives a model that knows them"
        )


def _outputs(model: nn.Module, image: Tensor, name: str) -> list[Tensor]:
    """What a model returns; whatever is random in it comes out alike each time."""
    seeded = torch.random.fork_rng(devices=[image.device] * image.is_cuda)
    with in_one_line(f"{name} doesn't run on {tuple(image.shape)}"), unchanged(model), torch.no_grad(), seeded:
        torch.manual_seed(0)
        outputs = model(image)
    return [each for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor)]
