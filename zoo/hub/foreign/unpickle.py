"""Pickles: what torch.save wrote → inert records, lists, dicts and tensors.

The one room that reads pickles, and nothing in them is imported, called or run. A stack machine for the 34 opcodes that
protocol 2 uses for modules moves plain data; a name is looked up in a table, never in a module; the only things made
are containers, slices, tensors and records. It isn't built on `pickle.Unpickler`, which, whatever its `find_class`
returns, lets a file set attributes of that class (BUILD), reserve gigabytes by one memo index and end the process by
hashing a deep tuple.

Time and memory are bounded: so many opcodes, and of each no more than the pickle is long.
"""

import io
import pickle
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.errors import WeightsError
from zoo.hub.foreign.archive import LEGACY, STORAGES, Legacy, Storage, Tensors, natural, open_archive, refuse, short

MAX_PICKLE = 8 * 1024**2  # bytes; the largest checkpoints have less than 1 MB
MAX_STEPS = 1_000_000  # opcodes, each of which may take 200 bytes; the largest checkpoints have about 200,000
MAX_VALUES = 2_000_000  # that a walk meets which visits shared ones again
MAX_DEPTH = 64  # containers within each other; a module within a module is three deeper

_CALLS = {
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_tensor": "tensor",  # until torch 0.3
    "torch._utils._rebuild_parameter": "parameter",
    "torch.nn.parameter.Parameter": "parameter",  # until torch 0.3
    "collections.OrderedDict": "dict",
}
_CALLS |= {f"{module}.{name}": name for module in ("__builtin__", "builtins") for name in ("set", "slice", "Ellipsis")}
_OLD = ("torch._utils._rebuild_tensor", "torch.nn.parameter.Parameter")
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_LAYOUTS = {
    pickle.BINGET: "<B", pickle.LONG_BINGET: "<I", pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I", pickle.BININT: "<i",
    pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d", pickle.LONG1: "<B", pickle.BINUNICODE: "<I",
    pickle.PROTO: "<B", pickle.SHORT_BINSTRING: "<B", pickle.BINSTRING: "<I",
}  # fmt: skip
# numpy's, whose values are left alone: they lie beside the tensors.
_UNREAD = {"numpy.dtype", *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, never looked up.

    Attributes:
        name: such as "timm.models.swin_transformer_v2_cr.window_reverse".
    """

    name: str


@dataclass(eq=False, slots=True)
class Record:
    """An object as it was stored.

    Attributes:
        name: its class, such as "torch.nn.modules.conv.Conv2d".
        args: what its class would have been called with: () for modules, (value,) for enums.
        state: its attributes; those of a module include the dicts `_parameters`, `_buffers` and `_modules`.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter | None]:
        """A module's own parameters by name, in stored order."""
        return dict(self.state.get("_parameters", {}))

    @property
    def buffers(self) -> dict[str, Tensor | None]:
        """A module's own buffers by name, in stored order; those that a state_dict leaves out too."""
        return dict(self.state.get("_buffers", {}))

    @property
    def modules(self) -> dict[str, "Record | None"]:
        """A module's children by name, in stored order."""
        return dict(self.state.get("_modules", {}))


def load_pickle(path: Path, names: Collection[str]) -> Any:
    """Read a file of torch.save, running nothing in it; of torch 0.1.1's tar files nothing is known here.

    Args:
        path: the file.
        names: the classes and functions that may occur, such as "torch.nn.modules.conv.Conv2d". A mere name gives a
            `Global`, an object of a class (or the result of a function) a `Record`.

    Returns:
        What was saved, of None, bool, int (64 bits), float, str, list, tuple, dict (for OrderedDict too), set, slice,
        Ellipsis, `Global`, `Record`, `nn.Parameter` and tensors; without cycles, at most MAX_DEPTH deep, and the three
        dicts of modules hold what `Record` says. An object that was saved in two places is the same object in both.
        Tensors lie on the CPU, contiguous, and each has values of its own: views of one storage no longer share them.
        Parameters require gradients as they did, other tensors none.

    Raises:
        WeightsError: the file is missing, truncated or damaged, asks for more than its size allows, or holds anything
            else.
    """
    known = frozenset(names)
    with open_archive(path) as archive:
        if isinstance(archive, Legacy):
            return _legacy(archive, known)
        machine = _Machine(archive, known, archive.read("data.pkl", MAX_PICKLE))
        value = machine.run()
        if machine.rest:
            refuse("data.pkl: something is left over at the end")
        return value


