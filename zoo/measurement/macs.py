"""What a model costs: parameters and multiply-accumulates, counted without computing anything."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.errors import StructureError, in_one_line
from zoo.printable import logger

log = logger(__name__)

WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "zoo.onnx.backend.Backend": "model",
}
"""Classes that compute what the model in them computes → the attribute that holds it."""


@dataclass(frozen=True)
class Counts:
    """What one model costs.

    Args:
        params: elements of its parameters, shared ones once; of an integer model, of what they became.
        macs: multiply-accumulates of one image: convolutions and matrix products, attention's included; norms and
            elementwise operations count nothing.
        kmapp: 2·macs/(1000·H·W), torch-dag's unit.
        input: channels, height, width.
    """

    params: int
    macs: int
    kmapp: float
    input: tuple[int, int, int]


def measure(model: nn.Module, input: Sequence[int] | None = None) -> Counts:
    """Count a model's parameters and multiply-accumulates.

    The forward pass runs on the meta device, so it needs neither memory nor time; the model is left as it was.

    Args:
        model: any module that takes one batch of images, on any device, the meta device included.
        input: channels, height, width; None takes what `model.pretrained_cfg` says.

    Returns:
        The counts.

    Raises:
        StructureError: the input size isn't known, or the model refuses it.

    >>> measure(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 10)).macs == 8 * 3 * 9 * 100
    True
    """
    from torch.utils.flop_counter import FlopCounterMode  # with triton, which whoever only loads a model does without

    model = unwrapped(model)
    # The fused attention kernels differ in what they are counted as; the plain one is two matrix products everywhere.
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        channels, height, width = forward_on_meta(model, input)
    macs = counter.get_total_flops() // 2
    params = sum(held.numel() for held in weights_of(model).values())
    return Counts(params, macs, 2 * macs / (1000 * height * width), (channels, height, width))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by their paths, shared ones once, and what integer layers have of these, as buffers."""
    whole = {
        path: held
        for path, held in model.named_buffers()
        if path.rpartition(".")[2] in ("weight", "bias") and not held.is_floating_point()
    }
    return {**dict(model.named_parameters()), **whole}


def like_images(model: nn.Module) -> Tensor:
    """Make an empty tensor of the type, and on the device, of the images, or token ids, that a model takes."""
    floats = (each.new_empty(0) for each in model.parameters() if each.is_floating_point())
    place = next((each.device for each in model.buffers()), torch.device("cpu"))
    taken = next(floats, torch.empty(0, device=place))
    return taken if vocab_size(model) is None else taken.to(torch.int64)


def vocab_size(model: nn.Module) -> int | None:
    """How many token ids a model of texts knows, as its `pretrained_cfg` says; None of a model of images.

    A text is like an image of one channel and one row, whose pixels are ids: int64 [B, 1, 1, T], each from 0 to one
    less than so many.
    """
    return (getattr(model, "pretrained_cfg", None) or {}).get("vocab_size")


def noise(model: nn.Module, batch: int, seed: int = 0, size: Sequence[int] | None = None) -> Tensor:
    """Draw images of noise [B, C, H, W] as a model takes them, or of a model of texts, any token ids.

    Args:
        model: with `pretrained_cfg`.
        batch: B.
        seed: of what is drawn.
        size: channels, height and width; None takes the model's own.
    """
    last, taken = (vocab_size(model) or 1) - 1, like_images(model)
    return noise_like(taken.new_full((1, *(size or input_size(model))), last), batch, seed)


def noise_like(image: Tensor, batch: int, seed: int = 0) -> Tensor:
    """Draw noise of an image's size and type [B, C, H, W]; of token ids, others that are no larger."""
    shape, generator = (batch, *image.shape[1:]), torch.Generator().manual_seed(seed)
    if image.is_floating_point():
        return torch.randn(shape, generator=generator).to(image)
    return torch.randint(int(image.max()) + 1, shape, generator=generator).to(image)


def meta_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without values."""
    return {path: each.detach().to("meta") for path, each in (*model.named_parameters(), *model.named_buffers())}


def forward_on_meta(
    model: nn.Module, input: Sequence[int] | None = None, on_meta: Mapping[str, Tensor] | None = None
) -> tuple[int, int, int]:
    """Run a model on one image without computing anything, for a mode around the call to watch.

    Args:
        model: any module that takes one batch of images, on any device; run in eval mode and left as it was.
        input: channels, height, width; None takes what `model.pretrained_cfg` says.
        on_meta: its `meta_tensors`, where whoever watches must know them.

    Returns:
        Channels, height, width.

    Raises:
        StructureError: the input size isn't known, or the model refuses it.
    """
    if input is None:
        config = getattr(model, "pretrained_cfg", None)
        if not config or config.get("input_size") is None:
            raise StructureError("measure: the model names no input size; pass input=(channels, height, width)")
        input = config["input_size"]
    if len(input) != 3:
        raise StructureError(f"measure: input is {tuple(input)}, expected (channels, height, width)")
    channels, height, width = (int(size) for size in input)
    on_meta = meta_tensors(model) if on_meta is None else on_meta
    image = torch.empty(1, channels, height, width, device="meta", dtype=like_images(model).dtype)
    with in_one_line(f"measure: the model refuses an input of {tuple(input)}"), unchanged(model), torch.no_grad():
        torch.func.functional_call(model, dict(on_meta), (image,))
    return channels, height, width


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that wrappers such as DataParallel, averages and `torch.compile` hold.

    Raises:
        StructureError: it is no model.
    """
    if not isinstance(model, nn.Module):
        name = model if isinstance(model, str) else "digits_cnn"  # type: ignore[unreachable]
        raise StructureError(f"expected a model, found {type(model).__name__}: pass one, e.g. zoo.load({name!r})")
    while (held := WRAPPERS.get(f"{type(model).__module__}.{type(model).__qualname__}")) is not None:
        log.info("a %s wraps the model: taking what it holds", type(model).__name__)
        model = getattr(model, held)
    return model


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model takes, as its `pretrained_cfg` says.

    Raises:
        StructureError: it doesn't say.
    """
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise StructureError(f"{type(model).__name__} names no input size; set model.pretrained_cfg['input_size']")
    channels, height, width = size
    return channels, height, width


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode for as long as the context is open, then as they were.

    Taken back are mode flags, and what a forward pass leaves behind: some of timm's attention keeps a tensor for each
    device in a dict, or grows a buffer.
    """
    modules = [module for model in models for module in model.modules()]
    attributes = [d for module in modules for d in (vars(module), *vars(module).values()) if type(d) is dict]
    before = [dict(held) for held in attributes]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for held, was in zip(attributes, before, strict=True):
            held.update(was)
            for added in held.keys() - was.keys():
                del held[added]
