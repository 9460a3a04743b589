"""Repair: the channels of a cut model get the mean and the variance back that they have in the dense one.

What cuts and fits leave over adds up from layer to layer: means wander, variances shrink. Of the signal y that a layer
with a bias puts out, or that a batch norm reads (there about its running mean), of mean μ and variance σ² on the same
images in both models,

    y ← a y + c,   a = σ_dense / σ_cut,   c = μ_dense − a μ_cut

is written into the layer's weight and bias, or into the running statistics of the norm. These move as far as the cut
has changed what they measure, so it makes no difference whether they were frozen, folded into the layer before or
measured on other images. Each signal is measured with all before it repaired, in one pass: within a batch it is
repaired as the batch's own statistics say, and those of all batches together are written. The cost is one forward pass
of each model.

Source: Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair" (ICLR 2023), section 3.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx import Node

from zoo.compression.activations import Draw, observe, outputs_of, wide
from zoo.compression.channels import cutting, reference
from zoo.compression.channels.cutting import Kept, Traced
from zoo.compression.channels.trace import argument
from zoo.measurement.divergence import as_one

aten = torch.ops.aten

REPAIRED = 12  # passes over images, at most, that signals are repaired on
POSITIONS = 1024  # of an image, from which about so many moments are taken
DEAD = 1e-10  # share of a mean square that a variance must exceed to be more than rounding
LAYERS = {aten.linear.default: -1, aten.conv1d.default: 1, aten.conv2d.default: 1, aten.conv2d.padding: 1}
"""Operation of a layer → the dimension of its channels."""

Look = Callable[[str, Tensor, int, Tensor | None], Tensor]
"""A signal's name, itself, the dimension of its channels, the running mean of its norm → what goes on in its stead."""
Run = Callable[[Mapping[str, Tensor], Tensor, Look], Tensor]
"""Path → tensor of a model, a batch [B, C, H, W], what signals are shown to → the model's output."""


@dataclass(frozen=True)
class Place:
    """Where a signal can be scaled and shifted.

    Args:
        scale: path of the layer's weight, or of the norm's running variance.
        shift: path of the layer's bias, or of the norm's running mean.
        eps: of the norm; None where it is a layer.
    """

    scale: str
    shift: str
    eps: float | None = None


@dataclass(frozen=True, eq=False)
class Watched:
    """What a model gave.

    Args:
        output: for all images.
        moments: for each batch, of each signal by name: E[y] and E[y²] of its channels [2, C], in double precision.
    """

    output: Tensor
    moments: Sequence[Mapping[str, Tensor]]


def watch(run: Run, tensors: Mapping[str, Tensor], batches: Sequence[Tensor], dense: Watched | None = None) -> Watched:
    """Run a model and look at its signals.

    Args:
        run: the model.
        tensors: its tensors, by path.
        batches: images [B, C, H, W].
        dense: what the dense model gave for them, by which signals are repaired as they pass; None lets them pass.
    """
    outputs, moments = [], []
    for number, batch in enumerate(batches):
        own: dict[str, Tensor] = {}
        look = partial(_look, own, None if dense is None else dense.moments[number])
        with torch.no_grad():
            outputs.append(run(tensors, batch, look))
        moments.append(own)
    return Watched(torch.cat(outputs).double().cpu(), moments)


def outputs(run: Run, tensors: Mapping[str, Tensor], batches: Sequence[Tensor]) -> Tensor:
    """What a model puts out.

    Args:
        run: the model.
        tensors: its tensors, by path.
        batches: images [B, C, H, W].
    """
    return torch.cat([*outputs_of(lambda batch: run(tensors, batch, lambda name, y, dim, origin: y), batches)]).cpu()


