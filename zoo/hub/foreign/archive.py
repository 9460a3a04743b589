"""Archives: the files of torch.save, their pickles and the tensors in them, within what the file's size allows.

Since torch 1.6 they are zip files (`Archive`), before that pickles one after another, and then the values (`Legacy`).
Every size is checked before memory is taken: members are stored, not compressed, so together they claim no more than
the file has, and tensors are cut from them under one account.
"""

import math
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import torch
from torch import Tensor

from zoo.errors import WeightsError

MAX_DIRECTORY = 4 * 1024**2  # bytes of zip directory, about 40,000 members; the largest checkpoints have 1,000
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # two pickles: torch's mark, and 1001
MAX_RANK = 16
COPIES, ROOM = 4, 16 * 1024**2  # storages and tensors may take COPIES x the file + ROOM bytes; usual are 2 x the file

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _DTYPES.items()}


def refuse(problem: str) -> NoReturn:
    """Raise the one error that hostile and damaged files give; who opened the file says which one it is."""
    raise WeightsError(problem)


def short(text: object) -> str:
    """A foreign text for a message: one line of plain characters, cut."""
    return ascii(str(text)[:120])[1:-1]


def natural(*values: object) -> bool:
    """Whether all are ints from 0 to 2^48."""
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of values that tensors are views of: its member data/`key`, their type and number."""

    key: str
    dtype: torch.dtype
    numel: int


@contextmanager
def open_archive(path: Path) -> "Iterator[Archive | Legacy]":
    """Open a file of torch.save; whatever is wrong with it in the block is told as WeightsError with its path.

    Raises:
        WeightsError: the file is missing, truncated, damaged, or refused in the block.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                yield Legacy(file, size)
                return
            _check_directory(file, size)
            with zipfile.ZipFile(file, metadata_encoding="utf-8") as members:
                yield Archive(members, size)
        return
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} has no {path.name}: fetch it again") from None
    except WeightsError as error:
        problem = str(error)
    except (zipfile.BadZipFile, EOFError, OSError, OverflowError, RuntimeError, ValueError, struct.error) as error:
        problem = f"the archive can't be read, {short(error)}"
    raise WeightsError(f"{path} is refused: {problem}: fetch it again; if that doesn't help, don't trust it")


def _check_directory(file: IO[bytes], size: int) -> None:
    """Refuse a zip directory that is long to list, which zipfile does as soon as it opens the archive."""
    file.seek(max(0, size - 98))
    end = file.read(98).rjust(98, b"\0")
    if end[76:80] != b"PK\5\6" or end[96:] != b"\0\0":
        refuse("it doesn't end as a zip archive does, so it is truncated or not from torch.save")
    length, large = *struct.unpack("<I", end[88:92]), *struct.unpack("<Q", end[40:48])
    if (length := max(length, large if end[56:60] == b"PK\6\7" else 0)) > MAX_DIRECTORY:
        refuse(f"its directory has {length} bytes, expected at most {MAX_DIRECTORY}")