def _legacy(archive: Legacy, names: frozenset[str]) -> Any:
    """What was saved before torch 1.6: three pickles follow the marks, and then the values."""

    def read(place: int) -> tuple[Any, int]:
        machine = _Machine(archive, names, program := archive.pickle_at(place, MAX_PICKLE))
        value = machine.run()
        return value, place + len(program) - machine.rest

    machine, begin = read(len(LEGACY))
    _, end = read(begin)
    keys, values = read(end)
    little = not isinstance(machine, dict) or machine.get("little_endian", True) is True
    archive.locate(keys, values, little)
    return read(begin)[0]


def _kinds(*values: object) -> str:
    return ", ".join(value.name if isinstance(value, Global | Record) else type(value).__name__ for value in values[:8])


class _Machine:
    """The stack machine that a pickle is a program for, with nothing in its reach."""

    def __init__(self, archive: Tensors, names: frozenset[str], program: bytes) -> None:
        self._archive = archive
        self._names = names
        self._left = MAX_STEPS
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}
        self._file = io.BytesIO(program)
        self._size = len(program)

    @property
    def rest(self) -> int:
        """How many bytes follow where it stands."""
        return self._size - self._file.tell()

    def run(self) -> Any:
        code = b""
        try:
            while code != pickle.STOP:
                self._left -= 1
                if self._left < 0:
                    refuse(f"it takes more than {MAX_STEPS} steps")
                code = self._take(1)
                self._step(code)
            if len(self._stack) != 1 or self._outer:
                refuse("something is left over at the end")
            _check(self._stack[0], self._names)
        except (WeightsError, UnicodeDecodeError) as error:
            raise WeightsError(f"data.pkl, before byte {self._file.tell()}: {error}") from None
        return self._stack[0]

    def _step(self, code: bytes) -> None:
        """Do one opcode; the frequent ones come first."""
        layout = _LAYOUTS.get(code, "")
        number = struct.unpack(layout, self._take(struct.calcsize(layout)))[0] if layout else 0
        if code in (pickle.BINGET, pickle.LONG_BINGET):
            if number not in self._memo:
                refuse(f"memo {number} is read before it is written")
            self._stack.append(self._memo[number])
        elif code in (pickle.BINPUT, pickle.LONG_BINPUT):
            self._memo[number] = self._top()
        elif code in (pickle.REDUCE, pickle.NEWOBJ):
            arguments, function = self._pop(tuple), self._pop(Global)
            self._stack.append(self._made(function.name, arguments))
        elif code in _CONSTANTS:
            self._stack.append(_CONSTANTS[code])
        elif code in (pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT):
            self._stack.append(number)
        elif code == pickle.MARK:
            self._outer.append(self._stack)
            self._stack = []
        elif code == pickle.TUPLE:
            values = tuple(self._marked())
            self._stack.append(values)
        elif code in _TUPLES:
            values = tuple(self._pop() for _ in range(_TUPLES[code]))
            self._stack.append(values[::-1])
        elif code in (pickle.BINUNICODE, pickle.SHORT_BINSTRING, pickle.BINSTRING):  # the latter are Python 2's
            self._stack.append(self._take(number).decode())
        elif code in (pickle.SETITEM, pickle.SETITEMS):
            pairs = self._marked() if code == pickle.SETITEMS else [self._pop(), self._pop()][::-1]
            if len(pairs) % 2:
                refuse("a dict has a key without a value")
            self._top(dict).update(zip(_keys(pairs[::2]), pairs[1::2], strict=True))
        elif code in (pickle.APPEND, pickle.APPENDS):
            more = self._marked() if code == pickle.APPENDS else [self._pop()]
            self._top(list).extend(more)
        elif code in (pickle.EMPTY_LIST, pickle.EMPTY_DICT):
            self._stack.append([] if code == pickle.EMPTY_LIST else {})
        elif code == pickle.BUILD:
            self._build(self._pop())
        elif code == pickle.BINPERSID:
            self._stack.append(_storage(self._pop(tuple)))
        elif code == pickle.GLOBAL:
            self._stack.append(self._named())
        elif code == pickle.LONG1:
            if number > 8:
                refuse("an integer takes more than 64 bits")
            self._stack.append(int.from_bytes(self._take(number), "little", signed=True))
        elif code != pickle.STOP and (code != pickle.PROTO or number != 2):
            refuse(f"it has the opcode {code!r}, expected those of protocol 2 for modules")

    def _build(self, state: Any) -> None:
        """Give the top its attributes."""
        match self._top(), state:
            case dict(), {"_metadata": _} if len(state) == 1:  # which every state_dict carries
                return
            case nn.Parameter(), (bool(), bool(), {**hooks}) if not hooks:  # until torch 0.3
                return
            case Record(name=name), tuple() if name in _UNREAD:
                return
        if type(state) is not dict:
            refuse(f"a {_kinds(state)} is used as a dict")
        self._top(Record).state = state

    def _named(self) -> Any:
        """A class or function by its module and name, which stand on two lines."""
        name = ".".join(self._file.readline().rstrip(b"\n").decode() for _ in range(2))
        if name not in self._names and name not in _CALLS and name not in STORAGES:
            refuse(f"it names {short(name)}, which isn't among the classes and functions expected")
        return ... if _CALLS.get(name) == "Ellipsis" else Global(name)

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            refuse("it ends too early")
        return data

    def _top(self, kind: type = object) -> Any:
        if not self._stack:
            refuse("something is taken from an empty stack")
        if kind is not object and type(self._stack[-1]) is not kind:
            refuse(f"a {_kinds(self._stack[-1])} is used as a {kind.__name__}")
        return self._stack[-1]

    def _pop(self, kind: type = object) -> Any:
        self._top(kind)
        return self._stack.pop()

    def _marked(self) -> list[Any]:
        if not self._outer:
            refuse("there is no mark")
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What a call gives, by the name of what is called."""
        match _CALLS.get(name, "record" if name in self._names else None), arguments:
            case "tensor", (Storage() as storage, at, tuple() as size, tuple() as step, bool(), {} | None as more) if (
                not more
            ):
                return self._archive.tensor(storage, at, size, step)
            case "tensor", (Storage() as storage, at, tuple() as size, tuple() as step) if name in _OLD:
                return self._archive.tensor(storage, at, size, step)
            case "parameter", (Tensor() as data,) if name in _OLD and type(data) is Tensor and data.is_floating_point():
                return nn.Parameter(data)
            case "parameter", (Tensor() as data, bool() as gradient, {} | None as more) if not more:
                if not isinstance(data, nn.Parameter) and (data.is_floating_point() or not gradient):
                    return nn.Parameter(data, gradient)
            case "dict", ():
                return {}
            case "dict", (list() as pairs,) if all(type(pair) is list and len(pair) == 2 for pair in pairs):  # Python 2
                self._left -= len(pairs)  # the same list may be made a dict many times
                return dict(zip(_keys([key for key, _ in pairs]), [value for _, value in pairs], strict=True))
            case "record", (None | Global(),) if name == "collections.defaultdict":  # its default is never asked for
                return {}
            case "set", (list() as values,):
                self._left -= len(values)  # the same list may be made a set many times
                return set(_keys(values))
            case "slice", (_, _, _) if all(value is None or type(value) is int for value in arguments):
                return slice(*arguments)
            case "record", _:
                return Record(name, arguments)
        raise WeightsError(f"{name} is called with ({_kinds(*arguments)})")


def _keys(values: list[Any]) -> list[Any]:
    """Values that are cheap to hash: a deep tuple isn't, and ends the process."""
    for value in values:
        if value is not None and type(value) not in (str, int, bool):
            refuse(f"a {_kinds(value)} is a key of a dict or an element of a set, expected str or int")
    return values


