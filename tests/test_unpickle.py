"""Pickles put together by hand: data is read; whatever wants to be more is refused and does not happen."""

import itertools
import json
import pickletools
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from zoo.errors import WeightsError
from zoo.hub.foreign import unpickle
from zoo.hub.foreign.unpickle import Global, load_pickle

LEAF_NAME = "it.Leaf"
NAMES = {LEAF_NAME}
MEMBERS = {"byteorder": b"little", "version": b"3\n"}


def write(path, data, prefix="modules/", **members):
    """Write an archive as torch does: whatever the pickle, and its other members."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in {"data.pkl": data, **MEMBERS, **members}.items():
            if value is not None:
                file.writestr(prefix + name.replace("storage", "data/"), value)
    return path


def g(name):
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"


def s(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def i(value):
    return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x08" + value.to_bytes(8, "little")


def t(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(name, *parts):
    return g(name) + t(*parts) + b"R"


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def storage(kind="Float", key="0", numel=12):
    return t(s("storage"), g(f"torch.{kind}Storage"), s(key), s("cpu"), i(numel)) + b"Q"


HOOKS = g("collections.OrderedDict") + b")R"


def tensor(size, stride, offset=0, of=None, flag=b"\x89", hooks=HOOKS):
    parts = (of or storage(), i(offset), t(*map(i, size)), t(*map(i, stride)), flag, hooks)
    return call("torch._utils._rebuild_tensor_v2", *parts)


TWELVE = struct.pack("<12f", *range(12))


# Data is read


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((3, 4), (4, 1), 0),
        ((4, 3), (1, 4), 0),
        ((2, 3), (4, 1), 5),
        ((2, 2, 2), (6, 2, 1), 1),
        ((2, 3), (0, 1), 9),
        ((3, 2), (1, 0), 2),
        ((), (), 11),
        ((1, 1, 12), (10**9, 7, 1), 0),
        ((0, 3), (99, 99), 12),
        ((3, 4, 1), (1, 3, 0), 0),
    ],
)
@pytest.mark.parametrize("order", ["little", "big", None])
def test_strides_and_byte_orders_read_as_written_down_by_hand(size, stride, offset, order, tmp_path):
    values = struct.pack(">12f" if order == "big" else "<12f", *range(12))
    data = program(tensor(size, stride, offset))
    order = order and order.encode()
    found = load_pickle(write(tmp_path / "it", data, byteorder=order, storage0=values), ())
    expected = [
        float(offset + sum(at * step for at, step in zip(index, stride, strict=True)))
        for index in itertools.product(*map(range, size))
    ]
    assert found.flatten().tolist() == expected
    assert found.shape == size
    assert found.is_contiguous()


def test_values_of_a_bool_are_true_or_false(tmp_path):
    data = program(tensor((4,), (1,), of=storage("Bool", numel=4)))
    found = load_pickle(write(tmp_path / "it", data, storage0=b"\0\1\2\xff"), ())
    assert found.view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_names_of_both_protocols_are_known(tmp_path):
    parts = [call(f"{m}.{n}", *a) for m in ("__builtin__", "builtins")
             for n, a in (("set", [b"](" + i(1) + i(2) + b"e"]), ("slice", [i(1), b"N", i(-1)]))]  # fmt: skip
    parts += [g("__builtin__.Ellipsis"), g("builtins.Ellipsis")]
    expected = ({1, 2}, slice(1, None, -1), {1, 2}, slice(1, None, -1), ..., ...)
    assert load_pickle(write(tmp_path / "it", program(t(*parts))), ()) == expected


# Pickles that can't be read


ALLOWED = {"PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
ALLOWED |= {"BINUNICODE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND"}
ALLOWED |= {"APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE"}
ALLOWED |= {"NEWOBJ", "BUILD", "BINPERSID", "BINSTRING", "SHORT_BINSTRING"}
REFUSED = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes if opcode.name not in ALLOWED}

ARGUMENT = b"\x01\0\0\0\0\0\0\0a\n\0b\n"  # whatever form an opcode reads, this has it


@pytest.mark.parametrize("opcode", REFUSED)
def test_an_opcode_that_modules_do_not_need_is_refused_before_its_argument_is_read(opcode, tmp_path):
    code = REFUSED[opcode]
    data = program(g(LEAF_NAME), b"(", g(LEAF_NAME), s("a"), t(), b"}", code + ARGUMENT)
    with pytest.raises(WeightsError, match=re.escape(f"it has the opcode {code!r}, expected those of protocol 2 for")):
        load_pickle(write(tmp_path / "it", data), NAMES)


def test_the_opcodes_are_all_that_there_are():
    assert len(ALLOWED) + len(REFUSED) == len(pickletools.opcodes)
    assert {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "STACK_GLOBAL", "DUP", "POP", "PERSID"} <= set(REFUSED)


LEAF = g(LEAF_NAME)
OBJECT = LEAF + b")\x81"
REBUILD, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
MANY = 100_000  # twice as many, hashed, overflow the stack of the process
FOREIGN = ["os.system", "posix.system", "builtins.eval", "__builtin__.exec", "builtins.getattr", "builtins.object"]
FOREIGN += ["builtins.__import__", "importlib.import_module", "subprocess.Popen", "functools.partial", "torch.load"]
FOREIGN += ["copyreg._reconstructor", "copyreg.__newobj__", "torch.nn.Linear", "torch.hub.load", "operator.attrgetter"]
FOREIGN += [
    "torch._utils._rebuild_qtensor",
    "torch.storage.UntypedStorage",
    "torch._utils._rebuild_parameter.__globals__",
]
FOREIGN += [
    "collections.OrderedDict.fromkeys",
    "zoo.hub.foreign.unpickle.Record",
    "collections.Counter",
    f"{LEAF_NAME}.__init__",
]
UNKNOWN = "which isn't among the classes and functions expected"


def nested(depth, value=b"N"):
    return value + b"\x85" * depth


ATTACKS = {
    **{f"call of {name}": (call(name, s("true")), f"it names {name}, {UNKNOWN}") for name in FOREIGN},
    **{f"mere {name}": (g(name), f"it names {name}, {UNKNOWN}") for name in FOREIGN},
    "state with foreign names": (OBJECT + b"}" + s("a") + g("os.system") + b"sb", f"it names os.system, {UNKNOWN}"),
    "reduce of text": (s("eval") + t(s("1")) + b"R", "a str is used as a Global"),
    "reduce of a record": (OBJECT + b")R", f"a {LEAF_NAME} is used as a Global"),
    "reduce of a tensor": (tensor((2,), (1,)) + b")R", "a Tensor is used as a Global"),
    "reduce with a list": (LEAF + b"]R", "a list is used as a tuple"),
    "reduce of a storage's type": (call("torch.FloatStorage", i(10**9)), "torch.FloatStorage is called with (int)"),
    "new of an ordered dict of no pairs": (g("collections.OrderedDict") + t(b"](Ne") + b"\x81", "called with (list)"),
    "a dict made again and again": (
        b"](" + (b"](" + i(1) + b"Ne") * 5000 + b"e\x85q\0" + (g("collections.OrderedDict") + b"h\0R") * 2000,
        "it takes more than 1000000 steps",
    ),
    "ordered dict with a tuple as key": (call("collections.OrderedDict", b"](](" + b")Nee"), "a tuple is a key"),
    "parameter of 2017 of integers": (
        call("torch.nn.parameter.Parameter", tensor((6,), (1,), of=storage("Long", numel=6))),
        "is called with (Tensor)",
    ),
    "parameter of 2017 with hooks": (
        call("torch.nn.parameter.Parameter", tensor((), ())) + t(b"\x88", b"\x89", b"}" + s("a") + b"Ns") + b"b",
        "a tuple is used as a dict",
    ),
    "storage that is a view": (
        t(s("storage"), g("torch.FloatStorage"), s("0"), s("cpu"), i(12), t(s("1"), i(0), i(2))) + b"Q",
        "a persistent id is (str, torch.FloatStorage, str, str, int, tuple)",
    ),
    "build of a class": (LEAF + b"}" + s("read") + b"Nsb", f"a {LEAF_NAME} is used as a Record"),
    "build of slots": (OBJECT + t(b"N", b"}" + s("name") + s("x") + b"s") + b"b", "a tuple is used as a dict"),
    "build of a tensor": (tensor((2,), (1,)) + b"}b", "a Tensor is used as a Record"),
    "build of a dict": (b"}}b", "a dict is used as a Record"),
    "build of a text": (s("x") + b"}b", "a str is used as a Record"),
    "build of a function": (g(REBUILD) + b"}b", f"a {REBUILD} is used as a Record"),
    "attributes without names": (OBJECT + b"}" + i(1) + b"Nsb", "has attributes whose names are no strings"),
    "items of a record": (OBJECT + s("a") + b"Ns", f"a {LEAF_NAME} is used as a dict"),
    "items of a tensor": (tensor((2,), (1,)) + i(0) + i(1) + b"s", "a Tensor is used as a dict"),
    "items of a list": (b"]" + i(0) + i(1) + b"s", "a list is used as a dict"),
    "append to a record": (OBJECT + b"Na", f"a {LEAF_NAME} is used as a list"),
    "append to a tuple": (b")(Ne", "a tuple is used as a list"),
    "odd items": (b"}(Nu", "a dict has a key without a value"),
    "tuple as a key": (b"})Ns", "a tuple is a key of a dict or an element of a set, expected str or int"),
    "deep tuple as a key": (b"}" + nested(2 * MANY) + b"Ns", "a tuple is a key"),
    "deep tuple in a set": (call("__builtin__.set", b"](" + nested(2 * MANY) + b"e"), "a tuple is a key"),
    "float as a key": (b"}G" + struct.pack(">d", 1) + b"Ns", "a float is a key"),
    "parameters that are none": (OBJECT + b"}" + s("_parameters") + b"}" + s("a") + i(1) + b"ssb", "_parameters of a"),
    "parameters that are a list": (OBJECT + b"}" + s("_parameters") + b"]sb", "_parameters of a"),
    "parameters without names": (OBJECT + b"}" + s("_parameters") + b"}NNssb", "_parameters of a"),
    "buffers that are none": (OBJECT + b"}" + s("_buffers") + b"}" + s("a") + b"\x88ssb", "_buffers of a"),
    "modules that are tensors": (OBJECT + b"}" + s("_modules") + b"}" + s("a") + tensor((), ()) + b"ssb", "_modules"),
    "empty": (b"", "something is left over at the end"),
    "two values": (b"NN", "something is left over at the end"),
    "a mark": (b"N(", "something is left over at the end"),
    "a value above a mark": (b"(N", "something is left over at the end"),
    "a storage": (storage(), "a Storage is left over"),
    "a tool": (b"]" + g(REBUILD) + b"a", f"a {REBUILD} is left over"),
    "stack underflow": (b"\x85", "something is taken from an empty stack"),
    "stack underflow by a tuple": (b"N\x87", "something is taken from an empty stack"),
    "stack underflow below a mark": (b"N(\x85", "something is taken from an empty stack"),
    "no mark": (b"Nt", "there is no mark"),
    "memo of nothing": (b"q\0", "something is taken from an empty stack"),
    "memo not written": (b"h\7", "memo 7 is read before it is written"),
    "memo far away": (b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff", "memo 4294967294 is read before it is written"),
    "protocol 4": (b"\x80\4N", "it has the opcode b'\\x80', expected those of protocol 2"),
    "a number of 100 bytes": (b"\x8a\x64" + b"\1" * 100, "an integer takes more than 64 bits"),
    "a text of 4 GB": (b"X\xff\xff\xff\xffabc", "it ends too early"),
    "a text that is none": (b"X\2\0\0\0\xff\xfe", "can't decode byte 0xff"),
    "half a character": (b"X\3\0\0\0\xed\xa0\x80", "can't decode byte 0xed"),
    "a name that is none": (b"c\xff\n\xff\n", "can't decode byte 0xff"),
    "a name with lines": (b"c" + b"a\x1b[31m\r" * 99 + b"\nb\n", "it names a\\x1b[31m\\ra"),
    "a name without an end": (b"cos", "it names os"),
    "a list in itself": (b"]q\0h\0a", "or one contains itself"),
    "a record in itself": (OBJECT + b"q\0}" + s("_modules") + b"}" + s("a") + b"h\0ssb", "or one contains itself"),
    "deep tuples": (nested(MANY), "or 64 within each other"),
    "deep lists": (b"]" * MANY + b"a" * (MANY - 1), "or 64 within each other"),
    "a list that unfolds to 2^60": (b"(]q\0" + b"](h\0h\0eq\0" * 60 + b"t", "more than 2000000 values"),
    "a set made again and again": (
        b"](" + b"".join(map(i, range(5000))) + b"e\x85q\0" + (g("__builtin__.set") + b"h\0R") * 2000,
        "it takes more than 1000000 steps",
    ),
    "opcodes without end": (b"N" * 1_000_001, "it takes more than 1000000 steps"),
    "a pickle without end": (b"N" * (8 * 1024**2 + 1), "data.pkl has 8388612 bytes, expected at most 8388608"),
    "persistent text": (s("storage") + b"Q", "a str is used as a tuple"),
    "persistent nothing": (b")Q", "a persistent id is ()"),
    "persistent module": (t(s("module"), LEAF, s("0"), s("cpu"), i(12)) + b"Q", "a persistent id is (str,"),
    "persistent id in another": (t(storage(), storage(), s("0"), s("cpu"), i(1)) + b"Q", "a persistent id is (Sto"),
    "storage of a class": (t(s("storage"), LEAF, s("0"), s("cpu"), i(12)) + b"Q", "a persistent id is (str,"),
    "storage of -1": (storage(numel=-1), "a persistent id is (str,"),
    "storage of truth": (t(s("storage"), g("torch.FloatStorage"), s("0"), s("cpu"), b"\x88") + b"Q", "id is (str,"),
    "parameter of text": (call(PARAMETER, s("x"), b"\x89", HOOKS), "is called with (str, bool, dict)"),
    "parameter of a parameter": (
        call(PARAMETER, call(PARAMETER, tensor((), ()), b"\x88", HOOKS),
             b"\x88", HOOKS),
        "is called with (Parameter, bool, dict)",
    ),
    "parameter of integers that learns": (
        call(PARAMETER, tensor((6,), (1,), of=storage("Long", numel=6)), b"\x88", HOOKS),
        "is called with (Tensor, bool, dict)",
    ),
    "parameter with hooks": (
        call(PARAMETER, tensor((), ()), b"\x88", b"}" + s("a") + b"Ns"), "is called with",
    ),
    "slice of text": (call("__builtin__.slice", s("a"), b"N", b"N"), "is called with (str, NoneType, NoneType)"),
    "slice of two": (call("__builtin__.slice", b"N", b"N"), "is called with (NoneType, NoneType)"),
    "set of a text": (call("__builtin__.set", s("abc")), "is called with (str)"),
    "call of Ellipsis": (g("__builtin__.Ellipsis") + b")R", "a ellipsis is used as a Global"),
    "tensor of nothing": (call(REBUILD), f"{REBUILD} is called with ()"),
    "tensor of text": (tensor((2,), (1,), of=s("x")), f"{REBUILD} is called with (str, int,"),
    "tensor with hooks": (tensor((2,), (1,), hooks=b"}" + s("a") + b"Ns"), f"{REBUILD} is called with (Storage, int,"),
    "tensor with more": (call(REBUILD, storage(), i(0), t(), t(), b"\x89", HOOKS, b"}"), f"{REBUILD} is called with"),
    "tensor of truth": (tensor((2,), (1,), flag=i(1)), f"{REBUILD} is called with"),
    "tensor of a negative offset": (tensor((2,), (1,), -1), "has some that aren't numbers >= 0"),
    "tensor of a negative size": (tensor((-2,), (1,)), "has some that aren't numbers >= 0"),
    "tensor of a negative stride": (tensor((2,), (-1,), 5), "has some that aren't numbers >= 0"),
    "tensor of more strides": (tensor((2,), (1, 1)), "a tensor of 1 sizes and 2 strides"),
    "tensor of 17 sizes": (tensor((1,) * 17, (1,) * 17), "a tensor of 17 sizes"),
    "tensor of deep sizes": (call(REBUILD, storage(), i(0), nested(MANY), t(i(1)), b"\x89", HOOKS), "aren't numbers"),
    "tensor of a text as size": (call(REBUILD, storage(), i(0), t(s("a")), t(i(1)), b"\x89", HOOKS), "aren't numbers"),
    "tensor of 2^62": (tensor((2**62,), (1,)), "has some that aren't numbers >= 0"),
    "tensor of 100 GB": (tensor((25 * 10**9,), (0,)), "its tensors take more than 4 times its own size"),
    "empty tensor of 2^94": (tensor((0, 2**47, 2**47), (0, 0, 0)), "its tensors take more than 4 times its own size"),
    "tensors of 100 GB together": (
        b"](" + tensor((1000, 1000), (0, 0)) + b"e]" + b"(" + tensor((1000, 1000), (0, 0)) * 5 + b"e\x86",
        "its tensors take more than 4 times its own size",
    ),
    "tensors without number": (
        g(REBUILD) + b"q\0" + t(storage(), i(0), t(), t(), b"\x89", HOOKS) + b"q\1" + b"h\0h\1R" * 20_000,
        "its tensors take more than 4 times its own size",
    ),
    "tensor past the end": (tensor((3, 4), (4, 1), 1), "a tensor ends at value 13 of storage 0, which has 12"),
    "tensor behind the end": (tensor((1,), (1,), 12), "a tensor ends at value 13 of storage 0, which has 12"),
    "empty tensor behind the end": (tensor((0,), (1,), 13), "a tensor ends at value 13 of storage 0, which has 12"),
    "tensor of long strides": (tensor((2, 2), (2**40, 1)), "a tensor ends at value 1099511627778 of storage 0"),
    "tensor over itself": (tensor((3, 3), (1, 1)), "a tensor overlaps itself, size (3, 3), stride (1, 1)"),
    "tensor over its rows": (tensor((3, 3), (2, 1)), "a tensor overlaps itself, size (3, 3), stride (2, 1)"),
    "storage that isn't there": (tensor((2,), (1,), of=storage(key="9")), "it has no member data/9"),
    "storage outside": (tensor((2,), (1,), of=storage(key="../data.pkl")), "it has no member data/../data.pkl"),
    "storage with lines": (tensor((2,), (1,), of=storage(key="a\nb")), "it has no member data/a\\nb"),
    "storage of 1 TB": (tensor((2,), (1,), of=storage(numel=2**38)), "its tensors take more than 4 times its own size"),
    "storage too long": (tensor((2,), (1,), of=storage(numel=13)), "data/0 has 48 bytes, expected 52 for 13 x torch"),
    "storage too short": (tensor((2,), (1,), of=storage(numel=11)), "data/0 has 48 bytes, expected at most 44"),
    "storage of another type": (tensor((2,), (1,), of=storage("Double")), "data/0 has 48 bytes, expected 96 for 12 x"),
}  # fmt: skip


def attack(path, name):
    return write(path, program(ATTACKS[name][0]), storage0=TWELVE)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_pickle_that_wants_more_than_data_is_refused_with_the_reason(name, tmp_path):
    path = attack(tmp_path / "it", name)
    with pytest.raises(WeightsError, match=re.escape(ATTACKS[name][1])) as caught:
        load_pickle(path, NAMES)
    message = str(caught.value)
    assert message.startswith(f"{path} is refused: data.pkl")
    assert message.endswith(": fetch it again; if that doesn't help, don't trust it")
    assert message.isprintable()
    assert len(message) < 600 + len(str(path))


def test_names_that_the_caller_allows_stay_names(tmp_path):
    allowed = ["os.system", "builtins.eval", "torch.Size"]
    data = program(
        t(g("os.system"), call("builtins.eval", s("1")), call("torch.Size", t(i(3))) + b"}" + s("a") + b"Nsb")
    )
    function, result, size = load_pickle(write(tmp_path / "it", data), allowed)
    assert function == Global("os.system")
    assert (result.name, result.args, result.state) == ("builtins.eval", ("1",), {})
    assert (size.name, size.args, size.state) == ("torch.Size", ((3,),), {"a": None})


def test_containers_as_deep_as_allowed_are_read(tmp_path):
    found = load_pickle(write(tmp_path / "it", program(nested(unpickle.MAX_DEPTH))), ())
    for _ in range(unpickle.MAX_DEPTH):
        (found,) = found
    assert found is None


WATCH = """
import json, os, pickle, resource, sys, time
from pathlib import Path
from zoo.errors import WeightsError
from zoo.hub.foreign.unpickle import load_pickle

