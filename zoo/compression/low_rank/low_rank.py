"""Low rank: each layer becomes two thinner ones, by the directions that the model's prediction depends on.

A layer y = W x + b of m outputs and n inputs (k·k·n of a convolution) becomes B A x + b' of rank k. One calibration
image in four is held back: the others make factors, those held back tell what these are worth.

1. statistic — `fisher.spectra`: one forward and one backward pass over calibration images for all layers together
   gives, in closed form, E_k and D_k; another, over those held back, the loss of every rank in nats at the output;
2. criterion — `allocation`: one budget for all layers, of each the rank that minimises loss(k) + λ cost(k), dense where
   that is cheaper; λ is found by bisection;
3. edit — A = E_k W, B = D_k where z is the output, A = E_k, B = W D_k where it is the input; b' keeps the mean output:

    b' = b + (W − B A) E[x]

   A layer without a bias that a batch norm alone reads is given one, which the norm's mean takes up at the end;

4. repair — `repair` gives the outputs of second factors, and what batch norms read, the dense mean and variance back;
5. step — `kfac.newton_`: one solve for all second factors together takes the divergence of the predictions down.

Of 4 and 5 that length of the change is taken, whole, half, a quarter or none, after which the divergence is least on
the images held back, so neither takes the model further away. Second factors that are fitted by least squares to what
they read in the factored model come nearer on the images they are fitted to, and hardly or not on others.

There are no labels, no rates and no random batches, and no rank is tried out. With G = I, μ = 0 and without 4 and 5 the
factors are those of AFM (Yu, Wu, AAAI 2023) and of the truncated SVD of W C^½ (Chen et al., "DRONE", NeurIPS 2021).

Cost for each calibration batch, where a forward pass of the dense model is one, of the factored model a share s, and a
backward pass to activations alone about as much again: 1 + draws for the statistic, 1 + s for the repair of at most
twelve, 1 + 4 s for each step. Of those held back 1 + 4 draws, and 3 s for the repair and for each step.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn

from zoo.catalog.entry import Budget
from zoo.compression import Algorithm, Given
from zoo.compression.activations import outputs_of
from zoo.compression.calibration import judged
from zoo.compression.channels.analysis import analyse, exported
from zoo.compression.low_rank.allocation import allocate_ranks, choice, prior
from zoo.compression.low_rank.factorable import chosen, factorable, left_whole
from zoo.compression.low_rank.fisher import MAX_STATISTICS, Spectrum, spectra
from zoo.compression.low_rank.kfac import mean_divergence, newton_
from zoo.compression.repair import REPAIRED, calling, located, repaired, watch
from zoo.declarations import Count, Whole, validate
from zoo.errors import BudgetError, DataError, StructureError
from zoo.measurement.curvature import CLASSES, Fisher
from zoo.measurement.divergence import Divergence, kl
from zoo.measurement.macs import measure
from zoo.measurement.parts import macs_of
from zoo.printable import logger
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Rank
from zoo.structure.tensors import tensors_of

log = logger(__name__)

LENGTHS = (1.0, 0.5, 0.25)  # of a change, tried


@dataclass(frozen=True)
class LowRank:
    """How layers are factored.

    Args:
        round_to: ranks are multiples of it, which kernels like; layers of small full rank take an eighth of that.
        ridge: nats for each output's own variance that are added to the Fisher information, as a share of their mean.
        smoothing: share of the prediction that is spread evenly over the classes, so that images of which the model
            is sure count too.
        draws: of random signs in the place of labels for each batch, of those held back four times as many; each costs
            a backward pass.
        damping: γ of the steps, as a share of the mean square of each that a second factor reads.
        steps: of all second factors together.
        seed: of the random signs.
        exclude: paths, patterns or words (`head`, `stem`) of layers that stay dense, as in `exclusion`.
        only: layers that alone may be factored, likewise; none means all.
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
    only: str | Sequence[str] = ()
    max_bytes: Count = MAX_STATISTICS

    def __post_init__(self) -> None:
        validate(self, "low_rank", BudgetError)


def low_rank(
    model: nn.Module,
    batches: Sequence[Tensor],
    budget: Budget,
    how: LowRank | None = None,
    divergence: Divergence = kl,
    fisher: Fisher = CLASSES,
) -> tuple[Factor, dict[str, Tensor]]:
    """Factor the layers of a model to a budget.

    Layers that can't be factored without breaking their parents are left alone, and so are those whose signal doesn't
    vary or doesn't reach the prediction.

    Args:
        model: in eval mode; left as it was.
        batches: calibration images [B, C, H, W]; some hundred images are enough. Of fewer than 16 none are held back.
        budget: shares of its macs, and of its params where given, that stay.
        how: the declaration; None takes its defaults.
        divergence: of outputs from the dense model's, by which changes are taken or left; it is logged in the end.
        fisher: how it bends; both are of classes where nothing else is said.

    Returns:
        The edit, and path → tensor of the factored model, on the CPU.

    Raises:
        BudgetError: the budget can't be met.
        DataError: the calibration images can't be used.
        StructureError: the model's outputs aren't those that these are of, or it is in train mode.
        UnknownName: `exclude` or `only` names no layer.
    """
    how = how or LowRank()
    if model.training:
        raise StructureError("low_rank: the model is in train mode, where looking would change it; call eval()")
    if sum(map(len, batches)) < 2:
        raise DataError(f"calibration: {sum(map(len, batches))} images; pass at least two, some hundred are better")
    shown, held = judged(batches)
    paths = chosen(model, factorable(model, shown[0][:2]), how.exclude, how.only, "low_rank")
    normalised = _normalised(model, paths, shown[0][:2])
    dense = _biased(model, normalised)
    layers: dict[str, nn.Linear | nn.Conv2d] = {path: dense.get_submodule(path) for path in paths}  # type: ignore[misc]
    known = _spectra(dense, layers, shown, held, how, fisher)
    choices = {path: choice(layers[path], spectrum, how.round_to) for path, spectrum in known.items()}
    counts = measure(model, tuple(shown[0].shape[1:]))
    ranks = allocate_ranks(choices, counts.macs, counts.params, budget)
    edit = Factor({path: Rank(rank) for path, rank in ranks.items() if rank})
    factored = _factored(dense, edit, known)
    if edit.layers:
        nats = _mended_(dense, factored, list(edit.layers), shown, held, how, divergence, fisher)
        images = f"{sum(map(len, held))} images {'it was made by' if held is shown else 'held back'}"
        log.info("low_rank: %d layers factored, kl to dense %.4g nats on %s", len(edit.layers), nats, images)
    tensors = {path: tensor.detach().to("cpu", copy=True) for path, tensor in tensors_of(factored).items()}
    for path, mean in normalised.items():
        bias = tensors.pop(f"{path}.1.bias" if path in edit.layers else f"{path}.bias")
        tensors[mean] = (tensors[mean].double() - bias.double()).to(tensors[mean].dtype)
    return edit, tensors


