"""Weights: tensors in a safetensors file.

The file is mapped, not read, so loading costs what the shapes cost. Kernels choose their path by alignment, and mapped
tensors lie where the file puts them: the writer pads the header to 64 bytes and puts tensors of whole 64-byte multiples
first, which aligns all of them; the short tail, and tensors in files of other writers, are cloned. Outputs are then
bit-equal to those of the model that was saved.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.atomic import writing
from zoo.errors import WeightsError
from zoo.structure.tensors import bytes_of, tensors_of

ALIGNMENT = 64
HEAD_ROW = 200  # bytes that a tensor takes in the head beside its name
HEAD_ROOM = 2**20  # bytes of the head for what else its writer says
VALUES_ROOM = 2**28  # bytes for buffers whose size a structure doesn't know

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_weights(path: Path, values: Mapping[str, Tensor]) -> str:
    """Write tensors to a safetensors file.

    Args:
        path: the file; it appears whole or not at all.
        values: name → tensor, on any device, of any stride.

    Returns:
        The file's sha256.

    Raises:
        WeightsError: a tensor has no values or a type that the format lacks.
        StorageError: the disk is full or refuses.
    """
    for name, value in values.items():
        if value.is_meta or value.dtype not in _DTYPES:
            raise WeightsError(f"{name} can't be saved: it is {value.dtype} on {value.device}, expected plain values")
    order = sorted(values, key=lambda name: (values[name].nbytes % ALIGNMENT != 0, -values[name].element_size()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        value, end = values[name], offset + values[name].nbytes
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    digest = hashlib.sha256()
    with writing(path) as file:
        for chunk in (struct.pack("<Q", len(text)), text, *map(bytes_of, (values[name] for name in order))):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def load_weights(
    path: Path, device: str | torch.device = "cpu", *, mmap: bool = True, structure: nn.Module | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        device: where the tensors shall lie.
        mmap: on the CPU leave the values in the file until they are used; writing to them doesn't change it. But who
            overwrites the file in place changes them, and who truncates it ends the process (SIGBUS).
        structure: what the tensors are for, which bounds the file's head and size before either is read.

    Returns:
        Name → tensor.

    Raises:
        WeightsError: the file is missing, truncated or damaged, or larger than the structure can need.
    """
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} isn't a file: fetch or save the repository again")
    try:
        if structure is not None:
            check_size(path, structure)
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} has no {path.name}: fetch or save the repository again") from None
    except WeightsError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}): fetch or save it again") from None
    return {n: value if mmap and not value.data_ptr() % ALIGNMENT else value.clone() for n, value in tensors.items()}


def check_size(path: Path, structure: nn.Module) -> None:
    """Compare a file's head and size with the most that a structure's tensors take.

    Raises:
        WeightsError: it is larger.
    """
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
    size = path.stat().st_size
    if head <= HEAD_ROOM and size <= VALUES_ROOM:  # which need no count
        return
    needed = tensors_of(structure)
    most = HEAD_ROOM + sum(HEAD_ROW + 2 * len(name) for name in needed)
    if head > most:
        raise _too_large(path, f"a head of {head:,} bytes", most)
    most += VALUES_ROOM + sum(tensor.numel() * torch.float64.itemsize for tensor in needed.values())
    if size > most:
        raise _too_large(path, f"{size:,} bytes", most)


def _too_large(path: Path, found: str, most: int) -> WeightsError:
    return WeightsError(
        f"{path} is damaged ({found}, where its structure needs at most {most:,}): fetch or save it again"
    )