folder, names = Path(sys.argv[1]), json.loads(sys.argv[2])
load_pickle(folder / "good", names)  # what is imported late is imported now
events, watching = [], False

def watch(event, arguments):
    reading = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if watching and not reading:
        events.append(event)

sys.addaudithook(watch)
watching = True
pickle.loads(b"cposix\\nsystem\\n(Vtrue\\ntR.")
watching = False
control, events = events, []
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 1024**2,) * 2)
modules, outcomes = set(sys.modules), {}
for path in sorted(folder.iterdir()):
    start = time.process_time()
    watching = True
    try:
        load_pickle(path, names)
        outcome = "read"
    except WeightsError as error:
        outcome = "refused"
    except BaseException as error:
        outcome = repr(error)
    watching = False
    outcomes[path.name] = outcome, time.process_time() - start
print(json.dumps([control, events, sorted(set(sys.modules) - modules), outcomes]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits the address space as Linux does")
def test_no_attack_imports_executes_writes_or_takes_much_memory_or_time(tmp_path):
    write(tmp_path / "good", program(tensor((3, 4), (4, 1))), storage0=TWELVE)
    for number, name in enumerate(ATTACKS):
        attack(tmp_path / f"attack {number}", name)
    command = [sys.executable, "-c", WATCH, str(tmp_path), json.dumps(sorted(NAMES))]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    control, events, imported, outcomes = json.loads(run.stdout)
    assert {"os.system", "pickle.find_class"} <= set(control), "the hook sees what a pickle does elsewhere"
    assert (events, imported) == ([], [])
    assert outcomes.pop("good")[0] == "read"
    assert {outcome for outcome, _ in outcomes.values()} == {"refused"}
    assert max(seconds for _, seconds in outcomes.values()) < 30