def _spectra(
    dense: nn.Module,
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    shown: Sequence[Tensor],
    held: Sequence[Tensor],
    how: LowRank,
    fisher: Fisher,
) -> dict[str, Spectrum]:
    known = spectra(
        dense,
        layers,
        shown,
        held,
        ridge=how.ridge,
        smoothing=how.smoothing,
        draws=how.draws,
        seed=how.seed,
        max_bytes=how.max_bytes,
        fisher=fisher,
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
    shown: Sequence[Tensor],
    held: Sequence[Tensor],
    how: LowRank,
    divergence: Divergence,
    fisher: Fisher,
) -> float:
    """Change the factored model as far as it comes nearer to the dense one; the divergence on images held back."""
    wanted = list(outputs_of(model, held))

    def nats() -> float:
        return mean_divergence(wanted, outputs_of(factored, held), divergence)

    left = nats()
    newton = partial(newton_, divergence=divergence, fisher=fisher)
    for change_ in _changes(model, factored, paths, shown, how, newton):
        left = _nearer_(factored, change_, nats, left)
    return left


def _changes(
    model: nn.Module,
    factored: nn.Module,
    paths: Sequence[str],
    batches: Sequence[Tensor],
    how: LowRank,
    newton: Callable[..., None],
) -> Iterator[Callable[[], None]]:
    """What is tried in turn, each from where the one before has left the factored model."""
    yield partial(_repair_, model, factored, paths, batches[:REPAIRED])
    wanted, seconds = list(outputs_of(model, batches)), [factored.get_submodule(f"{path}.1") for path in paths]
    for _ in range(how.steps):
        yield partial(newton, factored, seconds, batches, wanted, how.damping, how.seed)


def _nearer_(model: nn.Module, change_: Callable[[], None], nats: Callable[[], float], least: float) -> float:
    """Change a model by that length of a change at which the divergence is least, if it falls; what it is then."""
    tensors = {path: tensor for path, tensor in tensors_of(model).items() if tensor.is_floating_point()}
    old, taken = {path: tensor.detach().clone() for path, tensor in tensors.items()}, 0.0
    change_()
    new = {path: tensor.detach().clone() for path, tensor in tensors.items()}

    def go_(length: float) -> None:
        _put_(tensors, {path: torch.lerp(old[path], new[path], length) for path in tensors})

    for length in LENGTHS:
        go_(length)
        if (now := nats()) < least:
            least, taken = now, length
    go_(taken)
    return least


def _put_(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for path, value in values.items():
            tensors[path].copy_(value)


def _repair_(model: nn.Module, factored: nn.Module, paths: Sequence[str], batches: Sequence[Tensor]) -> None:
    """Move what the second factors put out and the batch norms read back to the dense model's mean and variance."""
    named = ((model, {path: path for path in paths}), (factored, {path: f"{path}.1" for path in paths}))
    places, cut = (located(each, layers, batches[0][:2]) for each, layers in named)
    dense, tensors = watch(calling(model, places), tensors_of(model), batches), tensors_of(factored)
    _put_(tensors, repaired(calling(factored, cut), cut, tensors, batches, dense))


def run(given: Given) -> tuple[Description, Mapping[str, Tensor]]:
    """What `zoo.compress` calls."""
    assert given.budget is not None
    how = replace(given.how, seed=given.seed)
    edit, tensors = low_rank(given.model, given.batches, given.budget, how, given.divergence, given.fisher)
    return given.edited(edit), tensors


def rough(model: nn.Module, image: Tensor, how: LowRank) -> Callable[[float], nn.Module]:
    """A share of the macs → the model with layers factored to about one share of their ranks, at random."""
    paths = chosen(model, factorable(model, image), how.exclude, how.only, "low_rank")
    layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    macs, counts = macs_of(model, tuple(image.shape[1:])), measure(model, tuple(image.shape[1:]))
    choices = {
        path: prior(layer, macs[f"{path}.weight"] // layer.weight.numel(), how.round_to)
        for path, layer in layers.items()
    }

    @torch.random.fork_rng(devices=[])  # new layers draw values
    def at(share: float) -> nn.Module:
        ranks = allocate_ranks(choices, counts.macs, counts.params, Budget(share))
        smaller = copy.deepcopy(model)
        Factor({path: Rank(rank) for path, rank in ranks.items() if rank}).apply_(smaller)
        return smaller.eval()

    return at


ALGORITHM = Algorithm(LowRank, run, whole=partial(left_whole, "low_rank", True), rough=rough)
