"""Files of torch.save: modules and tensors come back as they were, and damaged archives are refused with the reason."""

import contextlib
import enum
import math
import os
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.errors import WeightsError
from zoo.hub.foreign.unpickle import Global, Record, load_pickle

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
TYPES += [torch.int8, torch.uint8, torch.bool]
TWELVE = struct.pack("<12f", *range(12))
FUZZ = Path(__file__).parents[1] / "scripts" / "bench" / "fuzz_unpickle.py"


def name_of(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def save(value, path):
    torch.save(value, path)  # noqa: TID251  # the writer whose files are read here
    return path


# What was saved comes back


class Mode(enum.Enum):
    FIRST = "first"


class Leaf(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).T, requires_grad=False)
        self.register_parameter("bias", None)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("index", torch.arange(5)[1:4], persistent=False)
        self.register_buffer("absent", None)
        self.tied = shared.weight
        self.child = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 4, (1, 3), stride=2, padding=1))
        self.mode = Mode.FIRST
        self.function = name_of
        self.spec = (slice(None), slice(1, None, -2), None, ..., -1)
        self.table = {"a": [1, 2.5, (), [], {}], 3: {"x", "y"}, "π": "größer", "no": {"x": None}}
        self.numbers = [255, 256, 65536, -1, 2**31, -(2**40), 2**63 - 1, -(2**63), math.inf, -0.0]
        self.ordered = OrderedDict(b=1, a=2)


NAMES = {name_of(c) for c in (Leaf, nn.ModuleList, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Sequential)}
NAMES |= {name_of(Mode), name_of(name_of)}


def check(found, expected):
    """Compare what was read with what was saved, through modules, containers and tensors."""
    if isinstance(expected, nn.Module):
        assert isinstance(found, Record)
        assert (found.name, found.args) == (name_of(type(expected)), ())
        check(found.state, expected.__dict__)
    elif isinstance(expected, enum.Enum):
        assert isinstance(found, Record)
        assert (found.name, found.args, found.state) == (name_of(type(expected)), (expected.value,), {})
    elif callable(expected):
        assert found == Global(name_of(expected))
    elif isinstance(expected, torch.Tensor):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        assert found.requires_grad == (expected.requires_grad and isinstance(expected, nn.Parameter))
        assert found.is_contiguous()
        assert found.untyped_storage().nbytes() == found.nbytes
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
        for key, value in expected.items():
            check(found[key], value)
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check(one, other)
    else:
        assert type(found) is type(expected)
        assert repr(found) == repr(expected) if isinstance(expected, float) else found == expected


def saved_modules():
    torch.manual_seed(0)
    first = nn.Linear(4, 3)
    act = nn.ReLU()
    return nn.ModuleList([first, act, nn.BatchNorm2d(3), act, Leaf(first), nn.Linear(2, 2, bias=False).double()])


@pytest.mark.parametrize("name", ["modules.pt", "archive.pt", "odd name.pt"])
def test_modules_come_back_as_records_with_everything_they_held(name, tmp_path):
    expected = saved_modules()
    path = save(expected, tmp_path / name)
    assert f"{path.stem}/data.pkl" in zipfile.ZipFile(path).namelist()
    found = load_pickle(path, NAMES)
    check(found, expected)
    assert list(found.modules) == ["0", "1", "2", "3", "4", "5"]
    assert found.modules["1"] is found.modules["3"], "one module in two places"
    assert found.modules["4"].parameters["tied"] is found.modules["0"].parameters["weight"], (
        "one parameter in two places"
    )
    assert found.modules["4"].parameters["bias"] is None
    assert found.modules["4"].buffers["mask"].tolist() == [True, False, True]
    assert found.modules["4"].state["_non_persistent_buffers_set"] == {"index"}
    assert Record("it.Mode").parameters == Record("it.Mode").buffers == Record("it.Mode").modules == {}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_of_values_comes_back(dtype, tmp_path):
    expected = torch.tensor([0, 1, 0, 1, 1, 0]).to(dtype) if dtype == torch.bool else torch.arange(6).sub(1).to(dtype)
    check(load_pickle(save([expected, expected.view(2, 3).T], tmp_path / "it"), ()), [expected, expected.view(2, 3).T])