def _storage(identity: tuple[Any, ...]) -> Storage:
    match identity:
        case "storage", Global(kind), str() as key, str(), int() as numel, *view if kind in STORAGES and natural(numel):
            if view in ([], [None]):  # before torch 1.6 there could be views of storages
                return Storage(short(key), STORAGES[kind], numel)
    raise WeightsError(f"a persistent id is ({_kinds(*identity)}), expected 'storage', type, key, device and length")


def _check(root: Any, names: frozenset[str]) -> None:
    """Refuse what isn't safe to walk: cycles, depth, shared containers that unfold without end, unfinished values."""
    left, count = [(root, 0)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            refuse(f"there are more than {MAX_VALUES} values or {MAX_DEPTH} within each other, or one contains itself")
        inner: Iterable[Any] = ()
        if isinstance(value, list | tuple):
            inner = value
        elif isinstance(value, dict):
            inner = value.values()
        elif isinstance(value, Record):
            _check_module(value)
            inner = value.args, value.state
        elif isinstance(value, Storage) or (isinstance(value, Global) and value.name not in names):
            refuse(f"a {_kinds(value)} is left over")
        left.extend((child, depth + 1) for child in inner)


def _check_module(record: Record) -> None:
    if not all(type(key) is str for key in record.state):
        refuse(f"a {record.name} has attributes whose names are no strings")
    for name, kind in (("_parameters", nn.Parameter), ("_buffers", Tensor), ("_modules", Record)):
        held = record.state.get(name, {})
        fits = isinstance(held, dict) and all(item is None or isinstance(item, kind) for item in held.values())
        if not fits or not all(type(key) is str for key in held):
            refuse(f"{name} of a {record.name} isn't a dict of names to {kind.__name__} or None")
