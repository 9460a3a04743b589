"""Another project's checkpoint → a model of ours, without the network and without running anything in it.

Weights and structure come from the checkpoint; preprocessing, which it doesn't hold, from what the catalog knows of the
model and of its base.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn

from zoo.catalog.entry import Base, Entry
from zoo.deadline import deadline
from zoo.errors import CheckpointError, StructureError, WeightsError
from zoo.files import sha256_stamped
from zoo.hub import remote, weights
from zoo.hub.foreign import ptdeco, torch_dag
from zoo.models.heads import heads_on_meta
from zoo.structure.base import initialised, skeleton
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.structure.graph import bounds
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.plan import Plan, apply_
from zoo.structure.sources import is_base_id
from zoo.structure.tensors import assign_

SECONDS = 60.0  # of CPU, in which weights are read and compared too
SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 640, 768, 896, 1024)  # pixels


def converted(
    folder: Path, name: str, entry: Entry | None = None, *, base: Base | None = None, probabilities: bool = False
) -> nn.Module:
    """Convert a checkpoint.

    Args:
        folder: holds its files; which they are, `CHECKPOINT_FILES` says for each format.
        name: of the model.
        entry: what the catalog knows of it; without one the files tell the format.
        base: the dense model that it was made from, where no entry says so.
        probabilities: leave a softmax at the end where there is one; else the model gives logits.

    Returns:
        The model in eval mode, with `pretrained_cfg` and `zoo_entry`.

    Raises:
        CheckpointError: the checkpoint is damaged, dangerous, not understood, or another than the catalog's.
    """
    format = _format(folder, entry)
    hashes = checked_hashes(folder, entry)
    base = base or (entry.base if entry else None)
    with deadline(str(folder), SECONDS):
        model, description = _READERS[format](folder, name, entry, base, probabilities)
    known = {"repo": entry.origin.repo, "commit": entry.origin.commit} if entry and entry.origin else {}
    origin = remote.place_of(folder) or known
    came = {"format": format, **origin, "sha256": hashes, "changed": list(description.recipe.get("changed", ()))}
    task = entry.task if entry else description.task
    attach_(model, replace(description, recipe={"converted_from": came}, task=task))
    return model.eval()


def checked_hashes(folder: Path, entry: Entry | None) -> dict[str, str]:
    """File → sha256 of a checkpoint's files, those of its weights compared with what the catalog knows.

    Raises:
        CheckpointError: they are others.
    """
    format = _format(folder, entry)
    hashes = {file: sha256_stamped(folder / file) for file in CHECKPOINT_FILES[format] if (folder / file).is_file()}
    known = entry.origin.sha256 if entry and entry.origin else None
    if known is not None and hashes.get(weights := CHECKPOINT_FILES[format][-1]) != known:
        raise CheckpointError(f"{folder / weights} isn't the file that the catalog knows: sha256 {known[:12]}…")
    return hashes


def _format(folder: Path, entry: Entry | None) -> str:
    if entry and entry.origin:
        return entry.origin.format
    return "ptdeco" if (folder / ptdeco.CONFIG).is_file() else "torch-dag"


def _torch_dag(
    folder: Path, name: str, entry: Entry | None, base: Base | None, probabilities: bool
) -> tuple[nn.Module, Description]:
    graph, tensors = torch_dag.read_checkpoint(folder)
    softmax = None if probabilities else _last_softmax(graph)
    if softmax is not None:
        graph = structs.replace(graph, nodes=tuple(n for n in graph.nodes if n is not softmax), outputs=softmax.inputs)
    built = graph_module(graph, name)
    config = _detectors(graph, built, folder, entry, base) if len(graph.outputs) > 1 else None
    if config is None:
        config = preprocessing(entry, base, _classes(graph, tensors))
        config["input_size"] = _runs_at(graph, built, config["input_size"])
    classes = config["num_classes"]
    logits = ["the softmax at the end is left out: outputs are logits"] * (softmax is not None)
    if base is not None and base.source in ("timm", "zoo"):
        dense = Base(base.id, {**base.args, "num_classes": classes})
        if view := torch_dag.plan_view(graph, tensors, dense, config["input_size"]):
            plan, narrowed = view
            own = config_of(narrowed)
            config |= {key: own[key] for key in ("first_conv", "classifier") if key in own}
            configure_(narrowed, config)
            told = f"the graph is written as a plan over {base.source}'s model, whose outputs are the graph's"
            return narrowed, Description(name, dense, plan, recipe={"changed": [told, *logits]})
    model = assign_(built, tensors, str(folder))
    model.num_classes = classes
    configure_(model, config)
    changed = ["what does nothing in evaluation is left out", "blocks of timm are taken apart into plain operations"]
    return model, Description(name, base, recipe={"changed": [*changed, *logits]}, graph=graph)


def _ptdeco(
    folder: Path, name: str, entry: Entry | None, base: Base | None, probabilities: bool
) -> tuple[nn.Module, Description]:
    if base is None:
        raise CheckpointError(f"{folder} doesn't say what was decomposed: name it, --base timm/ARCHITECTURE.TAG")
    edit, tensors = ptdeco.read_decomposition(folder, skeleton(base))
    computed = {path: buffer for path, buffer in initialised(base).named_buffers() if path not in tensors}
    plan = Plan((edit,))
    try:
        model = assign_(apply_(skeleton(base), plan), {**computed, **tensors}, str(folder))
    except WeightsError as error:
        raise CheckpointError(f"{folder} isn't imported: {error}") from error
    timms = config_of(model)
    classes: int = model.num_classes  # type: ignore[assignment]
    configure_(model, {**timms, **preprocessing(entry, base, classes)})
    return model, Description(name, base, plan)


def _timm(
    folder: Path, name: str, entry: Entry | None, base: Base | None, probabilities: bool
) -> tuple[nn.Module, Description]:
    assert entry is not None  # that is how the format is known
    assert entry.origin is not None
    base = Base(entry.origin.repo)
    model, path = skeleton(base), folder / CHECKPOINT_FILES["timm"][-1]
    try:
        tensors = weights.load_weights(path, structure=model)
        missing = {n: b for n, b in model.named_buffers() if n.endswith("num_batches_tracked") and n not in tensors}
        assign_(model, {**tensors, **{n: torch.zeros_like(b, device="cpu") for n, b in missing.items()}}, str(path))
    except WeightsError as error:
        raise CheckpointError(f"{folder} isn't converted: {error}") from error
    return model, Description(name, base)


def _last_softmax(graph: Graph) -> Node | None:
    """The softmax that gives the only output, if one does."""
    last = next((node for node in graph.nodes if graph.outputs == (node.name,)), None)
    return last if last is not None and last.op == "softmax" else None


def _classes(graph: Graph, tensors: Mapping[str, Tensor]) -> int:
    """How many classes the layer before the output tells apart; 0 where no layer gives the output."""
    by_name = {node.name: node for node in graph.nodes}
    node = by_name.get(graph.outputs[0])
    while node is not None and node.op in ("reshape", "flatten", "dropout", "scale", "add"):
        node = by_name.get(node.inputs[0])
    if len(graph.outputs) > 1 or node is None or node.op not in ("linear", "conv2d"):
        return 0
    return len(tensors[f"{node.module or node.name}.weight"])


def _detectors(
    graph: Graph, model: nn.Module, folder: Path, entry: Entry | None, base: Base | None
) -> dict[str, Any] | None:
    """What images must undergo and what the heads mean, by the shapes of these; None where they are no YOLOv8's.

    Raises:
        CheckpointError: they aren't, and the catalog says that the model is a detector.
    """
    dense = base if base and base.source == "zoo" else Base("zoo/yolov8n")
    config = preprocessing(entry, dense)
    size = _runs_at(graph, model, config["input_size"])
    shapes = [head.shape for head in heads_on_meta(model, size)]
    boxes = 4 * config["detector"]["reg_max"]
    classes = {shape[1] - boxes if len(shape) == 4 else 0 for shape in shapes}
    if len(classes) != 1 or min(classes) < 1:
        if entry is None or entry.task != config["task"]:
            return None
        found, expected = ", ".join("x".join(map(str, shape[1:])) for shape in shapes), f"{boxes} channels and classes"
        raise CheckpointError(f"{folder}: its heads are {found}, expected of each {expected}, the same in all")
    detector = {**config["detector"], "strides": tuple(size[1] // shape[2] for shape in shapes)}
    return {**preprocessing(entry, dense, classes.pop()), "input_size": size, "detector": detector}


def preprocessing(entry: Entry | None, base: Base | None, num_classes: int | None = None) -> dict[str, Any]:
    """What images must undergo: what the catalog knows, else as for the base; at the size that it was trained for.

    Args:
        entry: what the catalog knows.
        base: the dense model.
        num_classes: that the model tells apart; None is as many as the base.

    Returns:
        The keys of timm's `pretrained_cfg` that preprocessing follows from; of a detector also what its heads mean.
    """
    config = config_of(skeleton(base)) if base and is_base_id(base.id) else {}
    kept = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "task", "detector")
    num_classes = config.get("num_classes", 1000) if num_classes is None else num_classes
    settings = {"input_size": (3, 224, 224)} | {key: config[key] for key in kept if config.get(key) is not None}
    if entry is not None:
        settings |= {**entry.preprocessing, "input_size": entry.input, "license": entry.license}
        settings |= {"note": entry.note} if entry.note else {}
    if "detector" in config and len(names := config.get("label_names") or ()) == num_classes:
        settings["label_names"] = names
    return {**settings, "num_classes": num_classes}


def _runs_at(graph: Graph, model: nn.Module, stated: tuple[int, int, int]) -> tuple[int, int, int]:
    """The size that is stated, or the first of `SIDES` where the graph doesn't run at that: a checkpoint tells none."""
    try:
        bounds.check_memory(graph, model, stated)
        return stated
    except StructureError:
        for side in SIDES:
            with contextlib.suppress(StructureError):
                bounds.check_memory(graph, model, other := (stated[0], side, side))
                return other
        raise


CHECKPOINT_FILES: Mapping[str, tuple[str, ...]] = {
    "torch-dag": (torch_dag.CONFIG, torch_dag.MODULES_FILE),
    "ptdeco": (ptdeco.CONFIG, ptdeco.WEIGHTS),
    "timm": ("model.safetensors",),
}
"""Format → the files that a checkpoint consists of, that with the weights last."""
_READERS: Mapping[str, Callable[[Path, str, Entry | None, Base | None, bool], tuple[nn.Module, Description]]] = {
    "torch-dag": _torch_dag,
    "ptdeco": _ptdeco,
    "timm": _timm,
}
