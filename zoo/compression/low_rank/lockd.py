"""Lockd: local knowledge distillation. Every layer gets two gated factors that learn its outputs; gates close.

For each layer y = f(x), a Linear or an ungrouped convolution with n inputs and m outputs, a pair A: n → r, B: r → m of
full rank r = min(m, n) is trained beside the frozen model, on the activations of the model itself:

1. statistic — ŷ = B(g ⊙ A(x)), with gates g_i = gumbel_softmax((s_i, 0), τ)₁ while s_i ≥ 0, else 0; how far it is from
   y is NSR(ŷ, y) (`factors.nsr`);
2. criterion — of the L layers together, with t = nsr_threshold,

       loss = 1/L Σ relu(NSR_l − t)/t  +  λ · 1/L Σ mean_i σ(s_li):

   a layer under its threshold pays only for open gates, so ranks shrink until NSR ≈ t. All layers learn at once and no
   error passes from one to the next;
3. edit — channels with s_i > 0 stay. A layer that keeps more than the share `proportion_threshold` stays dense, and
   so does one that would grow, or whose gates have all closed. Of a convolution's pair the first is 1 × 1 and the last
   keeps the kernel, stride, padding and dilation (`Rank.spatial` = "last").

Where this isn't the source: pairs start from the decomposition of the layer (below), or at random as there; never a
layer that grows; where all gates have closed, the source keeps a convolution's channel that closed last, which nothing
has trained since, and of a Linear none. The source trains by Adam; AdamW without weight decay, as in `SCHEDULE`, is the
same, but its learning rate here always falls along a cosine.

The start: with W flattened to [m·kh·kw, n] and C = E[x xᵀ] of its inputs, U are the left singular vectors of W C^½,
the largest first, A = Uᵀ W and B = U. For m ≥ n and for every Linear that pair is the layer itself.

Source: ptdeco (TCL Research Europe), `ptdeco.lockd` and the example of its vision trainer.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.compression import Algorithm, Given, Trained
from zoo.compression.activations import Draw, observe, rows
from zoo.compression.low_rank.factorable import chosen, factorable, grows, left_whole
from zoo.compression.low_rank.factors import dense_logits, factored, nsr, pair, replaced
from zoo.declarations import Count, Positive, validate
from zoo.errors import DataError, StructureError
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Rank
from zoo.training import checkpoint as states
from zoo.training.schedule import Machine, Schedule
from zoo.training.trainer import train

Start = Literal["decomposition", "random"]
SCHEDULE = Schedule(epochs=10, batch_size=128, lr=1e-3, weight_decay=0.0, clip=0.0)  # the source's, for ImageNet


@dataclass(frozen=True)
class Lockd:
    """How gates close.

    Args:
        nsr_threshold: t, the noise-to-signal ratio that each layer may have.
        proportion_weight: λ, what an open gate costs.
        initial_logit: the initial s.
        temperature: τ of the gates.
        proportion_threshold: the largest share of channels that a factored layer keeps.
        start: pairs start from the layer's decomposition, or at random.
        start_steps: batches that the decomposition looks at.
        exclude: paths, patterns or words (`head`, `stem`) of layers that stay dense, as in `exclusion`.
        only: layers that alone may be factored, likewise; none means all.
    """

    nsr_threshold: Positive = 0.1
    proportion_weight: Positive = 1.0
    initial_logit: Positive = 3.0
    temperature: Positive = 0.5
    proportion_threshold: Positive = 0.8
    start: Start = "decomposition"
    start_steps: Count = 8
    exclude: str | Sequence[str] = ()
    only: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        validate(self, "lockd", DataError)


def lockd(
    model: nn.Module,
    data: Callable[[int], Any],
    how: Lockd | None = None,
    schedule: Schedule | None = None,
    *,
    seed: int = 0,
    state: Path | None = None,
    machine: Machine | None = None,
) -> tuple[Factor, dict[str, Tensor]]:
    """Learn the factors of all layers at once, and how many channels each needs.

    Args:
        model: a classifier; left as it was.
        data: epoch → loader of batches (images [B, C, H, W], labels), as `train` takes it; labels aren't looked at.
        how: the declaration; None takes its defaults.
        schedule: of the training; None takes `SCHEDULE`. Closing a gate moves s by 3, which Adam does in no fewer than
            3/lr steps.
        seed: of the gates, and of pairs that start at random.
        state: a file to resume from and to write to.
        machine: how training runs here.

    Returns:
        The edit, and path → tensor of the factored model, on the CPU.

    Raises:
        DataError: the images can't be used, the loss isn't finite, or the state is another run's.
        StructureError: the outputs aren't logits, or no layer can be factored.
        UnknownName: `exclude` or `only` names no layer.
        MissingExtra: accelerate isn't installed.
        StorageError: the state can't be written.
    """
    how, schedule = how or Lockd(), schedule or SCHEDULE
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    weight = next(frozen.parameters())
    batches = [images.to(weight.device, weight.dtype) for images, *_ in islice(data(0), how.start_steps)]
    dense_logits(frozen, batches)
    pairs = starting_pairs(frozen, batches[0], how, seed)
    if how.start == "decomposition":
        _decompose_(frozen, pairs, batches)
    student = Pairs(frozen, pairs, how)

    def step(student: nn.Module, batch: Sequence[Tensor], progress: float) -> Tensor:
        loss: Tensor = student(batch[0])
        return loss

    about = {"lockd": states.digest("lockd", how, frozen)} if state else {}
    train(student, step, data, schedule, seed=seed, state=state, about=about, progress="lockd", machine=machine)
    return _edit(model, pairs, list(student.logits), how)


def starting_pairs(model: nn.Module, image: Tensor, how: Lockd, seed: int = 0) -> dict[str, nn.Sequential]:
    """The pairs of all layers that can be factored, at full rank and at random, by path.

    Args:
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
        how: the declaration.
        seed: of their values.

    Raises:
        StructureError: no layer can be factored.
        UnknownName: `exclude` or `only` names no layer.
    """
    ranks = {path: _full(model.get_submodule(path)) for path in factorable(model, image)}
    ranks = {path: ranks[path] for path in chosen(model, ranks, how.exclude, how.only, "lockd")}
    if not ranks:
        raise StructureError(f"lockd: {type(model).__name__} has no layer that can be factored")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {path: pair(model.get_submodule(path), rank) for path, rank in ranks.items()}


def _full(layer: Any) -> Rank:
    return Rank(min(layer.weight.shape[:2]), "last" if isinstance(layer, nn.Conv2d) else "first")


class Pairs(nn.Module):
    """The pairs and gates of a frozen model's layers; its forward is the loss.

    Args:
        frozen: the model, neither trained nor part of the state.
        pairs: path → the two factors.
        how: the declaration.
    """

    def __init__(self, frozen: nn.Module, pairs: Mapping[str, nn.Sequential], how: Lockd) -> None:
        super().__init__()
        self.how = how
        self.pairs = nn.ModuleList(pairs.values())
        widths = [len(factors.get_parameter("0.weight")) for factors in pairs.values()]
        self.logits = nn.ParameterList(torch.full((r,), float(how.initial_logit)) for r in widths)
        self.ratios: list[Tensor] = []
        self.frozen: Any
        self.__dict__["frozen"] = frozen  # past nn.Module, which would make it a submodule
        for (path, factors), s in zip(pairs.items(), self.logits, strict=True):
            frozen.get_submodule(path).register_forward_hook(
                lambda f, args, y, factors=factors, s=s: self._observe(args[0], y, factors, s)
            )

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a batch of images [B, C, H, W]."""
        self.ratios.clear()
        self.frozen.to(images.device)(images)
        t = self.how.nsr_threshold
        excess = torch.stack([F.relu(ratio - t) / t for ratio in self.ratios]).mean()
        proportion = torch.stack([s.sigmoid().mean() for s in self.logits]).mean()
        self.ratios.clear()
        return excess + self.how.proportion_weight * proportion

    def _observe(self, x: Tensor, y: Tensor, factors: nn.Sequential, s: Tensor) -> None:
        channel = 1 if isinstance(factors[0], nn.Conv2d) else -1
        A, B = factors
        g = gates(s, self.how.temperature).to(x.dtype)
        z = A(x).movedim(channel, -1) * g
        self.ratios.append(nsr(B(z.movedim(-1, channel)), y, channel))


