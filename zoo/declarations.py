"""Declarations: what a file, an option or a caller may say, held against its type.

Types and bounds stand in the annotation of a field, `Annotated[int, Meta(ge=1)]`; msgspec compares. What doesn't fit is
told in one line: its place, what was found, and what its type expects.
"""

import functools
import inspect
import re
import reprlib
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct, ValidationError, convert

from zoo.errors import ZooError

MAX_FLOAT = sys.float_info.max  # at most this: neither infinite nor nan
MAX_WHOLE = 2**53  # those that floats hold exactly

Whole = Annotated[int, Meta(ge=0, le=MAX_WHOLE)]
Count = Annotated[int, Meta(ge=1, le=MAX_WHOLE)]
Nonnegative = Annotated[float, Meta(ge=0, le=MAX_FLOAT)]
Positive = Annotated[float, Meta(gt=0, le=MAX_FLOAT)]
Share = Annotated[float, Meta(gt=0, le=1, description="a share above 0, at most 1")]
Finite = (
    Annotated[int, Meta(ge=-MAX_WHOLE, le=MAX_WHOLE, description="a finite number")]
    | Annotated[float, Meta(ge=-MAX_FLOAT, le=MAX_FLOAT, description="a finite number")]
)
Name = Annotated[str, Meta(max_length=1_000)]


def _word(pattern: str, most: int, words: str) -> Meta:
    """The bound of a text that names something wherever it is written: in a command, in code, on a card."""
    return Meta(pattern=rf"^(?=.{{1,{most}}}\Z){pattern}\Z", description=f"{words}, at most {most} characters")


ModelName = Annotated[str, _word("[A-Za-z0-9][A-Za-z0-9._-]*", 96, "a name of letters, digits and . _ -")]  # the Hub's
BaseId = Annotated[str, _word("[A-Za-z0-9._/~-]+", 200, "an id such as timm/resnet18")]
FigureName = Annotated[str, _word("[A-Za-z][A-Za-z0-9_]*", 64, "a figure's name such as top1")]
Package = Annotated[str, _word("[A-Za-z0-9][A-Za-z0-9._-]*", 64, "a package's name")]
Version = Annotated[str, _word("[A-Za-z0-9][A-Za-z0-9._+!-]*", 64, "a version such as 2.9.0+cpu")]


def one_of(names: Collection[str]) -> Meta:
    """The bound of a text that is one of these."""
    return Meta(pattern=rf"^({'|'.join(map(re.escape, names))})\Z", description=f"one of {', '.join(names)}")


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
# Half a pair of surrogates, which JSON may hold; and msgspec asks whatever can be indexed for its keys, tensors too.
_UNFIT = (ValidationError, UnicodeError, AttributeError)
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxdict, _SHOWN.maxstring, _SHOWN.maxother = 2, 2, 80, 80


def validated(kind: Any, data: Any, where: str, error: type[ZooError]) -> Any:
    """The value that plain data stand for: a number is no text, true no number, and unknown keys are refused.

    Args:
        kind: a type, of which `Struct`s and what has bounds in its annotation are held against them.
        data: dicts, lists and plain values, as TOML and JSON give them.
        where: what was read, for the message; the path goes on from there, or begins after a colon.
        error: what is raised.

    Returns:
        A value of that type.

    Raises:
        ZooError: the given one, that the data don't fit.

    >>> from zoo.errors import CatalogError
    >>> validated(dict[str, Count], {"epochs": 0}, "mine.toml: a", CatalogError)
    Traceback (most recent call last):
    zoo.errors.CatalogError: mine.toml: a.epochs is 0, expected a whole number of at least 1
    """
    try:
        return convert(data, kind)
    except _UNFIT:
        raise error(_problem(kind, data, where)) from None


def validate(declared: Any, where: str, error: type[ZooError]) -> None:
    """Hold the fields of a value that was made in Python against their types; arguments are those of `validated`."""
    kind: Any = type(declared)
    told = {name: getattr(declared, name) for name in _fields(kind)}
    plain = {name: float(value) if isinstance(value, float) else value for name, value in told.items()}  # numpy's too
    validated(_like(kind), plain, f"{where}:", error)


@functools.cache
def _like(kind: Any) -> Any:
    """A struct of the same fields; of structs msgspec remembers how they are read."""
    return msgspec.defstruct(kind.__name__, _fields(kind).items())


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


class Argument(Struct, frozen=True):
    """One field of a declaration, in words.

    Args:
        name: of the field.
        kind: what it may be.
        default: its value where nothing is said.
        meaning: what its declaration's docstring says.
    """

    name: str
    kind: str
    default: Any
    meaning: str


def arguments(kind: Any) -> list[Argument]:
    """The fields of a declaration, all with defaults, as its docstring tells them.

    Args:
        kind: a dataclass or a `Struct`.

    >>> [(each.name, each.meaning) for each in arguments(Argument)[:1]]
    [('name', 'of the field')]
    """
    said, values = meanings(inspect.getdoc(kind) or ""), inspect.signature(kind).parameters
    struct = {each.name: each for each in msgspec.structs.fields(kind)} if _is_struct(kind) else {}

    def default(name: str) -> Any:  # of a struct a signature has a factory's name
        made = struct[name].default_factory if name in struct else msgspec.NODEFAULT
        return values[name].default if made is msgspec.NODEFAULT else made()

    return [Argument(name, _told(kind), default(name), said.get(name, "")) for name, kind in _fields(kind).items()]


