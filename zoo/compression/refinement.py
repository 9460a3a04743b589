"""Refinement: distillation on the calibration images alone, after any method.

What is fitted layer by layer isn't best end to end. A few hundred steps of AdamW bring the outputs q of the smaller
model nearer to the dense model's p, and what its layers read nearer to what they read there:

    L = D(p, q) + 1/|layers| Σ_l E|x_l − x̂_l|² / Var(x_l),

x_l being what layer l reads in the dense model, x̂_l in the smaller one, where both are as wide. The outputs for some
hundred images say little about so many weights; what layers read says more, as each position counts. Both models are
shown the same images, shifted and mirrored at random. A learning rate is a share: rows of weights and biases count in
units of their own, so that it makes no difference whether batch norms are folded.

Whether it helps is seen on images held back, one in four. The weights that stay are those of the pass over the others
after which D was least there, and those from before if it never was less. Batch norms keep their statistics, masked
weights their zeros. No labels are needed.

Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015); Romero et al., "FitNets: Hints for
Thin Deep Nets" (ICLR 2015); Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (CVPR
2022), for showing both the same views.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from zoo.compression.activations import hooked, outputs_of, wide
from zoo.measurement.divergence import Divergence, divergence
from zoo.structure.tensors import tensors_of
from zoo.training.distillation import Batch, Step
from zoo.training.schedule import Machine, Schedule
from zoo.training.trainer import train

SCHEDULE = Schedule(batch_size=16, lr=1e-4, warmup=0.1, weight_decay=0.0)
SHIFT = 8  # of an image's side, the part by which it is shifted at most
TINY = 1e-12


class Relative(nn.Module):
    """A model whose parameters are trained in units of their own; batch norms and dropout stay in eval mode.

    Args:
        model: in eval mode; the same tensors are trained only as they are counted here.
        units: path → unit of a parameter, of a shape that goes with its own; zero where it stays zero. Parameters
            without a unit stay as they are.
    """

    def __init__(self, model: nn.Module, units: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["model"] = model  # past nn.Module, which would train it
        self.units, held = dict(units), tensors_of(model)
        self.values = nn.ParameterList(held[path].detach() / unit.clamp(min=TINY) for path, unit in units.items())

    def tensors(self) -> dict[str, Tensor]:
        """Path → what the parameter is by now."""
        pairs = zip(self.units.items(), self.values, strict=True)
        return {path: value * unit.to(value.device) for (path, unit), value in pairs}

    def forward(self, images: Tensor) -> Tensor:
        """What the model puts out for images [B, C, H, W]."""
        images = images.to(self.values[0].device)
        outputs: Tensor = functional_call(self.__dict__["model"].to(images.device), self.tensors(), (images,))
        return outputs


@torch.enable_grad()
def refine_(
    model: nn.Module,
    dense: nn.Module,
    shown: Sequence[Tensor],
    held: Sequence[Tensor],
    steps: int,
    *,
    far: Divergence = divergence,
    seed: int = 0,
    machine: Machine | None = None,
) -> tuple[float, float]:
    """Distil a dense model into a smaller one, where that brings it nearer.

    Args:
        model: the smaller one, in eval mode; changed in place.
        dense: what it was made from, in eval mode; left as it was.
        shown: images to learn from, in batches [B, C, H, W].
        held: others, which tell what it has learned.
        steps: of the optimiser.
        far: D.
        seed: of order and views.
        machine: how training runs here.

    Returns:
        The mean D on the images held back, before and after, in nats.

    Raises:
        DataError: the loss isn't finite.
        KeyboardInterrupt: Ctrl-C, after the step under way.
        MissingExtra: accelerate isn't installed.
    """
    teacher, learner = (_frozen(each) for each in (dense, model))
    student = Relative(learner, units_of(learner, held[0]))
    wanted = torch.cat([*outputs_of(teacher, held)])
    before = least = float(far(torch.cat([*outputs_of(learner, held)]), wanted).mean())
    best: Mapping[str, Tensor] = {}

    def evaluate() -> Mapping[str, float]:
        nonlocal least, best
        nats = float(far(torch.cat([*outputs_of(student, held)]).to(wanted), wanted).mean())
        if nats < least:
            least, best = nats, {path: tensor.detach().clone() for path, tensor in student.tensors().items()}
        return {"nats": nats}

    images = torch.cat([*shown])
    schedule = replace(SCHEDULE, epochs=steps, steps=steps, batch_size=min(len(images), SCHEDULE.batch_size))
    loader = partial(_loader, images, schedule.batch_size, seed)
    step = _step(learner, teacher, shared(learner, teacher, held[0]), far)
    machine = replace(machine or Machine(), channels_last=True)  # a third faster on a CPU too
    train(student, step, loader, schedule, seed=seed, evaluate=evaluate, progress="calibrate", machine=machine)
    evaluate()
    with torch.no_grad():
        for path, tensor in best.items():
            model.get_parameter(path).copy_(tensor)
    return before, least


def units_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Units of a model's parameters: of rows of weights their root mean square, of biases the deviation of outputs.

    What is zero of a weight has the unit zero.

    Args:
        model: in eval mode.
        images: some that it takes [B, C, H, W].
    """
    units, held = dict[str, Tensor](), tensors_of(model)

    def deviation(path: str, module: Any, args: Any, y: Tensor) -> None:
        rows = y.movedim(1, -1) if y.ndim == 4 and y.shape[1] == len(module.bias) else y
        units[f"{path}.bias"] = rows.flatten(0, -2).std(0).clamp(min=TINY)

    biased = {path: module for path, module in model.named_modules() if f"{path}.bias" in held}
    handles = [module.register_forward_hook(partial(deviation, path)) for path, module in biased.items()]
    with hooked(handles), torch.no_grad():
        model(images)
    for path, weight in model.named_parameters():
        if weight.ndim > 1:
            rms = weight.flatten(1).square().mean(1).sqrt().clamp(min=TINY)
            units[path] = rms.view(-1, *(1 for _ in weight.shape[1:])) * (weight != 0)
    return {path: unit.detach() for path, unit in units.items()}


