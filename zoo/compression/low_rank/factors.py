"""Factors: which layers can become two in sequence, what the two are called, and how far outputs move.

A layer y = W x + b with W (m × n) becomes y = B (A x) + b with A (k × n) and B (m × k). Of a convolution one factor
keeps the kernel (`Rank.spatial`): the first, with A (k × n·kh·kw), or the last, with B (m × k·kh·kw).

What the methods that cut ranks share stands here: the principal directions of a layer's outputs,

    E[y yᵀ] = U Λ Uᵀ  (y without the bias),   W_k = U_k U_kᵀ W,   A = U_kᵀ W,   B = U_k,

of which the k with the largest eigenvalues keep most of y, and the noise-to-signal ratio.

Source: Yu, Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!" (AAAI 2023), section 3.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoo.compression.activations import Draw, observe, rows, wide
from zoo.compression.exclusion import excluded
from zoo.errors import DataError, StructureError
from zoo.structure.plan import Factor, Rank
from zoo.structure.tensors import tensors_of

EPSILON = 1e-3  # of the source's noise-to-signal ratio


def factorable(model: nn.Module, image: Tensor) -> list[str]:
    """Paths of the layers that `Factor` can replace, in the model's order; found by running the model once.

    A layer is left out where two layers couldn't stand for it: it is grouped or transposed, computes something else
    than its class says (a standardised weight, padding to "same" by timm), shares a parameter, isn't called, or others
    read what two in sequence don't have (`F.linear(x, self.qkv.weight)` in timm's beit, eva and swinv2).

    Args:
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = Counter(p for m in modules.values() for p in m._parameters.values() if p is not None)
    uses = Counter(modules.values())
    layers = {
        path: layer
        for path, layer in modules.items()
        if path and _plain(layer) and uses[layer] == 1 and all(owners[p] == 1 for p in layer.parameters())
    }
    alone = {path: _Alone(layer) for path, layer in layers.items()}
    places = {path: (modules[path.rpartition(".")[0]], path.rpartition(".")[2]) for path in layers}
    try:
        for path, (parent, name) in places.items():
            setattr(parent, name, alone[path])
        with torch.no_grad():
            model(image)
    finally:
        for path, (parent, name) in places.items():
            setattr(parent, name, layers[path])
    return [path for path, each in alone.items() if each.called and not each.asked]


class _Alone(nn.Sequential):
    """A layer in sequence with nothing: it has no more of a layer than two in sequence, and notes who asks for more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.called = self.asked = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        self.asked |= len(args) != 1 or bool(kwargs)
        return self[0](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._modules.get("0"), name)
        self.asked = True
        return value


def _plain(layer: Any) -> bool:
    kind = type(layer)
    if isinstance(layer, nn.Linear):
        computes = kind.forward is nn.Linear.forward
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        computes = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    else:
        return False
    weight = layer._parameters.get("weight")
    return computes and weight is not None and weight.is_floating_point()


def chosen(model: nn.Module, paths: Iterable[str], exclude: str | Sequence[str], method: str) -> list[str]:
    """Those paths that aren't excluded.

    Raises:
        UnknownName: `exclude` names no module of the model.
    """
    gone = excluded(model, exclude, method)
    return [path for path in paths if path not in gone]


def matrices(model: nn.Module, image: Tensor, exclude: str | Sequence[str], method: str) -> list[str]:
    """Those factorable layers, but the excluded, that multiply each position by one matrix: Linear and 1 × 1.

    Args:
        model: in eval mode; left as it was.
        image: images that it takes [B, C, H, W].
        exclude: as in `exclusion`.
        method: that is asked, for the message.

    Raises:
        UnknownName: `exclude` names no module of the model.
    """
    layers = {path: model.get_submodule(path) for path in chosen(model, factorable(model, image), exclude, method)}
    return [path for path, layer in layers.items() if getattr(layer, "kernel_size", (1, 1)) == (1, 1)]


def grows(layer: Any, rank: Rank) -> bool:
    """Whether the two layers would have at least as many params, or as many macs, as the one.

    The last factor alone has a stride where it keeps the kernel: the first then runs on every input position.
    """
    m, n = layer.weight.shape[:2]
    kernel, stride = layer.weight[0, 0].numel(), 1
    first, last = rank.rank * n, rank.rank * m
    if isinstance(layer, nn.Conv2d) and rank.spatial == "last":
        last, stride = last * kernel, layer.stride[0] * layer.stride[1]
    else:
        first *= kernel
    return bool(first * stride + last >= m * n * kernel)


def pair(layer: nn.Module, rank: Rank) -> nn.Sequential:
    """The two layers that a plan puts in a layer's place, with random values."""
    holder = nn.Sequential(layer)
    Factor({"0": rank}).apply_(holder)
    factors = holder[0]
    assert isinstance(factors, nn.Sequential)
    return factors