class Tensors:
    """The tensors of a file, cut from its storages.

    Args:
        size: of the file, in bytes.
        little: whether its values lie little end first.
    """

    def __init__(self, size: int, little: bool) -> None:
        self._swapped = little != (sys.byteorder == "little")
        self._left = COPIES * size + ROOM
        self._values: dict[Storage, Tensor] = {}

    def _stored(self, storage: Storage, size: int) -> bytes:
        """The bytes of a storage as they lie in the file, at most so many."""
        raise NotImplementedError

    def tensor(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """A view of a storage as a tensor of its own, contiguous.

        Args:
            storage: which.
            offset: its first value, in values.
            size: its shape; steps of 0 repeat values, other values may not occur twice.
            stride: steps between neighbours, in values.

        Returns:
            The tensor, on the CPU.

        Raises:
            WeightsError: it leaves its storage, overlaps itself, or all tensors take more than the file's size allows.
        """
        if len(size) != len(stride) or len(size) > MAX_RANK or not natural(offset, *size, *stride):
            refuse(f"a tensor of {len(size)} sizes and {len(stride)} strides has some that aren't numbers >= 0")
        self._spend(math.prod(max(1, count) for count in size) * storage.dtype.itemsize + 1024)  # the object's own
        reach = 0
        for step, count in sorted((step, count) for step, count in zip(stride, size, strict=True) if count > 1):
            if 0 < step <= reach:
                refuse(f"a tensor overlaps itself, size {size}, stride {stride}")
            reach += (count - 1) * step
        end = offset + (0 if 0 in size else reach + 1)
        if end > storage.numel:
            refuse(f"a tensor ends at value {end} of storage {storage.key}, which has {storage.numel}")
        return self._read(storage).as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def _read(self, storage: Storage) -> Tensor:
        """All values of a storage, read once however many tensors lie in it."""
        if storage not in self._values:
            size = storage.numel * storage.dtype.itemsize
            self._spend(size)
            data = self._stored(storage, size)
            if len(data) != size:
                where = f"data/{storage.key}"
                refuse(f"{where} has {len(data)} bytes, expected {size} for {storage.numel} x {storage.dtype}")
            width = storage.dtype.itemsize
            raw = torch.frombuffer(bytearray(data or b"\0" * width), dtype=torch.uint8)[:size]
            raw = raw.view(-1, width).flip(1).flatten() if self._swapped else raw
            self._values[storage] = raw != 0 if storage.dtype == torch.bool else raw.view(storage.dtype)
        return self._values[storage]

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            refuse(f"its tensors take more than {COPIES} times its own size")


class Archive(Tensors):
    """The members of an open archive, under modules/, archive/ or whatever folder its data.pkl is in."""

    def __init__(self, members: zipfile.ZipFile, size: int) -> None:
        self._members = members
        self._infos = {info.filename: info for info in members.infolist()}
        if len(self._infos) < len(members.infolist()):
            refuse("two of its members have the same name")
        if sum(info.file_size for info in self._infos.values()) > size:
            refuse(f"its members claim more bytes than the {size} of the file")
        pickles = [name for name in self._infos if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            refuse(f"it has {len(pickles)} members */data.pkl, expected one")
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self.read("byteorder", 16) if f"{self._prefix}byteorder" in self._infos else b"little"
        if order not in (b"little", b"big"):
            refuse(f"its byte order is {order!r}, expected little or big")
        super().__init__(size, order == b"little")

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a member, as many as it claims and at most `most`."""
        info = self._infos.get(self._prefix + name)
        if info is None:
            refuse(f"it has no member {name}")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            refuse(f"{name} is compressed, expected stored as torch.save does")
        if info.file_size > most:
            refuse(f"{name} has {info.file_size} bytes, expected at most {most}")
        return self._members.read(info)

    def _stored(self, storage: Storage, size: int) -> bytes:
        return self.read(f"data/{storage.key}", size)


class Legacy(Tensors):
    """A file from before torch 1.6: marks, the object's pickle, the storages' keys, and their values in that order.

    The values lie behind the pickle that needs them, so it is run twice: at first its tensors are empty.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(size, little=True)
        self._file = file
        self._size = size
        self._named: dict[str, Storage] = {}
        self._begin: dict[str, int] | None = None

    def pickle_at(self, place: int, most: int) -> bytes:
        """The bytes from a place on, at most so many, in which a pickle ends somewhere."""
        self._file.seek(place)
        return self._file.read(most)

    def locate(self, keys: object, place: int, little: bool) -> None:
        """Find where the values of each storage begin.

        Args:
            keys: of the storages, in the order of their values.
            place: of the first.
            little: whether values lie little end first.

        Raises:
            WeightsError: keys and values aren't those of the tensors that were named.
        """
        if not isinstance(keys, list) or not all(type(key) is str for key in keys) or set(keys) != set(self._named):
            refuse("the storages that follow aren't those of its tensors")
        begin: dict[str, int] = {}
        for key in keys:
            self._file.seek(place)
            held = self._named[key]
            told = int.from_bytes(self._file.read(8), "little" if little else "big")
            if key in begin or told != held.numel:
                refuse(f"storage {short(key)} has {told} values or lies there twice, expected {held.numel}, once")
            begin[key] = place + 8
            place += 8 + held.numel * held.dtype.itemsize
        if place > self._size:
            refuse(f"its storages end at byte {place}, the file at {self._size}: it is truncated")
        super().__init__(self._size, little)
        self._begin = begin

    def tensor(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """As for `Tensors`; empty as long as nobody knows where values lie."""
        if self._named.setdefault(storage.key, storage) != storage:
            refuse(f"storage {storage.key} has two types or lengths")
        if self._begin is not None:
            return super().tensor(storage, offset, size, stride)
        self._spend(1024)
        return torch.empty(0, dtype=storage.dtype)

    def _stored(self, storage: Storage, size: int) -> bytes:
        assert self._begin is not None
        self._file.seek(self._begin[storage.key])
        return self._file.read(size)
