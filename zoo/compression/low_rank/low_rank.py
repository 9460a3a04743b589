"""Low rank: each layer becomes two thinner ones, by the directions that the model's prediction depends on.

A layer y = W x + b of m outputs and n inputs (k·k·n of a convolution) becomes B A x + b' of rank k:

1. statistic — `fisher.spectra`: one forward and one backward pass over calibration images for all layers together
   gives, in closed form, E_k, D_k and tail(k), the loss of every rank in nats at the model's output, doubled;
2. criterion — `allocation`: one budget for all layers, of each the rank that minimises ½ tail(k) + λ cost(k), dense
   where that is cheaper; λ is found by bisection;
3. edit — A = E_k W, B = D_k where z is the output, A = E_k, B = W D_k where it is the input; b' keeps the mean output:

    b' = b + (W − B A) E[x]

   A layer without a bias that a batch norm alone reads is given one, which the norm's mean takes up at the end;

4. correction — `least_squares`: with the dense and the factored model side by side, one pass collects for all layers
   what their second factors miss of the dense outputs where all layers before are factored too; least squares add it
   to B, a quarter of the layers at a time and as far as the divergence of the predictions falls.
   Then `repair` gives its outputs, and what batch norms read, the dense mean and variance back where that is nearer;
5. step — `kfac.newton_`: one solve for all second factors together takes the divergence of the predictions itself down.

There are no labels, no rates and no random batches, and no rank is tried out. With G = I, μ = 0 and without 4 and 5 the
factors are those of AFM (Yu, Wu, AAAI 2023) and of the truncated SVD of W C^½ (Chen et al., "DRONE", NeurIPS 2021).

Cost for each calibration batch, where a forward pass of the dense model is one, of the factored model a share s, and a
backward pass to activations alone about as much again: 1 + draws for the statistic, 5 + 13 s for the correction,
1 + 3 s for the repair, and 5 s for each step.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression import Algorithm, Given
from zoo.compression.activations import outputs_of
from zoo.compression.calibration import dealt
from zoo.compression.channels.analysis import analyse, exported
from zoo.compression.low_rank.allocation import allocate_ranks, choice
from zoo.compression.low_rank.factorable import chosen, factorable
from zoo.compression.low_rank.fisher import MAX_STATISTICS, Spectrum, spectra
from zoo.compression.low_rank.kfac import mean_divergence, newton_
from zoo.compression.low_rank.least_squares import correct_
from zoo.compression.repair import calling, located, repair, watch
from zoo.declarations import Count, Whole, validate
from zoo.errors import BudgetError, DataError, StructureError
from zoo.measurement.divergence import Divergence, kl
from zoo.measurement.macs import measure
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Rank
from zoo.structure.tensors import tensors_of

logger = logging.getLogger(__name__)

PARTS = 4  # that layers are corrected in: of those corrected together each makes up for the same error
LENGTHS = (1.0, 0.5)  # of a part's correction, tried


@dataclass(frozen=True)
class LowRank:
    """How layers are factored.

    Args:
        round_to: ranks are multiples of it, which kernels like; layers of small full rank take an eighth of that.
        ridge: nats for each output's own variance that are added to the Fisher information, as a share of their mean.
        smoothing: share of the prediction that is spread evenly over the classes, so that images of which the model
            is sure count too.
        draws: of random signs in the place of labels for each batch; each costs a backward pass.
        damping: γ of the correction and of the steps, as a share of the mean square of each that a second factor reads.
        steps: of all second factors together.
        seed: of the random signs.
        exclude: layers that stay dense, as in `exclusion`.
        max_bytes: of a pass's covariances; more are collected in several passes. Activations come on top.
    """

    round_to: Count = 8
    ridge: Annotated[float, Meta(ge=1e-9, le=1e3)] = 0.1
    smoothing: Annotated[float, Meta(ge=0, le=1)] = 0.05
    draws: Count = 1
    damping: Annotated[float, Meta(ge=1e-9, le=1e9)] = 0.1
    steps: Count = 1
    seed: Whole = 0
    exclude: str | Sequence[str] = ()
    max_bytes: Count = MAX_STATISTICS

    def __post_init__(self) -> None:
        validate(self, "low_rank", BudgetError)


def low_rank(
    model: nn.Module,
    batches: Sequence[Tensor],
    budget: Budget,
    how: LowRank | None = None,
    divergence: Divergence = kl,
) -> tuple[Factor, dict[str, Tensor]]:
    """Factor the layers of a model to a budget.

    Layers that can't be factored without breaking their parents are left alone, and so are those whose signal doesn't
    vary or doesn't reach the prediction.

    Args:
        model: a classifier in eval mode; left as it was.
        batches: calibration images [B, C, H, W]; some hundred images are enough.
        budget: shares of its macs, and of its params where given, that stay.
        how: the declaration; None takes its defaults.
        divergence: of logits from the dense model's, by which corrections are taken or left; it is logged in the end.

    Returns:
        The edit, and path → tensor of the factored model, on the CPU.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
        StructureError: the model doesn't give logits, or is in train mode.
        UnknownName: `exclude` names no layer.
    """
    how = how or LowRank()
    if model.training:
        raise StructureError("low_rank: the model is in train mode, where looking would change it; call eval()")
    if sum(map(len, batches)) < 2:
        raise DataError(f"calibration: {sum(map(len, batches))} images; pass at least two, some hundred are better")
    batches = dealt(batches)
    paths = chosen(model, factorable(model, batches[0][:2]), how.exclude, "low_rank")
    normalised = _normalised(model, paths, batches[0][:2])
    dense = _biased(model, normalised)
    layers: dict[str, nn.Linear | nn.Conv2d] = {path: dense.get_submodule(path) for path in paths}  # type: ignore[misc]
    known = _spectra(dense, layers, batches, how)
    choices = {path: choice(layers[path], spectrum, how.round_to) for path, spectrum in known.items()}
    counts = measure(model, tuple(batches[0].shape[1:]))
    ranks = allocate_ranks(choices, counts.macs, counts.params, budget)
    edit = Factor({path: Rank(rank) for path, rank in ranks.items() if rank})
    factored = _factored(dense, edit, known)
    if edit.layers:
        nats = _mended_(dense, factored, list(edit.layers), batches, how, divergence)
        logger.info("low_rank: %d layers factored, kl to dense %.4g nats", len(edit.layers), nats)
    tensors = {path: tensor.detach().to("cpu", copy=True) for path, tensor in tensors_of(factored).items()}
    for path, mean in normalised.items():
        bias = tensors.pop(f"{path}.1.bias" if path in edit.layers else f"{path}.bias")
        tensors[mean] = (tensors[mean].double() - bias.double()).to(tensors[mean].dtype)
    return edit, tensors


def _spectra(
    dense: nn.Module, layers: Mapping[str, nn.Linear | nn.Conv2d], batches: Sequence[Tensor], how: LowRank
) -> dict[str, Spectrum]:
    known = spectra(
        dense,
        layers,
        batches,
        ridge=how.ridge,
        smoothing=how.smoothing,
        draws=how.draws,
        seed=how.seed,
        max_bytes=how.max_bytes,
    )
    if layers and not known:
        raise DataError("calibration: no layer's signal varies and reaches the prediction; pass images that differ")
    return known


def _normalised(model: nn.Module, paths: Sequence[str], image: Tensor) -> dict[str, str]:
    """Layers without a bias whose outputs a batch norm alone reads → the path of the norm's running mean."""
    bare = [path for path in paths if model.get_submodule(path).bias is None]
    if not bare or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return {}
    try:
        followed = analyse(exported(model, image), model).normalised
    except StructureError:  # it can't be exported: who reads what isn't known
        return {}
    return {path: followed[path] for path in bare if path in followed}


