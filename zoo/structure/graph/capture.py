"""Capture: any module that torch.export takes, as a model that is rebuilt without its author's code.

It is exported and lifted to a graph whose layers have the module's own paths, so that state dicts and patterns of paths
mean the same; the tensors are shared with the module. What comes out is compared with the module: for one, two and five
images, for larger ones where it takes any size, and while training.
"""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from zoo.errors import FOREIGN, StructureError, first_line, in_one_line
from zoo.measurement.divergence import apart, leaves
from zoo.measurement.macs import noise_like, unchanged, weights_of
from zoo.printable import logger
from zoo.structure.graph.drops import Undropped, drop_rates
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import Graph, GraphModel, graph_module
from zoo.structure.graph.tracing import DIMS, export
from zoo.structure.tensors import assign_, tensors_of

log = logger(__name__)

BATCHES = (1, 2, 5)  # images
LARGER = 32  # pixels more on each side, which strides divide
CLOSE = 1e-5  # of the largest output; of less precise types some steps of theirs
STEPS = 8


def capture(model: nn.Module, image: Tensor) -> tuple[GraphModel, Graph]:
    """Write a module down as a graph.

    Args:
        model: any module of one tensor that returns a tensor, or tensors in a tuple or a dictionary; left as it was.
        image: images, or token ids, that it takes [B, C, H, W], of which the size counts and, for what they reach, the
            values.

    Returns:
        The graph's model in eval mode, with the module's own tensors, those that are computed from others as they are
        now; and the graph.

    Raises:
        StructureError: it can't be exported, does what a graph doesn't know, or computes something else than its graph:
            because of its state, of chance, of the batch's size or of the images' values.
    """
    name = type(model).__name__
    check_values(model)
    check_parameters(model)
    if not image.is_floating_point() and image.dtype != torch.int64:
        raise StructureError(
            f"{name}: the example is {image.dtype}, expected floats as images are, or token ids, int64"
        )
    if image.ndim != 4:
        raise StructureError(f"{name}: the example is {list(image.shape)}, expected images [B, C, H, W]")
    folded = fold(model)
    images = torch.cat([image[:1], noise_like(image, max(BATCHES))])[: max(BATCHES)]
    _check_steady(folded, images, name)
    with unchanged(folded):
        larger = _larger(folded, images, name)
        made, graph = _of_any_size(folded, images, name, (DIMS, (0,)) if larger else ((0,),))
        if larger and _off(larger[1], _tried(made, larger[0])) > _close(leaves(larger[1])):
            log.warning("%s: its graph takes images of %s alone", name, " x ".join(map(str, images.shape[2:])))
    _compare_training(folded, made, images, name)
    if unread := dict(folded.named_parameters()).keys() - dict(made.named_parameters()).keys():
        log.info("%s: %d parameters that no output needs are left out, such as %s", name, len(unread), min(unread))
    return made, graph


def fold(model: nn.Module) -> nn.Module:
    """The module with what is computed from other tensors (weight norm, masks of pruning) as a tensor of its own.

    Args:
        model: any; left as it was.

    Returns:
        The same module where nothing is computed so, else a copy.
    """
    found = [*_parametrized(model)]
    if not found:
        return model
    path, name, _ = found[0]
    log.info("%d tensors computed from others are folded, such as %s.%s", len(found), path, name)
    folded = _copied(model)
    for path, name, remove in found:
        remove(folded.get_submodule(path), name)
    return folded


def _copied(model: nn.Module) -> nn.Module:
    """A copy of a module, of which torch refuses one that keeps what it computed, such as the features of a batch."""
    held = [tensor for module in model.modules() for tensor in leaves(vars(module))]
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in held if not tensor.is_leaf})


def _parametrized(model: nn.Module) -> Iterator[tuple[str, str, Callable[[nn.Module, str], Any]]]:
    """Path, name of a tensor that is computed from others, and what makes it one of its own."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            names: Any = module.parametrizations
            yield from ((path, name, _unparametrize_) for name in names)
        for hook in module._forward_pre_hooks.values():
            kind = type(hook)
            if kind.__module__ == "torch.nn.utils.prune":
                yield path, str(getattr(hook, "_tensor_name")), prune.remove  # noqa: B009
            elif kind.__module__ == "torch.nn.utils.weight_norm":
                yield path, str(getattr(hook, "name")), torch.nn.utils.remove_weight_norm  # noqa: B009
            elif kind.__module__ == "torch.nn.utils.spectral_norm":
                yield path, str(getattr(hook, "name")), torch.nn.utils.remove_spectral_norm  # noqa: B009


def _unparametrize_(module: nn.Module, name: str) -> None:
    """All of a module at once; torch's own function takes the tensors from the class, which copies share."""
    if not parametrize.is_parametrized(module):
        return
    names: Any = module.parametrizations
    values = {each: nn.Parameter(getattr(module, each).detach().clone()) for each in names}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for each, value in values.items():
        module.register_parameter(each, value)


def check_values(model: nn.Module) -> None:
    """Check that a model's tensors have values, in one place.

    Raises:
        StructureError: they haven't.
    """
    name, tensors = type(model).__name__, tensors_of(model)
    devices = {str(tensor.device): path for path, tensor in tensors.items()}
    if "meta" in devices:
        raise StructureError(f"{name} has no values: {devices['meta']} is on the meta device")
    if len(devices) > 1:
        found = ", ".join(f"{path} on {device}" for device, path in devices.items())
        raise StructureError(f"{name} lies on {len(devices)} devices ({found}): move it to one, model.to('cpu')")