def gates(s: Tensor, temperature: float) -> Tensor:
    """Random gates g in 0..1 of logits s [r]; a gate whose logit is below zero is closed, and stays so.

    Source: Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax" (ICLR 2017), for two classes.
    """
    soft = F.gumbel_softmax(torch.stack([s, torch.zeros_like(s)], -1), temperature)[..., 0]
    return torch.where(s < 0, 0.0, soft)


def _decompose_(model: nn.Module, pairs: Mapping[str, nn.Sequential], batches: Sequence[Tensor]) -> None:
    """Give each pair the values A = Uᵀ W and B = U."""
    second: dict[str, Tensor] = {}

    def read(path: str, layer: nn.Module, x: Tensor, draw: Draw) -> None:
        x = rows(layer, x)
        products = (x.T @ x).double().cpu() / len(x) / len(batches)
        second[path] = second[path] + products if path in second else products

    with torch.no_grad():
        observe(model, {path: model.get_submodule(path) for path in pairs}, batches, before=read)
    for path, factors in pairs.items():
        layer: Any = model.get_submodule(path)
        (m, n), C, W = layer.weight.shape[:2], second[path], layer.weight.detach().cpu().double()
        if not (torch.isfinite(C).all() and torch.isfinite(W).all()):
            raise DataError(f"calibration: input or weight of {path} isn't finite; check the images and the model")
        jitter = 1e-6 * C.diagonal().mean().clamp(min=1e-12)  # so that no input is taken for absent
        power, V = torch.linalg.eigh(C + jitter * torch.eye(n, dtype=C.dtype))
        W = W.reshape(m, n, -1).movedim(2, 1).reshape(-1, n)
        r = min(m, n)
        U = torch.linalg.svd(W @ V * power.clamp(min=0).sqrt(), full_matrices=False).U[:, :r]
        B = U.reshape(m, -1, r).movedim(1, 2).flatten(1)
        for name, value in factored(layer, U.T @ W, B, "").items():
            factors.get_parameter(name[1:]).data.copy_(value)


