"""A model in memory → what it is: edits over a base where a source builds that, else a graph."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError, UnknownName, WeightsError, first_line, in_one_line
from zoo.measurement.divergence import apart
from zoo.measurement.macs import noise, unchanged, unwrapped, vocab_size
from zoo.printable import logger
from zoo.structure.base import fingerprint, skeleton, tag
from zoo.structure.description import (
    DEFAULT_TASK,
    OTHER_TASK,
    Description,
    attach_,
    config_of,
    configure_,
    description_of,
    of_classes,
    skeleton_of,
)
from zoo.structure.graph.capture import capture, check_values, fold
from zoo.structure.graph.graph import Graph
from zoo.structure.sources import SOURCES, source_of
from zoo.structure.tensors import assign_, tensors_of

log = logger(__name__)

WEIGHTS = ("linear", "conv2d", "matmul", "aten.linear", "aten.addmm", "aten.matmul")
PASSED = (
    *("softmax", "aten.softmax.int", "aten.log_softmax.int", "add", "sub", "mul", "div", "scale", "shift", "concat"),
    *("mean", "adaptive_avg_pool2d", "avg_pool2d", "dropout", "flatten", "reshape", "item", "unbind", "chunk", "cast"),
    *("aten.squeeze", "aten.squeeze.dim", "aten.squeeze.dims", "aten.select.int", "aten.stack", "aten.sum.dim_IntList"),
    *("parameter", "buffer", "size", "permute", "transpose", "sigmoid", "aten.sigmoid"),
)
"""What may stand between the layer that gives logits and the output."""


def described(
    model: nn.Module, base: Base | None = None, example: Sequence[int] | Tensor | None = None
) -> tuple[nn.Module, Description]:
    """A model without what wraps it, and what it is, compared with what is rebuilt of that.

    What is computed from other tensors is folded. What no source builds, and isn't what it was loaded as, becomes a
    graph.

    Args:
        model: any module. What timm left in its `pretrained_cfg` of the weights that it started from (classes,
            channels, image size) becomes what it has now.
        base: the dense architecture; None reads it from the model.
        example: channels, height, width of the images, or some of them [B, C, H, W]; None takes what `pretrained_cfg`
            says.

    Returns:
        The model, or of one that becomes a graph what runs it, with the same tensors; and its description.

    Raises:
        StructureError: it isn't a model that can be rebuilt: which module is in the way, and what to do.
    """
    model = fold(unwrapped(model))
    check_values(model)
    try:
        given, task = describe(model) if base is None else _of_base(base), config_of(model).get("task", DEFAULT_TASK)
        description = of_classes(given, _classes(model), task)
        if description_of(model) is not description:
            settle_(model, description)
        check_outputs(model, description)
        return model, description
    except (StructureError, WeightsError, UnknownName) as error:
        if base is not None:
            raise
        image = _example(model, example)
        if image is None:
            raise StructureError(f"{error}; or say example=(CHANNELS, HEIGHT, WIDTH), and it becomes a graph") from None
        return _as_graph(model, image, first_line(error))


def describe(model: nn.Module) -> Description:
    """What `compress` or `load` left on a model, or what timm's own tells.

    Raises:
        StructureError: neither tells what it is.
    """
    model = unwrapped(model)
    return description_of(model) or _dense(model)


def _of_base(base: Base) -> Description:
    source_of(base)  # which says what an id looks like, before it is the model's name
    return Description(base.architecture, base)


# What no source builds


def _example(model: nn.Module, example: Sequence[int] | Tensor | None) -> Tensor | None:
    """Images to trace a model with, of its type and on its device."""
    if isinstance(example, Tensor):
        return example
    size = seen(model).get("input_size") if example is None else example
    if size is None:
        return None
    with in_one_line(f"example={example!r} isn't the size of an image, (CHANNELS, HEIGHT, WIDTH)"):
        return noise(model, 1, size=size)


def seen(model: nn.Module) -> dict[str, Any]:
    """What a model says of its images, or the first module in it that says something."""
    return next(filter(None, map(config_of, model.modules())), {})


def _as_graph(model: nn.Module, image: Tensor, reason: str) -> tuple[nn.Module, Description]:
    carried, config = description_of(model), seen(model)
    made, graph = capture(model, image)
    if carried or config_of(model).get("architecture"):
        log.warning("%s becomes a graph, which needs no code of its own: %s", type(model).__name__, reason)
    else:
        log.info("%s becomes a graph, which needs no code of its own", type(model).__name__)
    with torch.no_grad():
        outputs = made(image)
    logits = isinstance(outputs, Tensor) and outputs.ndim == 2 and _classifies(model, graph, outputs.shape[1])
    name = carried.name if carried else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(model).__name__).lower()
    task = config.get("task") or (DEFAULT_TASK if logits else OTHER_TASK)
    if carried and carried.task != DEFAULT_TASK:
        task = carried.task
    description = Description(name, carried.base if carried else None, graph=graph, task=task)
    modules = dict(made.named_modules())
    ends = _ends(graph, logits)
    ends |= {key: config[key] for key in ("first_conv", "classifier") if str(config.get(key)) in modules}
    former = {key: value for key, value in config.items() if key not in ("first_conv", "classifier", "architecture")}
    if "mean" not in config and vocab_size(model) is None:
        scale = {"mean": (0.0,) * image.shape[1], "std": (1.0,) * image.shape[1], "interpolation": "bicubic"}
        former = {"crop_pct": 1.0, **scale, **former}
        log.info("%s: its images come as 0..1, as nothing says another mean and std", name)
    classes = config["num_classes"] if "task" in config else outputs.shape[1] if logits else 0
    if len(former.get("label_names") or ()) != classes:  # they were another head's
        former.pop("label_names", None)
    configure_(made, {**former, **ends, "input_size": tuple(image.shape[1:]), "num_classes": classes})
    made.num_classes = classes  # type: ignore[assignment]
    attach_(made, description)
    return made, description


def _classifies(model: nn.Module, graph: Graph, count: int) -> bool:
    """Whether outputs [B, count] are logits: its `num_classes` says so, or a layer of weights gives them.

    What comes out of a norm or an activation, or is pooled from that, are features.
    """
    said = _classes(model)
    if said in (0, count):
        return bool(said == count)
    nodes, left, found = {node.name: node for node in graph.nodes}, [*graph.outputs], False
    while left:
        node = nodes.get(left.pop())
        if node is None or (node.op not in (*WEIGHTS, *PASSED) and not node.op.startswith("int_")):
            log.info(
                "%s: its outputs are taken for features, as no layer gives them; model.num_classes = %d says that "
                "they are logits",
                type(model).__name__,
                count,
            )
            return False
        found = found or node.op in WEIGHTS
        left += () if node.op in WEIGHTS else node.inputs
    return found


def _ends(graph: Graph, logits: bool) -> dict[str, str]:
    """The convolution that alone reads the images, and the linear layer that gives the logits, where there is one."""
    readers = [node for node in graph.nodes if node.inputs[:1] == graph.inputs and node.op != "size"]
    last = next((node for node in graph.nodes if (node.name,) == graph.outputs), None)
    ends = {}
    if len(readers) == 1 and readers[0].op == "conv2d":
        ends["first_conv"] = readers[0].name
    if logits and last is not None and last.op == "linear":
        ends["classifier"] = last.name
    return ends


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
    return of_classes(Description(architecture, base), _classes(model), config.get("task", DEFAULT_TASK))


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


def settle_(model: nn.Module, description: Description) -> None:
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
        return (
            "model.reset_classifier(CLASSES); model.get_classifier().load_state_dict(YOUR_LINEAR.state_dict()) gives "
            "timm's own head your weights"
        )
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
    try:
        rebuilt = assign_(skeleton_of(description), held, name)
    except WeightsError as error:
        raise WeightsError(
            f"{error}; what was put into a loaded model by hand isn't known: a new head comes with "
            f"zoo.load(..., num_classes=CLASSES), load its weights into that"
        ) from None
    image = noise(model, 1)
    off = apart(_outputs(rebuilt, image, name), _outputs(model, image, name))
    if off > max(1e-4, 8 * torch.finfo(weight.dtype).eps):
        source = description.base.source if description.base else "timm"
        differing = (*_structural(model, rebuilt, source), *_attributes(model, rebuilt, source))
        where = differing[0][1] if differing else "modules or attributes were changed"
        raise StructureError(
            f"{name} gives something else than what is rebuilt of it (by {off:.2g} of the largest output): {where}; "
            f"put {source}'s own back, or, if it was created with arguments, save(model, FOLDER, base=Base(id, {{the "
            f"arguments}})) takes these, and load(FOLDER) gives a model that knows them"
        )


def _outputs(model: nn.Module, image: Tensor, name: str) -> Any:
    """What a model returns; whatever is random in it comes out alike each time."""
    seeded = torch.random.fork_rng(devices=[image.device] * image.is_cuda)
    with in_one_line(f"{name} doesn't run on {tuple(image.shape)}"), unchanged(model), torch.no_grad(), seeded:
        torch.manual_seed(0)
        return model(image)