def factored(layer: Any, A: Tensor, B: Tensor, path: str, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of the two layers that take a layer's place, by name.

    Args:
        layer: the one replaced, a Linear or a Conv2d with W [m, n, ...].
        A: first factor [k, n] or, where it keeps the kernel, [k, n, kh, kw] or [k, n·kh·kw].
        B: last factor [m, k] or, where it keeps the kernel, [m, k, kh, kw] or [m, k·kh·kw].
        path: of the layer.
        bias: of the last factor [m]; None takes the layer's own. A layer without a bias gets none.

    Returns:
        `path.0.weight`, `path.1.weight` and `path.1.bias`, contiguous, in the layer's type, on the CPU.
    """
    weight, own = layer.weight, layer.bias
    (m, n), k = weight.shape[:2], len(A)
    if isinstance(layer, nn.Conv2d):
        A, B = A.reshape(k, n, -1), B.reshape(m, k, -1)
        A, B = (f.reshape(*f.shape[:2], *(layer.kernel_size if f.shape[2] > 1 else (1, 1))) for f in (A, B))
    named = {f"{path}.0.weight": A, f"{path}.1.weight": B}
    if own is not None:
        named[f"{path}.1.bias"] = own if bias is None else bias
    return {
        name: value.detach().to("cpu", weight.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, value in named.items()
    }


def replaced(model: nn.Module, factors: Mapping[str, Tensor], paths: Collection[str]) -> dict[str, Tensor]:
    """Path → tensor of the factored model, on the CPU: its own tensors, of the layers at `paths` the factors."""
    gone = {f"{path}.{name}" for path in paths for name in ("weight", "bias")}
    kept = {path: t.detach().cpu().clone() for path, t in tensors_of(model).items() if path not in gone}
    return {**kept, **factors}


def nsr(noisy: Tensor, signal: Tensor, channel: int) -> Tensor:
    """Noise-to-signal ratio, the mean over channels c of E[(ŷ_c − y_c)²] / (Var[y_c] + 10⁻³).

    Args:
        noisy: ŷ, any shape.
        signal: y, of the same shape; its variance is the unbiased one.
        channel: the dimension of c; all others are averaged over.
    """
    noisy, signal = (wide(y.movedim(channel, -1).flatten(0, -2)) for y in (noisy, signal))
    return ((noisy - signal).square().mean(0) / (signal.var(0) + EPSILON)).mean()


def dense_logits(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """The model's logits for each batch, [B, classes]: what a factored layer must not move.

    Args:
        model: in eval mode.
        batches: calibration images [B, C, H, W].

    Raises:
        DataError: there are no batches, one has fewer than two images (which have no variance), the logits aren't
            finite, or are the same for every image.
        StructureError: the outputs aren't logits [B, classes].
    """
    if not batches:
        raise DataError("calibration: no images; pass at least one batch")
    for number, batch in enumerate(batches):
        if len(batch) < 2:
            raise DataError(f"calibration: batch {number} has {len(batch)} image(s), expected at least 2 (a variance)")
    with torch.no_grad():
        logits: list[Any] = [model(batch) for batch in batches]
    for y in logits:
        if not isinstance(y, Tensor) or y.ndim != 2:
            shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise StructureError(f"{type(model).__name__}: the outputs are {shape}, expected logits [B, classes]")
        if not torch.isfinite(y).all():
            raise DataError("calibration: the model's outputs aren't finite; check the images and the model")
    everything = torch.cat(logits)
    if torch.equal(everything, everything[:1].expand_as(everything)):
        raise DataError("calibration: the model's outputs are the same for every image; pass images that differ")
    return [y.float() for y in logits]


def directions(model: nn.Module, path: str, batches: Sequence[Tensor]) -> Tensor | None:
    """Principal directions of a layer's outputs: the eigenvectors U [m, m] of E[y yᵀ], largest eigenvalue first.

    Args:
        model: in eval mode.
        path: of a Linear or a 1 × 1 convolution.
        batches: calibration images [B, C, H, W].

    Returns:
        U in double precision, on the CPU; None where every output is zero, so that there are no directions.

    Raises:
        DataError: an output isn't finite.
    """
    second: list[Tensor] = []

    def look(path: str, layer: Any, x: Tensor, y: Tensor, draw: Draw) -> None:
        y = rows(layer, y.detach())
        if layer.bias is not None:
            y = y - layer.bias
        second.append((y.T @ y).double().cpu() / len(y))

    with torch.no_grad():
        observe(model, {path: model.get_submodule(path)}, batches, after=look)
    covariance = torch.stack(second).mean(0)
    if not torch.isfinite(covariance).all():
        raise DataError(f"calibration: the output of {path} isn't finite; check the images and the model")
    if not covariance.any():
        return None
    U: Tensor = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return U


def factors(layer: Any, U: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A = U_kᵀ W [k, n] and B = U_k [m, k], in double precision, on the CPU."""
    W = layer.weight.detach().flatten(1).cpu().double()
    return U[:, :k].T @ W, U[:, :k]


def moved(
    model: nn.Module,
    path: str,
    U: Tensor,
    k: int,
    batches: Sequence[Tensor],
    logits: Sequence[Tensor],
    rise: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[float, float]:
    """How far the logits move with W_k = U_k U_kᵀ W in the place of a layer's W, the mean of the batches.

    Args:
        model: in eval mode; left as it was.
        path: of the layer.
        U: its directions [m, m].
        k: the rank.
        batches: images [B, C, H, W].
        logits: of the model as it is, y, for each batch [B, classes].
        rise: the number of a batch, y_k, y → another figure.

    Returns:
        NSR(y_k, y), and the other figure.
    """
    A, B = factors(layer := model.get_submodule(path), U, k)
    weight: Any = layer.weight
    W_k = {f"{path}.weight": (B @ A).reshape(weight.shape).to(weight)}
    noise = risen = 0.0
    with torch.no_grad():
        for number, (batch, y) in enumerate(zip(batches, logits, strict=True)):
            y_k = functional_call(model, W_k, (batch,)).float()
            noise += float(nsr(y_k, y, -1)) / len(batches)
            risen += float(rise(number, y_k, y)) / len(batches)
    return noise, risen