def _edit(
    model: nn.Module, pairs: Mapping[str, nn.Sequential], logits: Sequence[Tensor], how: Lockd
) -> tuple[Factor, dict[str, Tensor]]:
    """Keep the open channels of each pair, and the dense layer where they are too many."""
    layers: dict[str, Rank] = {}
    tensors: dict[str, Tensor] = {}
    for (path, factors), s in zip(pairs.items(), logits, strict=True):
        layer = model.get_submodule(path)
        kept = (s > 0).nonzero().flatten()
        rank = Rank(len(kept), _full(layer).spatial)
        if not 0 < len(kept) / len(s) <= how.proportion_threshold or grows(layer, rank):
            continue
        A, B = (factors.get_parameter(f"{i}.weight").detach() for i in (0, 1))
        layers[path] = rank
        tensors |= factored(layer, A[kept], B[:, kept], path, factors[1].bias)  # type: ignore[arg-type]
    return Factor(layers), replaced(model, tensors, layers)


def trained(model: nn.Module, image: Tensor, how: Lockd) -> Trained:
    """The pairs of all layers, beside the frozen model."""
    frozen = copy.deepcopy(model).requires_grad_(False)
    return Trained(Pairs(frozen, starting_pairs(frozen, image, how), how), beside=True)


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    seed, state, machine = given.seed, given.state, given.machine
    edit, tensors = lockd(given.model, given.epoch, given.how, given.schedule, seed=seed, state=state, machine=machine)
    return given.edited(edit), tensors


ALGORITHM = Algorithm(Lockd, run, SCHEDULE, trained, whole=partial(left_whole, "lockd", True))
