"""The one door for pixels: whatever holds an image becomes the same image, upright, with a model's channels.

Data libraries hand over what is stored, never what they decode: `datasets` writes a JPEG anew, at quality 75, wherever
a stream's columns are renamed.

Alpha is dropped, as timm and torchvision do, palettes are looked up, CMYK is converted. More than eight bits become
eight by the first range of `RANGES` that holds all values of the image, else by the image's own extremes.
"""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from zoo.errors import DataError, first_line, require
from zoo.printable import printable

Pixels: TypeAlias = "Image.Image | str | os.PathLike[str] | bytes | Mapping[str, Any]"

RANGES: dict[str, tuple[float, ...]] = {  # mode → the largest values that mean white, smallest first
    "F": (1, 255, 65535),
    "I": (255, 65535),
    "I;16": (65535,),
    "I;16B": (65535,),
    "I;16L": (65535,),
    "I;16N": (65535,),
}
CHANNELS = ((), (1,), (3,), (4,))
DEEP_PNG = (65535,)  # which older Pillow gives the mode I


def decode(image: Pixels, mode: str = "RGB") -> Image.Image:
    """Read an image.

    Formula: for more than eight bits, v · 255 / white, rounded; white is 65535 of 16-bit images.

    Args:
        image: of PIL, a file's path or its bytes, or a row's value, which has `bytes` or `path`.
        mode: `RGB` or `L`.

    Returns:
        The image of that mode, as its EXIF orientation says that it stands.

    Raises:
        DataError: it can't be decoded; the message names the file or row.

    >>> decode(Image.new("I;16", (1, 1), 257 * 99), "L").getpixel((0, 0))
    99
    """
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(BytesIO(_content(image)))
        opened.load()
        if 0 in opened.size:
            raise ValueError("it has no pixels")
        return _of_mode(_upright(opened), mode)
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        raise DataError(f"{named(image)}: no image that can be decoded: {_reason(error)}") from None


def size_of(image: Pixels) -> tuple[int, int]:
    """Width and height of an image that stands upright, of which the header alone is read; errors as of `decode`."""
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(BytesIO(_content(image)))
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        raise DataError(f"{named(image)}: no image that can be decoded: {_reason(error)}") from None
    return opened.size[::-1] if turned in range(5, 9) else opened.size


def of_array(array: "NDArray[Any] | Tensor") -> Image.Image:
    """An image whose pixels lie in memory.

    Args:
        array: [H, W] or [H, W, C] of bytes; or a tensor [H, W] or [C, H, W] of bytes, or of floats in 0..1. C is 1, 3,
            or 4, of which the last is alpha.

    Raises:
        DataError: it is no such array.

    >>> of_array(np.full((2, 3, 3), 7, np.uint8)).size
    (3, 2)
    """
    pixels = _of_tensor(array.detach().cpu()) if isinstance(array, Tensor) else array
    if pixels.dtype != np.uint8 or not pixels.size or pixels.ndim not in (2, 3) or pixels.shape[2:] not in CHANNELS:
        raise DataError(
            "expected an array [H, W] or [H, W, 3] of bytes, or a tensor [3, H, W] of bytes or of 0..1, as before "
            f"any transform; found {list(array.shape)} of {str(array.dtype).removeprefix('torch.')}"
        )
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else np.ascontiguousarray(pixels))


def _of_tensor(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array, channels last, whose floats become bytes where they are in 0..1."""
    tensor = tensor.double() if tensor.is_floating_point() else tensor
    if tensor.is_floating_point() and tensor.numel() and 0 <= tensor.min() <= tensor.max() <= 1:
        tensor = (tensor * 255).round().byte()
    return np.asarray(tensor.movedim(0, -1) if tensor.ndim == 3 else tensor)


def mode_of(transform: Any) -> str | None:
    """The mode that a transform, or its first step, decodes to; None of one that begins otherwise."""
    if hasattr(transform, "mode"):
        return str(transform.mode)
    first: Any = next(iter(getattr(transform, "transforms", ())), None)
    return str(first.keywords["mode"]) if getattr(first, "func", None) is decode else None


def named(image: Any) -> str:
    """What an image is called in a message: its path, as far as it says."""
    if isinstance(image, Mapping):
        image = image.get("path") or "an image of a row"
    elif isinstance(image, Image.Image):
        image = getattr(image, "filename", "") or "an image"
    elif isinstance(image, bytes):
        image = f"an image of {len(image):,} bytes"
    return printable(str(image))


def placed(image: Any, number: int | str) -> Any:
    """A row's value whose name in a message tells the row, where it lies in no file of its own."""
    if not isinstance(image, dict) or image.get("bytes") is None:
        return image
    path = image.get("path")
    return {**image, "path": f"row {number} ({path})" if path else f"row {number}"}


def _content(image: Any) -> bytes:
    """The bytes of an image's file."""
    if isinstance(image, Mapping):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str) and "://" in image:  # a file of a stream
        with require("fsspec", "eval").open(image, "rb") as file:
            image = file.read()
    elif isinstance(image, str | os.PathLike):
        image = Path(image).read_bytes()
    if not isinstance(image, bytes):
        raise TypeError(f"expected a PIL image, a path, bytes or a row's value, found {type(image).__name__}")
    if not image:
        raise ValueError("it is empty")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged note beside whole pixels
        return image
    return ImageOps.exif_transpose(image) if turned in range(2, 9) else image


def _of_mode(image: Image.Image, mode: str) -> Image.Image:
    if whites := RANGES.get(image.mode):
        deep = image.mode == "I" and image.format == "PNG"
        image = Image.fromarray(_eight_bits(np.asarray(image), DEEP_PNG if deep else whites))
    if image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(values: NDArray[Any], whites: tuple[float, ...]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise ValueError("a value isn't finite")
    white = next((white for white in whites if low >= 0 and high <= white), None)
    start, span = (0.0, float(white)) if white else (low, high - low or 1.0)
    return np.rint((values.astype(np.float64) - start) * (255 / span)).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "its bytes are of no known format"
    return first_line(error)