def shared(model: nn.Module, dense: nn.Module, images: Tensor) -> list[str]:
    """Paths of layers that read as many channels in a smaller model as in the dense one.

    Args:
        model: the smaller one.
        dense: what it was made from.
        images: some that both take [B, C, H, W].
    """
    layers = [path for path, module in dense.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    known = {path for path, _ in model.named_modules()}
    both = [path for path in layers if path in known]
    with torch.no_grad(), reading(model, both) as ours, reading(dense, both) as theirs:
        model(images)
        dense(images)
    return [path for path in both if path in ours and path in theirs and ours[path].shape == theirs[path].shape]


def views(images: Tensor) -> Tensor:
    """Images shifted at random by whole pixels, mirrored beyond their edges, and every second one mirrored.

    Nothing is interpolated: a model that learned from blurred images would be worse at sharp ones.

    Args:
        images: [B, C, H, W].
    """
    down, right = (_shifted(size, len(images)) for size in images.shape[2:])
    right = torch.where(torch.rand(len(images), 1) < 0.5, right.flip(1), right)
    at = (down[:, :, None] * images.shape[3] + right[:, None, :]).flatten(1).to(images.device)
    return images.flatten(2).gather(2, at[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def _shifted(size: int, count: int) -> Tensor:
    """Of each of so many images, which row or column stands at each place [count, size]."""
    most = size // SHIFT
    at = (torch.arange(size) + torch.randint(-most, most + 1, (count, 1))).abs()
    return size - 1 - (size - 1 - at).abs()


@contextmanager
def reading(model: nn.Module, paths: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Path → what the module there has read last, for as long as the context is open."""
    read: dict[str, Tensor] = {}

    def look(path: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read[path] = args[0]

    with hooked(model.get_submodule(path).register_forward_pre_hook(partial(look, path)) for path in paths):
        yield read


def _frozen(model: nn.Module) -> nn.Module:
    """A copy, laid out as it trains."""
    found: nn.Module = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return found


def _step(learner: nn.Module, teacher: nn.Module, paths: Sequence[str], far: Divergence) -> Step:
    def step(student: nn.Module, batch: Batch, progress: float) -> Tensor:
        seen = views(batch[0]).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), reading(teacher.to(seen.device), paths) as theirs:
            target = teacher(seen)
        with reading(learner, paths) as ours:
            outputs = student(seen)
        noise = [_noise(ours[path], theirs[path]) for path in paths]
        return far(outputs, target).mean() + torch.stack(noise).mean()

    return step


def _noise(x: Tensor, target: Tensor) -> Tensor:
    """Noise to signal of a feature."""
    x, target = wide(x), wide(target)
    return F.mse_loss(x, target) / target.var().clamp(min=TINY)


def _loader(images: Tensor, batch_size: int, seed: int, epoch: int) -> DataLoader[Any]:
    """Of a pass over the images in an order of its own."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    data = TensorDataset(images, torch.zeros(len(images)))
    return DataLoader(data, batch_size, sampler=order.tolist(), drop_last=True)