def repaired(
    run: Run, places: Mapping[str, Place], tensors: Mapping[str, Tensor], batches: Sequence[Tensor], dense: Watched
) -> dict[str, Tensor]:
    """The tensors of a cut model, repaired.

    Args:
        run: the cut model.
        places: of its signals, by name.
        tensors: path → tensor of the cut model.
        batches: calibration images [B, C, H, W].
        dense: what the dense model gave for them, of the channels that stay.

    Returns:
        The tensors, those that were written anew on the device of the old ones.
    """
    images = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
    passed = watch(run, tensors, batches, dense)
    written = dict(tensors)
    for name in passed.moments[0]:
        both = (torch.stack([moments[name] for moments in each.moments], 2) for each in (dense, passed))
        ours, theirs = (each @ (images / images.sum()).to(each) for each in both)
        written |= _written(written, places[name], *change(ours, theirs))
    return written


def change(dense: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, a and c, of each channel [C]; one that doesn't vary in either model is shifted alone.

    Args:
        dense: E[y] and E[y²] of the dense model's channels [2, C].
        cut: of the cut model's.
    """
    variances = [square - mean.square() for mean, square in (dense, cut)]
    alive = [variance > DEAD * moments[1] for variance, moments in zip(variances, (dense, cut), strict=True)]
    a = torch.where(alive[0] & alive[1], variances[0] / variances[1].clamp(min=1e-300), 1.0).sqrt()
    return a, dense[0] - a * cut[0]


def _look(
    own: dict[str, Tensor], dense: Mapping[str, Tensor] | None, name: str, y: Tensor, dim: int, origin: Tensor | None
) -> Tensor:
    own[name] = _moments(y, dim, origin)
    return y if dense is None else _passed(y, dim, origin, change(dense[name], own[name]))


def _moments(y: Tensor, dim: int, origin: Tensor | None) -> Tensor:
    y = wide(_thinned(y) if y.ndim == 4 and dim == 1 else y)
    rows = y.flatten(0, -2) if dim % y.ndim == y.ndim - 1 else y.movedim(dim, 1)
    mean, variance = torch.batch_norm_update_stats(rows, None, None, 0.0)  # var_mean takes three times as long
    mean = mean.double() if origin is None else mean.double() - origin.double()
    return torch.stack([mean, variance.double() + mean.square()])


def _thinned(y: Tensor) -> Tensor:
    """Every so many rows and columns of a feature map; an odd number, as strides before it are even."""
    step = int((y.shape[-2:].numel() / POSITIONS) ** 0.5) | 1
    return y[:, :, ::step, ::step]


def _passed(y: Tensor, dim: int, origin: Tensor | None, by: tuple[Tensor, Tensor]) -> Tensor:
    a, c = by
    c = c if origin is None else c + (1 - a) * origin.double()
    shape = [-1 if d == dim % y.ndim else 1 for d in range(y.ndim)]
    return y * a.to(y).view(shape) + c.to(y).view(shape)


def _written(tensors: Mapping[str, Tensor], place: Place, a: Tensor, c: Tensor) -> dict[str, Tensor]:
    scale, shift = (tensors[path].detach().double() for path in (place.scale, place.shift))
    a, c = a.to(scale), c.to(scale)
    if place.eps is None:
        pair = a.view(-1, *(1 for _ in scale.shape[1:])) * scale, a * shift + c
    else:  # (y + c/a − mean) / √((variance + ε) / a²) is the norm of a y + c
        pair = ((scale + place.eps) / a.square() - place.eps).clamp(min=0), shift - c / a
    return {path: t.to(tensors[path].dtype) for path, t in zip((place.scale, place.shift), pair, strict=True)}


def places(traced: Traced) -> dict[str, Place]:
    """Where the signals of a program can be scaled and shifted, by the names of its nodes."""
    program, paths, known = traced.program, traced.paths, dict[str, Place]()
    for node in program.graph.nodes:
        if node.target == aten.batch_norm.default and not argument(node, "training", 5, False):
            mean, variance = (paths.get(each, "") for each in node.args[3:5])
            known[node.name] = Place(variance, mean, float(argument(node, "eps", 7, 1e-5)))
        elif node.target in LAYERS:
            weight, bias = (paths.get(argument(node, name, at, None), "") for at, name in ((1, "weight"), (2, "bias")))
            known[node.name] = Place(weight, bias)
    uses = Counter({path: len(node.users) for node, path in paths.items()})
    return {name: place for name, place in known.items() if uses[place.scale] == uses[place.shift] == 1}


def narrowed(dense: Watched, kept: Kept) -> Watched:
    """What the dense model gave, of the channels that stay."""
    stays: dict[str, Any] = {}
    for node in kept.traced.program.graph.nodes:
        if node.name in dense.moments[0]:
            dim = LAYERS.get(node.target, 1)
            mask = kept.mask(kept.traced.of(node)[dim])
            stays[node.name] = slice(None) if mask is None else mask
    return Watched(
        dense.output, [{name: moments[:, stays[name]] for name, moments in each.items()} for each in dense.moments]
    )


def running(kept: Kept) -> Run:
    """A program with channels cut, as what runs it.

    Args:
        kept: what stays.
    """
    traced = kept.traced
    program, known = cutting.cut_program(kept), places(traced)

    def run(tensors: Mapping[str, Tensor], batch: Tensor, look: Look) -> Tensor:
        held = {path: tensor.to(batch.device) for path, tensor in {**traced.program.constants, **tensors}.items()}
        how = _Showing(program.graph_module, known, look)
        return as_one(reference.run_program(program, traced.paths, held, batch, how))

    return run


def located(model: nn.Module, layers: Mapping[str, str], image: Tensor) -> dict[str, Place]:
    """Where the signals of a module can be scaled and shifted: batch norms by their paths, layers by given names.

    Args:
        model: dense or factored, in eval mode.
        layers: name → path of layers; those with a bias are places.
        image: a batch that it takes [B, C, H, W]; what is called twice for it is no place.
    """
    known = {
        path: Place(f"{path}.running_var", f"{path}.running_mean", module.eps)
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    for name, path in layers.items():
        if getattr(model.get_submodule(path), "bias", None) is not None:
            known[name] = Place(f"{path}.weight", f"{path}.bias")
    calls = Counter[str]()

    def count(name: str, y: Tensor, dim: int, origin: Tensor | None) -> Tensor:
        calls[name] += 1
        return y

    with torch.no_grad():
        calling(model, known)({}, image, count)
    return {name: place for name, place in known.items() if calls[name] == 1}


def calling(model: nn.Module, places: Mapping[str, Place]) -> Run:
    """A module, as what runs it.

    Args:
        model: in eval mode.
        places: of its signals, by name.
    """

    def run(tensors: Mapping[str, Tensor], batch: Tensor, look: Look) -> Tensor:
        def norm(name: str, module: Any, x: Tensor, draw: Draw) -> Tensor | None:
            return None if places[name].eps is None else look(name, x, 1, module.running_mean)

        def layer(name: str, module: nn.Module, x: Tensor, y: Tensor, draw: Draw) -> Tensor | None:
            return look(name, y, -1 if isinstance(module, nn.Linear) else 1, None) if places[name].eps is None else None

        modules = {name: model.get_submodule(place.shift.rpartition(".")[0]) for name, place in places.items()}
        outputs: list[Tensor] = []

        def call(batch: Tensor) -> None:
            outputs.append(as_one(functional_call(model, dict(tensors), (batch,))))

        observe(call, modules, [batch], before=norm, after=layer)
        return outputs[0]

    return run


class _Showing(fx.Interpreter):
    """Shows the signals at some places."""

    def __init__(self, module: fx.GraphModule, places: Mapping[str, Place], look: Look) -> None:
        super().__init__(module)
        self.places, self.look = places, look

    def run_node(self, node: Node) -> Any:
        """Run one node: what a norm reads and what a layer puts out is shown."""
        if node.name not in self.places:
            return super().run_node(node)
        if node.target in LAYERS:
            return self.look(node.name, super().run_node(node), LAYERS[node.target], None)
        (x, *rest), kwargs = self.fetch_args_kwargs_from_env(node)
        return self.call_function(node.target, (self.look(node.name, x, 1, rest[2]), *rest), kwargs)