def check_parameters(model: nn.Module) -> None:
    """Check that a model has parameters.

    Raises:
        StructureError: it hasn't.
    """
    if not weights_of(model):
        raise StructureError(f"{type(model).__name__} has no parameters: there is nothing to store or to compress")


def _check_steady(model: nn.Module, images: Tensor, name: str) -> None:
    with unchanged(model):  # what the first call leaves behind is there at the second
        first, second = (leaves(_run(model, images, name)) for _ in range(2))
    if not first:
        raise StructureError(f"{name} returns no tensor: expected one, or several in a tuple or a dictionary")
    if any(each.isnan().any() for each in first):
        raise StructureError(f"{name} gives what is no number for an image of noise: load the weights anew")
    if apart(second, first) > _close(first):
        raise StructureError(
            f"{name} gives something else for the same images at the second call: it keeps a state or draws numbers in "
            f"eval mode, which a graph can't; make the outputs depend on the images alone"
        )


def _of_any_size(
    model: nn.Module, images: Tensor, name: str, tried: Sequence[Sequence[int]]
) -> tuple[GraphModel, Graph]:
    """The model and the graph, with as many sizes left open as the module allows, of those that are tried."""
    refused: StructureError | None = None
    for dims in tried:
        try:
            graph, made = _lifted(model, images[:2], dims)
            _compare(model, made, images, name)
            return made, graph
        except StructureError as error:
            said = first_line(error)
            refused = error if said.startswith(name) else StructureError(f"{name}: {said}")
    assert refused is not None
    raise refused


def _lifted(model: nn.Module, images: Tensor, dims: Sequence[int]) -> tuple[Graph, GraphModel]:
    program = export(model, images, dims)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    graph, tensors = lift(program, {**program.constants, **own})  # by every name, as the program has them
    made = graph_module(graph, type(model).__name__)
    assert isinstance(made, GraphModel)
    assign_(made, tensors, type(model).__name__)
    for path, parameter in made.named_parameters():
        parameter.requires_grad_(own[path].requires_grad)
    return graph, made


def _compare(model: nn.Module, made: nn.Module, images: Tensor, name: str) -> None:
    for count in BATCHES:
        expected, found = _run(model, images[:count], name), _tried(made, images[:count])
        off = _off(expected, found)
        if off > _close(leaves(expected)):
            words = "what it computes depends on the batch's size" if count != 2 else "a state or the images' values"
            raise StructureError(
                f"{name}: its graph gives something else for {count} images (by {off:.2g} of the largest output): "
                f"{words}; a graph can't do that"
            )


def _larger(model: nn.Module, images: Tensor, name: str) -> tuple[Tensor, Any] | None:
    """Larger images and what the module gives for them; None where it refuses them: tracing takes minutes to see it."""
    larger = nn.functional.pad(images[:2].double(), (0, LARGER, 0, LARGER), mode="replicate").to(images)
    try:
        return larger, _run(model, larger, name)
    except StructureError:
        return None


def _compare_training(model: nn.Module, made: nn.Module, images: Tensor, name: str) -> None:
    """Say where the module does something else while training, which its graph doesn't."""
    both = [_copied(each).train() for each in (model, made)]
    for module in (module for each in both for module in each.modules()):  # whose draws differ from library to library
        vars(module).update({rate: 0.0 for rate in drop_rates(module)})
    outputs, moved = list[Any](), list[list[Tensor]]()
    with torch.no_grad(), contextlib.suppress(*FOREIGN), torch.random.fork_rng(devices=[]), Undropped():
        for each in both:
            torch.manual_seed(0)
            before = [(held, held.clone()) for held in each.buffers() if held.is_floating_point()]
            outputs.append(each(images.clone()))
            moved.append(sorted((now for now, was in before if not now.equal(was)), key=_order))
        if _off(*outputs) > 1e-4 or apart(*map(_joined, moved)) > 1e-4:
            log.warning("%s does something else while training; its graph trains what it does in eval mode", name)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(1), *(each.flatten() for each in tensors)])


def _order(tensor: Tensor) -> tuple[Any, ...]:
    return (*tensor.shape, float(tensor.double().sum()))


def _run(model: nn.Module, images: Tensor, name: str) -> Any:
    seeded = torch.random.fork_rng(devices=[images.device] * images.is_cuda)
    shape = " x ".join(map(str, images.shape))
    with in_one_line(f"{name} doesn't run on {shape}"), torch.no_grad(), seeded:
        return model.eval()(images.clone())  # some write over them


def _tried(made: nn.Module, images: Tensor) -> Any:
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # where fx prints what it raises too
            return made(images.clone())
    except FOREIGN as error:
        log.debug("the graph doesn't run on %s: %s", list(images.shape), first_line(error))
        return None


def _off(expected: Any, found: Any) -> float:
    """How far outputs are apart; infinite where their keys aren't alike."""
    keys = [[*each] if isinstance(each, Mapping) else None for each in (expected, found)]
    if isinstance(expected, Mapping):
        keys[0] = [key for key, each in expected.items() if each is not None]
    if keys[0] != keys[1]:
        return float("inf")
    return apart(found, expected)


def _close(outputs: Sequence[Tensor]) -> float:
    kinds = [torch.finfo(each.dtype).eps for each in outputs if each.is_floating_point()]
    return max(CLOSE, STEPS * max(kinds, default=0.0))