def _biased(model: nn.Module, normalised: Mapping[str, str]) -> nn.Module:
    """The same function with a bias of zero in each of these layers: a shift that the norm's mean can take up."""
    biased = copy.deepcopy(model) if normalised else model
    for path in normalised:
        layer: Any = biased.get_submodule(path)
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    return biased


def spectral_factors(layer: nn.Linear | nn.Conv2d, spectrum: Spectrum, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two layers that stand in for one.

    Args:
        layer: W [m, n] or [m, n, k, k].
        spectrum: of the layer.
        rank: between the two.

    Returns:
        A [rank, n] or [rank, n, k, k], B [m, rank] or [m, rank, 1, 1], and the shift (W − B A) E[x] of the bias [m], in
        double precision.
    """
    weight = layer.weight.detach().cpu()
    W, E, D = weight.double().flatten(1), spectrum.encoder[:rank], spectrum.decoder[:, :rank]
    lost = spectrum.mean - D @ (E @ spectrum.mean)
    A, B, shift = (E, W @ D, W @ lost) if spectrum.inputs else (E @ W, D, lost)
    # Each direction's scale shared by both, as half precision and later training like it.
    scale = (B.norm(dim=0) / A.norm(dim=1).clamp(min=1e-300)).clamp(min=1e-300).sqrt()
    A, B = A * scale[:, None], B / scale
    shapes = ((rank, *weight.shape[1:]), (len(W), rank, *(1 for _ in weight.shape[2:])))
    return A.reshape(shapes[0]).to(weight.dtype), B.reshape(shapes[1]).to(weight.dtype).contiguous(), shift


@torch.random.fork_rng(devices=[])  # new layers draw values, which are written over
def _factored(model: nn.Module, edit: Factor, known: Mapping[str, Spectrum]) -> nn.Module:
    """A copy of the model with its factors."""
    factored = copy.deepcopy(model)
    edit.apply_(factored)
    for path, rank in edit.layers.items():
        layer: Any = model.get_submodule(path)
        A, B, shift = spectral_factors(layer, known[path], rank.rank)
        pair: Any = factored.get_submodule(path)
        with torch.no_grad():
            pair[0].weight.copy_(A)
            pair[1].weight.copy_(B)
            if layer.bias is not None:
                pair[1].bias.copy_(layer.bias.double() + shift.to(layer.bias.device))
    return factored


def _mended_(
    model: nn.Module,
    factored: nn.Module,
    paths: Sequence[str],
    batches: Sequence[Tensor],
    how: LowRank,
    divergence: Divergence,
) -> float:
    """Correct, repair and step; the divergence that is left."""
    wanted = list(outputs_of(model, batches))
    _correct_(model, factored, paths, batches, wanted, how, divergence)
    _repair_(model, factored, paths, batches, divergence)
    seconds, nats = [factored.get_submodule(f"{path}.1") for path in paths], float("inf")
    for _ in range(how.steps):
        _, nats = newton_(factored, seconds, batches, wanted, how.damping, how.seed, divergence)
    return nats


def _correct_(
    model: nn.Module,
    factored: nn.Module,
    paths: Sequence[str],
    batches: Sequence[Tensor],
    wanted: Sequence[Tensor],
    how: LowRank,
    divergence: Divergence,
) -> None:
    """Correct one part of the layers after the other, by that length which takes the divergence down most, or not."""
    nats = mean_divergence(wanted, outputs_of(factored, batches), divergence)
    for part in range(PARTS):
        chunk = paths[len(paths) * part // PARTS : len(paths) * (part + 1) // PARTS]
        parameters = [p for path in chunk for p in factored.get_submodule(f"{path}.1").parameters()]
        old = best = [p.detach().clone() for p in parameters]
        correct_(model, factored, chunk, batches, how.damping, how.max_bytes)
        new = [p.detach().clone() for p in parameters]
        for length in LENGTHS:
            there = [torch.lerp(a, b, length) for a, b in zip(old, new, strict=True)]
            _put_(parameters, there)
            if (now := mean_divergence(wanted, outputs_of(factored, batches), divergence)) < nats:
                nats, best = now, there
        _put_(parameters, best)


def _put_(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _repair_(
    model: nn.Module, factored: nn.Module, paths: Sequence[str], batches: Sequence[Tensor], divergence: Divergence
) -> None:
    """Move what the second factors put out and the batch norms read back to the dense model's mean and variance."""
    named = ((model, {path: path for path in paths}), (factored, {path: f"{path}.1" for path in paths}))
    places, cut = (located(each, layers, batches[0][:2]) for each, layers in named)
    dense, held = watch(calling(model, places), tensors_of(model), batches), tensors_of(factored)
    repaired = repair(calling(factored, cut), cut, held, batches, dense, lambda q, p: float(divergence(q, p).mean()))
    _put_(list(held.values()), list(repaired.values()))


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    assert given.budget is not None
    how = replace(given.how, seed=given.seed)
    edit, tensors = low_rank(given.model, given.batches, given.budget, how, given.divergence)
    return given.edited(edit), tensors


ALGORITHM = Algorithm(LowRank, run)