def meanings(docstring: str) -> dict[str, str]:
    """What the section `Args` of a docstring says of each argument, without the full stop."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", f"{docstring}\n", re.MULTILINE)
    found = re.finditer(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {match[1]: " ".join(match[2].split()).removesuffix(".") for match in found}


def _told(kind: Any) -> str:
    """A type in words, of an option too that needn't be said."""
    optional = type(None) in get_args(kind)
    return f"{_expected(kind)}{' or none' if optional else ''}"


def _problem(kind: Any, data: Any, place: str) -> str:
    """The first part of the data that doesn't fit, as deep as it lies."""
    for step, part, item in _parts(kind, data):
        if not fits(part, item):
            return _problem(part, item, f"{place} {step[1:]}" if place.endswith(":") else f"{place}{step}")
    place = place.removesuffix(":")
    for member in _members(kind):
        if isinstance(data, Mapping) and _is_struct(member):
            return f"{place}: {_wrong_key([each for each in _members(kind) if _is_struct(each)], data)}"
        if isinstance(data, Mapping) and get_origin(member) in (dict, Mapping):
            key = next((key for key in data if not fits(get_args(member)[0], key)), None)
            if key is not None:
                return f"{place} has the key {_shown(key)}, expected {_expected(get_args(member)[0])}"
    return f"{place} is {_shown(data)}, expected {_expected(kind, data)}"


def _wrong_key(structs: Sequence[Any], data: Mapping[str, Any]) -> str:
    """What is wrong with the keys of data that are to be one of these structs."""
    field, tags = structs[0].__struct_config__.tag_field, [each.__struct_config__.tag for each in structs]
    tag = data.get(field)
    if tag not in tags:
        return f"unknown {field} {_shown(tag)}, known are {', '.join(tags)}"
    struct = structs[tags.index(tag)]
    known = struct.__struct_fields__ if field is None else (field, *struct.__struct_fields__)
    for key in data if struct.__struct_config__.forbid_unknown_fields else ():
        if key not in known:
            return f"unknown key {_shown(key)}, known are {', '.join(known)}"
    missing = [repr(each.name) for each in msgspec.structs.fields(struct) if each.required and each.name not in data]
    return f"missing {', '.join(missing)}"


def _parts(kind: Any, data: Any) -> Iterator[tuple[str, Any, Any]]:
    """What lies in the data one level deeper: its step of the path, its type and itself."""
    for member in _members(kind):
        origin, args = get_origin(member), get_args(member)
        if isinstance(data, Mapping) and _is_struct(member):
            config = member.__struct_config__
            if config.tag is None or data.get(config.tag_field) == config.tag:
                yield from ((f".{key}", part, data[key]) for key, part in _fields(member).items() if key in data)
        elif isinstance(data, Mapping) and origin in (dict, Mapping):
            yield from ((_step(key), args[1], item) for key, item in data.items())
        elif isinstance(data, list | tuple) and origin in (list, tuple, Sequence):
            yield from ((f"[{i}]", args[0], item) for i, item in enumerate(data))


def _step(key: Any) -> str:
    plain = isinstance(key, str) and key.isprintable() and len(key) <= _SHOWN.maxstring
    return f".{key}" if plain else f"[{_shown(key)}]"


def _members(kind: Any) -> list[Any]:
    """The types that a type is one of, without their bounds; none where a description speaks for all of it."""
    if get_origin(kind) is Annotated:
        return [] if _bounds(kind).description else _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for each in get_args(kind) for member in _members(each)]
    return [kind]


def _bounds(kind: Any) -> Meta:
    return next(each for each in get_args(kind) if isinstance(each, Meta))


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def fits(kind: Any, data: Any) -> bool:
    """Whether plain data stand for a value of a type."""
    try:
        convert(data, kind)
    except _UNFIT:
        return False
    return True


def _shown(value: Any) -> str:
    """A value in a few words, on one line."""
    try:
        return " ".join(_SHOWN.repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def _expected(kind: Any, data: Any = None) -> str:
    """A type in words; of several those that are of the data's kind, if any is."""
    if get_origin(kind) is Annotated:
        plain, bounds = get_args(kind)[0], _bounds(kind)
        return bounds.description or " ".join((_expected(plain), *_said(bounds, plain)))
    if get_origin(kind) in (Union, types.UnionType):
        several = [each for each in get_args(kind) if each is not type(None)]
        alike = [each for each in several if any((get_origin(m) or m) is type(data) for m in _members(each))]
        return " or ".join(dict.fromkeys(map(_expected, alike or several)))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if kind in _WORDS:
        return _WORDS[kind]
    return "a table" if _is_struct(kind) or get_origin(kind) in (dict, Mapping) else "a list"


def _said(bounds: Meta, kind: Any) -> Iterator[str]:
    """Bounds in words; that a number is finite goes without saying."""
    numbers = {"of at least": bounds.ge, "above": bounds.gt, "at most": bounds.le, "below": bounds.lt}
    told = {word: f"{bound:,.12g}" for word, bound in numbers.items() if bound is not None and abs(bound) < MAX_WHOLE}
    said = [f"{word} {bound}" for word, bound in told.items()]
    if told.keys() == {"of at least", "at most"}:
        said = [f"from {told['of at least']} to {told['at most']}"]
    if bounds.max_length is not None:
        least = f"{bounds.min_length} to" if bounds.min_length else "at most"
        said.append(f"of {least} {bounds.max_length:,}{' characters' if kind is str else ''}")
    if said:
        yield ", ".join(said)
