"""Fisher: what each layer's signal looks like, and how much of it every rank loses, from one pass over images.

Of a layer y = W x + b the smaller side z is watched: z = x where a linear layer (or 1 x 1 convolution) has more outputs
than inputs, else z = W x. With the covariance C of z and the Fisher information G of the model's prediction about z,

    C = E[(z−μ)(z−μ)ᵀ],   G = Σ_positions E[g gᵀ],   g = Jᵀ u,   J = ∂logits/∂z,   E[u uᵀ] = F = diag(p) − p pᵀ

an error δ at z costs about ½ tr(G E[δ δᵀ]) nats. With G = L Lᵀ, of all maps of rank k the cheapest is

    z − μ → D_k E_k (z − μ),   E_k = U_kᵀ Lᵀ,   D_k = L⁻ᵀ U_k,   Lᵀ C L = U diag(λ) Uᵀ,   tail(k) = Σ_{j>k} λ_j

What a rank costs is told by other images than those that E_k and D_k are made of: directions that these lack cost
nothing on them, which in wide late layers are many. And there errors at the positions of an image go together: what
is pooled adds up. So of an error δ its mean over an image and the rest of it are charged apart,

    loss(k) = ½ tr(Ḡ E[δ̄ δ̄ᵀ]) + ½ tr(G̃ E[δ̃ δ̃ᵀ]),   δ̄ = mean over positions,   δ̃ = δ − δ̄,   δ = (1 − D_k E_k)(z − μ)

with Ḡ = E[(Σ g)(Σ g)ᵀ] and G̃ = E[Σ (g − ḡ)(g − ḡ)ᵀ]: the parts between images and within them.

One backward pass gives G for all layers: u of that covariance is made of random signs (`zoo.measurement.curvature`), so
labels need not be enumerated. Of outputs that aren't logits F is what their task's divergence bends by.

Sources: Yu, Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!" (AAAI 2023), for C alone;
Martens, "New Insights and Perspectives on the Natural Gradient Method" (JMLR 2020), section 9, for G and its factors.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compression.activations import Draw, observe, portions, rows, thinned
from zoo.compression.calibration import HELD_BACK
from zoo.errors import DataError
from zoo.measurement.curvature import CLASSES, Fisher
from zoo.measurement.divergence import as_one

LEAST = 1e-3  # of its loss on the images it is made of, that a rank costs: more of it is always worth something
STILL = 1e-12  # share of a mean square, or of the largest variance, that a variance must exceed
MAX_STATISTICS = 4 * 2**30  # of statistics held at once; a larger model is watched in several passes


@dataclass(frozen=True)
class Spectrum:
    """What a layer's smaller side z [r] looks like.

    Args:
        inputs: whether z is the layer's input; else it is its output without the bias.
        mean: μ [r]; zero where the layer has no bias that could take up a shift.
        values: λ [r], falling: nats of Kullback-Leibler divergence, doubled.
        encoder: E_r [r, r]; its first k rows are E_k.
        decoder: D_r [r, r]; its first k columns are D_k.
        loss: of each rank k = 0..r, in nats, on images held back.
        positions: outputs of the layer for one image, all its uses together.
    """

    inputs: bool
    mean: Tensor
    values: Tensor
    encoder: Tensor
    decoder: Tensor
    loss: Tensor
    positions: float


@dataclass
class _Sums:
    """What is added up of one layer, between images and within them; about `origin`, which keeps covariances exact."""

    origin: Tensor
    mean: Tensor
    between: Tensor
    within: Tensor
    pooled: Tensor
    spread: Tensor
    images: int = 0
    rows: int = 0
    positions: int = 0


def spectra(
    model: nn.Module,
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    batches: Sequence[Tensor],
    held: Sequence[Tensor],
    *,
    ridge: float,
    smoothing: float,
    draws: int,
    seed: int,
    max_bytes: int = MAX_STATISTICS,
    fisher: Fisher = CLASSES,
) -> dict[str, Spectrum]:
    """Collect the spectra of layers.

    Args:
        model: in eval mode; left as it was.
        layers: path → layer, those of `factorable`.
        batches: images [B, C, H, W].
        held: others, which tell the loss.
        ridge: nats for each output's own variance that are added to G, as a share of their mean.
        smoothing: share of the prediction p that is spread evenly over the classes.
        draws: of random signs for each batch, one backward pass each; of those held back four times as many.
        seed: of the random signs.
        max_bytes: of statistics held at once.
        fisher: the information of its outputs.

    Returns:
        Path → spectrum, in double precision on the CPU; without the layers whose signal doesn't vary or doesn't reach
        the prediction.

    Raises:
        DataError: an activation isn't finite.
        StructureError: the model's outputs aren't those that the information is of.
    """
    sides = {path: layer.weight.shape[1 if reads_inputs(layer) else 0] for path, layer in layers.items()}
    paths, size = list(layers), {path: 4 * 8 * side**2 for path, side in sides.items()}
    known: dict[str, Spectrum] = {}
    probes = partial(_probes, fisher, smoothing=smoothing)
    for portion in portions([[path] for path in paths], size, max_bytes):
        those = {path: layers[path] for path in paths[portion]}
        found = {
            path: _spectrum(path, layers[path], sums, sum(map(len, batches)), draws, ridge)
            for path, sums in _collect(model, those, batches, partial(probes, draws=draws), seed).items()
        }
        alive = {path: spectrum for path, spectrum in found.items() if spectrum is not None}
        means = {path: spectrum.mean for path, spectrum in alive.items()}
        those = {path: layers[path] for path in alive}
        more = partial(probes, draws=HELD_BACK * draws)
        for path, sums in _collect(model, those, held, more, seed, means).items():
            known[path] = replace(alive[path], loss=_loss(alive[path], sums, HELD_BACK * draws * sum(map(len, held))))
    return {path: known[path] for path in paths if path in known}


def reads_inputs(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer's input is its smaller side, and is one row for each output."""
    m, n = layer.weight.shape[:2]
    pointwise = isinstance(layer, nn.Linear) or (layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid"))
    return m > n and pointwise


def _smaller(layer: nn.Linear | nn.Conv2d, z: Tensor) -> Tensor:
    """Its smaller side, one row for each output position [rows, r]."""
    if isinstance(layer, nn.Conv2d) and reads_inputs(layer):
        z = z[..., :: layer.stride[0], :: layer.stride[1]]
    return rows(layer, z)


def _collect(
    model: nn.Module,
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    batches: Sequence[Tensor],
    probes: Callable[..., Iterator[Tensor]],
    seed: int,
    origins: Mapping[str, Tensor] | None = None,
) -> dict[str, _Sums]:
    """Sums of each layer, about given origins or about what it is for the first images."""
    sums: dict[str, _Sums] = {}
    numbers = count()

    def signal(path: str, z: Tensor, draw: Draw) -> Tensor:
        z = z.view_as(z)  # of its own: an input has other readers, and what is in place behind may not move the hook
        _add(sums, path, layers[path], z.detach(), draw, origins[path] if origins else None)
        if z.requires_grad:
            z.register_hook(partial(gradient, path, draw))
        return z

    def gradient(path: str, draw: Draw, g: Tensor) -> None:
        every = _smaller(layers[path], g)
        means, seen = _parted(every, draw)
        total = means * (len(every) / len(means))
        sums[path].pooled += (total.T @ total).double()
        sums[path].spread += (seen.T @ seen).double() * (len(every) / len(seen))

    def before(path: str, layer: Any, x: Tensor, draw: Draw) -> Tensor | None:
        return signal(path, x, draw) if reads_inputs(layer) else None

    def after(path: str, layer: Any, x: Tensor, y: Tensor, draw: Draw) -> Tensor | None:
        return None if reads_inputs(layer) else signal(path, y, draw)

    def run(batch: Tensor) -> None:
        images = batch.detach().clone().requires_grad_()
        outputs = as_one(model(images))
        for u in probes(outputs.detach().float(), seed=1_000_003 * seed + next(numbers)):
            if outputs.requires_grad:
                torch.autograd.grad(outputs, images, u.to(outputs.dtype), retain_graph=True, allow_unused=True)

    with torch.enable_grad():
        observe(run, layers, batches, before=before, after=after)
    return sums


def _add(
    sums: dict[str, _Sums], path: str, layer: nn.Linear | nn.Conv2d, z: Tensor, draw: Draw, origin: Tensor | None
) -> None:
    """Add what a layer's smaller side is for some images."""
    every = _smaller(layer, z)
    if layer.bias is not None and not reads_inputs(layer):
        every = every - layer.bias.detach()
    if path not in sums:
        origin = every.mean(0) if origin is None and layer.bias is not None else origin
        origin = torch.zeros_like(every[0]) if origin is None else origin.to(every)
        empty = partial(torch.zeros, dtype=torch.float64, device=z.device)
        r = len(origin)
        sums[path] = _Sums(origin, empty(r), empty(r, r), empty(r, r), empty(r, r), empty(r, r))
    of = sums[path]
    means, seen = _parted(every - of.origin, draw)
    of.mean += means.double().sum(0)
    of.between += (means.T @ means).double()
    of.within += (seen.T @ seen).double()
    of.images += len(means)
    of.rows += len(seen)
    of.positions += len(every)


def _parted(every: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Of a signal [rows, r] its mean over each image [images, r], and what is beside it of the rows looked at."""
    images = len(draw.images) if len(every) % len(draw.images) == 0 else 1
    each = every.view(images, -1, every.shape[1])
    means = each.mean(1)
    return means, thinned((each - means[:, None]).flatten(0, 1), draw)


def _probes(fisher: Fisher, outputs: Tensor, smoothing: float, draws: int, seed: int) -> Iterator[Tensor]:
    """Random u at the smoothed prediction; the same for every pass over the batches."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield fisher.probe(outputs, outputs, smoothing, generator)


def _spectrum(
    path: str, layer: nn.Linear | nn.Conv2d, sums: _Sums, images: int, draws: int, ridge: float
) -> Spectrum | None:
    """What sums over images tell of a layer but for its loss."""
    second = (sums.between / sums.images + sums.within / sums.rows).cpu()
    fisher = (sums.pooled * (sums.images / sums.positions) + sums.spread).cpu() / (images * draws)
    if not (torch.isfinite(second).all() and torch.isfinite(fisher).all()):
        raise DataError(f"calibration: what {path} sees isn't finite; check the images and the model")
    mean = sums.mean.cpu() / sums.images
    if layer.bias is None:
        C, mean = second, torch.zeros_like(mean)
    else:
        C = second - torch.outer(mean, mean)
        mean = mean + sums.origin.cpu().double()
    variance = C.diagonal()
    nats = float((fisher.diagonal() * variance).mean())
    if float(variance.sum()) <= STILL * float((variance + mean.square()).sum()) or not 0 < nats < math.inf:
        return None
    W = layer.weight.detach().cpu().double().flatten(1)
    even = _inverse(variance).diag()
    if reads_inputs(layer):
        gram = W.T @ (_inverse((W @ C * W).sum(1))[:, None] * W)  # a ridge that is even at the output
        even = gram / (gram.diagonal() * variance).mean().clamp(min=1e-300) + 1e-3 * even
    fisher += ridge * nats * even
    L = torch.linalg.cholesky(fisher)
    values, U = torch.linalg.eigh(L.T @ C @ L)
    values, U = values.flip(0).clamp(min=0), U.flip(1)
    decoder = torch.linalg.solve_triangular(L.T, U, upper=True)
    positions = sums.positions / images
    return Spectrum(reads_inputs(layer), mean, values, U.T @ L.T, decoder, torch.zeros(0), positions)


def _loss(spectrum: Spectrum, sums: _Sums, probed: int) -> Tensor:
    """The loss of each rank, from sums about the spectrum's mean over images that were probed so often altogether."""
    within, between = sums.within / sums.rows, sums.between / sums.images
    loss = torch.zeros(len(spectrum.values) + 1, dtype=torch.float64)
    for C, G in ((between, sums.pooled / probed), (within, sums.spread / probed)):
        # 1 − D_k E_k = Σ_{j>k} d_j e_jᵀ, so that all ranks at once are sums over the ends of one product
        shared = (spectrum.encoder @ C.cpu() @ spectrum.encoder.T) * (spectrum.decoder.T @ G.cpu() @ spectrum.decoder)
        loss[:-1] += shared.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0) / 2
    tail = torch.cat([spectrum.values.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])
    return loss.maximum(LEAST * tail / 2)


def _inverse(variance: Tensor) -> Tensor:
    """1 / variance of each entry; of one that doesn't vary that of the one that varies most."""
    most = float(variance.max())
    return 1 / torch.where(variance > STILL * most, variance, most)