VIEWS = {
    "transposed": torch.arange(12.0).view(3, 4).T,
    "sliced": torch.arange(24.0).view(2, 3, 4)[:, 1],
    "every other": torch.arange(12.0)[1::2],
    "expanded": torch.ones(3, 1).expand(3, 5),
    "expanded from one": torch.ones(1)[0].expand(2, 3),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "channels last of one": torch.randn(1, 3, 1, 1).to(memory_format=torch.channels_last),
    "0-d": torch.tensor(3.5),
    "0-d of many": torch.arange(5)[3],
    "empty": torch.zeros(0, 4),
    "empty of many": torch.arange(5)[5:],
    "empty between": torch.zeros(3, 0, 2),
    "no numbers": torch.tensor([math.nan, math.inf, -0.0]),
    "diagonal": torch.arange(16.0).view(4, 4).diagonal(),
    "learning": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("value", VIEWS.values(), ids=VIEWS)
def test_tensors_of_any_stride_come_back_contiguous(value, tmp_path):
    check(load_pickle(save(value, tmp_path / "it"), ()), value)


def test_views_of_one_storage_become_independent_and_one_tensor_stays_one(tmp_path):
    base = torch.arange(10.0)
    a, b, c = load_pickle(save([base[:6], base[4:], base], tmp_path / "it"), ())
    a.zero_()
    assert torch.equal(b, torch.arange(4.0, 10))
    assert torch.equal(c, torch.arange(10.0))
    one, other = load_pickle(save([base, base], tmp_path / "it"), ())
    assert one is other


def test_a_default_device_does_not_reach_the_tensors(tmp_path):
    path = save(torch.arange(3), tmp_path / "it")
    with torch.device("meta"):
        found = load_pickle(path, ())
    assert torch.equal(found, torch.arange(3))


# Archives that can't be read


def packed(path, *more, prefix="modules/", method=zipfile.ZIP_STORED, lies=(), **changes):
    """Write twelve numbers again, with other members (None: without it) and a directory that lies about data/0."""
    with zipfile.ZipFile(save(torch.arange(12.0), path)) as file:
        members = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    members |= {name.replace("_", "."): data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice
        for name, data in (*members.items(), *more):
            if data is not None:
                file.writestr(prefix + name, data)
        for name, value in dict(lies).items():
            setattr(file.getinfo("modules/data/0"), name, value)


def having(*more, **changes):
    return lambda path: packed(path, *more, **changes)


def two_folders(path):
    packed(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", b"N.")


def lies(**fields):
    return having(lies=fields)


def cut(share):
    def write_cut(path):
        save(saved_modules(), path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write_cut


def long_directory(path, large):
    save(torch.ones(2), path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q" if large else "<I", data, len(data) - (58 if large else 10), 5 * 1024**2)
    path.write_bytes(data)


def with_bytes(data):
    return lambda path: path.write_bytes(data)


TRUNCATED = "it doesn't end as a zip archive does, so it is truncated or not from torch.save"
ARCHIVES = {
    "empty": (with_bytes(b""), TRUNCATED),
    "a web page": (with_bytes(b"<html>" * 100), TRUNCATED),
    "a bare pickle": (with_bytes(b"\x80\2cos\nsystem\n(X\4\0\0\0truetR."), TRUNCATED),
    "an end alone": (with_bytes(b"PK\5\6" + bytes(18)), "it has 0 members */data.pkl, expected one"),
    "an end that lies": (with_bytes(b"PK\5\6" + b"\1\0" * 8 + b"\0\0"), "the archive can't be read, "),
    "half": (cut(0.5), TRUNCATED),
    "most": (cut(0.95), TRUNCATED),
    "all but a byte": (cut(1 - 1e-9), TRUNCATED),
    "a comment": (lambda path: (packed(path), path.write_bytes(path.read_bytes()[:-2] + b"\1\0x")), TRUNCATED),
    "no pickle": (having(data_pkl=None), "it has 0 members */data.pkl, expected one"),
    "no folder": (having(prefix=""), "it has 0 members */data.pkl, expected one"),
    "two pickles": (having(("data.pkl", b"N."), prefix="a/"), "two of its members have the same name"),
    "two folders": (two_folders, "it has 2 members */data.pkl, expected one"),
    "a storage twice": (having(("data/0", bytes(48))), "two of its members have the same name"),
    "a bomb": (having(("data/1", bytes(10**8)), method=zipfile.ZIP_DEFLATED), "its members claim more bytes than the "),
    "compressed": (having(("data/1", os.urandom(9999)), method=zipfile.ZIP_DEFLATED), "is compressed, expected stored"),
    "compressed a little": (lies(compress_type=8), "data/0 is compressed, expected stored as torch.save does"),
    "another method": (lies(compress_type=99), "data/0 is compressed, expected stored as torch.save does"),
    "encrypted": (lies(flag_bits=1), "the archive can't be read, File "),
    "a lying size": (lies(file_size=2**31), "its members claim more bytes than the "),
    "a huge size": (lies(file_size=2**40, compress_size=2**40), "its members claim more bytes than the "),
    "sizes that differ": (lies(compress_size=47), "data/0 is compressed, expected stored"),
    "a shorter size": (lies(compress_size=44, file_size=44, CRC=crc32(TWELVE[:44])), "data/0 has 44 bytes, expected"),
    "a wrong checksum": (lies(CRC=1), "the archive can't be read, Bad CRC-32 for file 'modules/data/0'"),
    "a wrong place": (lies(header_offset=3), "the archive can't be read, Bad magic number for file header"),
    "another's place": (lies(header_offset=0), "the archive can't be read, File name in directory 'modules/data/0'"),
    "a place behind the end": (lies(header_offset=2**40), "the archive can't be read, "),
    "a version to come": (lies(extract_version=99), "the archive can't be read, zip file version 9.9"),
    "a long directory": (lambda path: long_directory(path, False), "its directory has 5242880 bytes, expected at most"),
    "a long large directory": (lambda path: long_directory(path, True), "its directory has 5242880 bytes, expected at"),
    "an odd byte order": (having(byteorder=b"middle\n"), "its byte order is b'middle\\n', expected little or big"),
    "a long byte order": (having(byteorder=b"little" * 9), "byteorder has 54 bytes, expected at most 16"),
    "bytes after the end": (having(data_pkl=b"\x80\2N.N."), "something is left over at the end"),
    "no end": (having(data_pkl=b"\x80\2N"), "it ends too early"),
    "a folder": (lambda path: path.mkdir(), "the archive can't be read, "),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_is_damaged_or_lies_is_refused_with_the_reason(make, reason, tmp_path):
    path = tmp_path / "it.pt"
    make(path)
    with pytest.raises(WeightsError, match=re.escape(reason)) as caught:
        load_pickle(path, NAMES)
    assert str(caught.value).startswith(f"{path} is refused: ")
    assert str(caught.value).isprintable()


def test_an_archive_that_was_packed_again_is_read(tmp_path):
    packed(tmp_path / "it")
    assert torch.equal(load_pickle(tmp_path / "it", ()), torch.arange(12.0))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"has no modules.pt: fetch it again$"):
        load_pickle(tmp_path / "modules.pt", NAMES)


# Whatever the bytes


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, edits):
    path = save(saved_modules(), tmp_path_factory.getbasetemp() / "damaged.pt")
    data, before = path.read_bytes(), set(sys.modules)
    for at, length, new in edits:
        data = data[: at % len(data)] + new + data[at % len(data) + length :]
    path.write_bytes(data)
    with contextlib.suppress(WeightsError):
        load_pickle(path, NAMES)
    assert set(sys.modules) == before


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as Linux does")
def test_many_damaged_files_are_read_or_refused_and_nothing_else_happens():
    command = [sys.executable, FUZZ, "--cases", "1500", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1500 cases" in run.stdout
