"""Files that torch saved before 1.6, and Python 2 before that: read as they were, or refused with the reason."""

import re
import struct
from collections import OrderedDict

import pytest
import torch
from test_archive import NAMES, check, saved_modules
from test_unpickle import ATTACKS, TWELVE, call, g, i, program, s, storage, t, tensor
from torch import nn

from zoo.errors import WeightsError
from zoo.hub.foreign.archive import LEGACY
from zoo.hub.foreign.unpickle import load_pickle


def save(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)  # noqa: TID251  # the writer whose files are read here
    return path


VALUES = struct.pack("<q", 12) + TWELVE


def written(path, data, keys=("0",), values=VALUES, little=b"\x88"):
    """Such a file put together by hand."""
    system = program(b"}" + s("little_endian") + little + b"s")
    path.write_bytes(LEGACY + system + data + program(b"](" + b"".join(map(s, keys)) + b"e") + values)
    return path


def test_whole_modules_are_refused_as_their_source_stands_beside_them(tmp_path):
    with pytest.raises(
        WeightsError, match=r"a persistent id is \(str, torch.nn.modules.container.ModuleList, str, str"
    ):
        load_pickle(save(saved_modules(), tmp_path / "it"), NAMES)


def test_a_state_dict_with_views_of_one_storage_and_all_types_comes_back(tmp_path):
    base = torch.arange(12.0)
    types = torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool
    values = OrderedDict(a=base.view(3, 4).T, b=base[2:5], empty=torch.zeros(0), scalar=torch.tensor(7))
    values |= {str(dtype): torch.arange(5).to(dtype) for dtype in types}
    found = load_pickle(save(values, tmp_path / "it"), ())
    check(found, values)


def test_values_of_a_machine_with_the_big_end_first_are_turned(tmp_path):
    values = struct.pack(">q", 12) + struct.pack(">12f", *range(12))
    path = written(tmp_path / "it", program(tensor((12,), (1,))), values=values, little=b"\x89")
    assert load_pickle(path, ()).tolist() == [*range(12)]


def text(word):
    return b"U" + bytes([len(word)]) + word.encode()


def test_a_file_of_torch_0_1_and_python_2_is_read(tmp_path):
    """Short byte strings, an ordered dict of pairs, tensors of four values, parameters with the state of a variable."""
    old = t(text("storage"), g("torch.FloatStorage"), text("0"), text("cuda:0"), i(12), b"N") + b"Q"
    plain = call("torch._utils._rebuild_tensor", old, i(2), t(i(2), i(3)), t(i(3), i(1)))
    variable = (
        call("torch.nn.parameter.Parameter", plain) + t(b"\x88", b"\x89", call("collections.OrderedDict", b"]")) + b"b"
    )
    pairs = b"](" + b"](" + text("weight") + variable + b"e" + b"](" + text("mean") + plain + b"e" + b"e"
    found = load_pickle(written(tmp_path / "it", program(call("collections.OrderedDict", pairs))), ())
    expected = [[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]
    assert list(found) == ["weight", "mean"]
    assert isinstance(found["weight"], nn.Parameter)
    assert [value.tolist() for value in found.values()] == [expected, expected]


def test_tensors_of_torch_0_4_have_nothing_in_the_place_of_hooks(tmp_path):
    data = program(call("torch._utils._rebuild_parameter", tensor((12,), (1,), hooks=b"N"), b"\x88", b"N"))
    assert load_pickle(written(tmp_path / "it", data), ()).tolist() == [*range(12)]


GOOD = program(tensor((3, 4), (4, 1)))
TWICE = b"](" + tensor((3, 4), (4, 1)) + tensor((12,), (1,), of=storage("Int")) + b"e"
WRONG = {
    "another key": ({"keys": ("1",)}, "the storages that follow aren't those of its tensors"),
    "no key": ({"keys": ()}, "the storages that follow aren't those of its tensors"),
    "a key twice": ({"keys": ("0", "0"), "values": (struct.pack("<q", 12) + TWELVE) * 2}, "or lies there twice"),
    "another length": ({"values": struct.pack("<q", 13) + TWELVE}, "storage 0 has 13 values or lies there twice, exp"),
    "a negative length": ({"values": struct.pack("<q", -12) + TWELVE}, "values or lies there twice, expected 12, once"),
    "fewer values": ({"values": struct.pack("<q", 12) + TWELVE[:-1]}, "its storages end at byte"),
    "no values": ({"values": b""}, "storage 0 has 0 values"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_not_those_of_the_tensors_are_refused(name, tmp_path):
    changed, message = WRONG[name]
    with pytest.raises(WeightsError, match=message):
        load_pickle(written(tmp_path / "it", GOOD, **changed), ())


def test_a_storage_of_two_types_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="storage 0 has two types or lengths"):
        load_pickle(written(tmp_path / "it", program(TWICE)), ())


def test_a_file_that_ends_anywhere_is_refused(tmp_path):
    whole = save({"a": torch.arange(12.0), "b": torch.arange(3)}, tmp_path / "it").read_bytes()
    for end in range(0, len(whole), 5):
        (tmp_path / "it").write_bytes(whole[:end])
        with pytest.raises(WeightsError, match=re.escape(f"{tmp_path / 'it'} is refused")):
            load_pickle(tmp_path / "it", ())


ELSEWHERE = ("empty", "two values", "a pickle without end", "storage that isn't", "storage outside", "storage with lin",
             "storage of 1 TB", "storage too", "storage of another", "tensor of 100 GB", "tensors", "empty tensor of",
             "a list that unfolds", "a set made", "a dict made", "opcodes without end", "a value above",
             "a name without an end", "deep ", "tensor of deep")  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith(ELSEWHERE)])
def test_what_is_refused_in_a_zip_file_is_refused_here(name, tmp_path):
    data, message = ATTACKS[name]
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_pickle(written(tmp_path / "it", program(data)), {"it.Leaf"})
