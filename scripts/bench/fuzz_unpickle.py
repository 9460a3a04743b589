"""Feed damaged and made-up files to the reader of pickles, under an audit hook and a limit of memory.

Each case damages a good file anew: its bytes, its pickle's bytes or opcodes, the numbers and names in it, its zip
directory or its members; or puts opcodes together at random. Whatever is not read must be refused by WeightsError, with
nothing imported, executed, opened for writing or connected, within the memory and seconds that are stated. The first
case that isn't stops the run with exit status 1 and is kept beside the seed that makes it again.

scripts/bench/run fuzz_unpickle [--quick] [--minutes 20] [--seed 0] [--cases N]
"""

import argparse
import collections
import io
import os
import pickletools
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from zoo.errors import WeightsError
from zoo.hub.foreign.unpickle import STORAGES, load_pickle

MEMORY = 512 * 1024**2  # bytes of address space beyond what the process has when it starts
SECONDS = 10
NAMES = {f"torch.nn.modules.{name}" for name in ("container.ModuleList", "linear.Linear", "batchnorm.BatchNorm1d")}
NAMES |= {"torch.nn.modules.activation.ReLU", "it.Enum", "it.function"}
FOREIGN = ["posix.system", "os.system", "builtins.eval", "builtins.getattr", "builtins.exec", "nt.system", "a.b"]
FOREIGN += ["torch.load", "torch.hub.load", "copyreg._reconstructor", "functools.partial", "builtins.set", "it.Enum"]
NUMBERS = [0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
CODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def good() -> bytes:
    torch.manual_seed(0)
    act = nn.ReLU()
    modules = nn.ModuleList([nn.Linear(3, 2), act, nn.BatchNorm1d(2), act, nn.Linear(2, 2).half()])
    modules.more = {
        "a": [1, 2.5, (None, True)],
        "s": {1, 2},
        "o": OrderedDict(x=slice(1, None)),
        "t": torch.ones(3, 4).T,
    }
    file = io.BytesIO()
    torch.save(modules, file)  # noqa: TID251  # the writer whose files are read here
    return file.getvalue()


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, lost, doubled, moved or filled in."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at, length = rng.randrange(len(found) + 1), rng.choice([1, 1, 2, 4, 8, 30])
        match rng.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + length] = rng.randbytes(length)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[(start := rng.randrange(len(found) + 1)) : start + length]
            case 4:
                found[at : at + 8] = rng.choice(NUMBERS).to_bytes(8, "little")[: rng.choice([1, 2, 4, 8])]
            case _:
                found = found[:at] if rng.random() < 0.1 else found
    return bytes(found)


def chunks(data: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def integer(value: int) -> bytes:
    if abs(value) < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a" + bytes([length := value.bit_length() // 8 + 1]) + value.to_bytes(length, "little", signed=True)


def made_up(rng: random.Random, known: list[bytes]) -> bytes:
    """An opcode with an argument that has at least its form."""
    match rng.randrange(7):
        case 0:
            return rng.choice(CODES) + rng.randbytes(rng.choice([0, 0, 1, 4]))
        case 1:
            return b"c" + rng.choice([*FOREIGN, *NAMES, *STORAGES]).rpartition(".")[0].encode() + b"\nsystem\n"
        case 2:
            return b"c" + b"\n".join(rng.choice([*FOREIGN, *NAMES, *STORAGES]).encode().rsplit(b".", 1)) + b"\n"
        case 3:
            return integer(rng.choice(NUMBERS) * rng.choice([1, -1]))
        case 4:
            return rng.choice(
                [b"(", b")", b"]", b"}", b"t", b"\x85", b"R", b"\x81", b"b", b"Q", b"s", b"u", b"a", b"e"]
            )
        case 5:
            return rng.choice([b"h", b"q", b"K"]) + rng.randbytes(1)
        case _:
            return rng.choice(known)


def reworked(data: bytes, rng: random.Random) -> bytes:
    """Some opcodes changed, lost, doubled, moved or put in."""
    known = chunks(data)
    found = list(known)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(1, max(2, len(found)))
        match rng.randrange(5):
            case 0:
                found[at] = made_up(rng, known)
            case 1:
                found.insert(at, made_up(rng, known))
            case 2:
                del found[at : at + rng.choice([1, 1, 2, 5])]
                found = found if len(found) > 1 else [*found, b".", b"."]
            case 3:
                other = rng.randrange(1, len(known))
                found[at:at] = known[other : other + rng.choice([1, 3, 10, 40])]
            case _:
                other = rng.randrange(len(found))
                found[at % len(found)], found[other] = found[other], found[at % len(found)]
    return b"".join(found)


def streamed(data: bytes, rng: random.Random) -> bytes:
    """Opcodes at random, or one repeated a great many times."""
    known = chunks(data)
    if rng.random() < 0.02:
        parts = [made_up(rng, known) for _ in range(rng.choice([1, 2, 3]))]
        return b"\x80\x02)]q\0}q\1" + b"".join(parts) * rng.choice([1000, 20_000]) + b"."
    return b"\x80\x02" + b"".join(made_up(rng, known) for _ in range(rng.randrange(1, 60))) + b"."


def renumbered(data: bytes, rng: random.Random) -> bytes:
    """Numbers and names of a valid pickle changed, so that storages, strides and classes lie."""
    found = chunks(data)
    numbers = [at for at, chunk in enumerate(found) if chunk[:1] in (b"K", b"M", b"J")]
    for at in rng.sample(numbers, rng.choice([1, 1, 2, 5])):
        found[at] = integer(rng.choice(NUMBERS))
    if rng.random() < 0.3:
        at = rng.choice([at for at, chunk in enumerate(found) if chunk[:1] == b"c"])
        found[at] = b"c" + b"\n".join(rng.choice([*FOREIGN, *NAMES, *STORAGES]).encode().rsplit(b".", 1)) + b"\n"
    return b"".join(found)


def relisted(data: bytes, rng: random.Random) -> bytes:
    """One field of the zip's directory or end changed, whose checksums cover none of them."""
    found = bytearray(data)
    entries = [match.start() for match in re.finditer(rb"PK(?:\x01\x02|\x05\x06|\x06\x06|\x06\x07|\x03\x04)", data)]
    for _ in range(rng.choice([1, 1, 2])):
        at, size = rng.choice(entries) + rng.randrange(4, 46), rng.choice([1, 2, 4, 8])
        found[at : at + size] = rng.choice([rng.choice(NUMBERS).to_bytes(8, "little")[:size], rng.randbytes(size)])
    return bytes(found[: len(data)])


def exchanged(members: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """A member lost, renamed, cut, lengthened or exchanged for another."""
    found = dict(members)
    name, other = rng.choice(list(found)), rng.choice(list(found))
    match rng.randrange(5):
        case 0:
            del found[name]
        case 1:
            found[damaged(name.encode(), rng).decode("latin-1").replace("\0", "") or "x"] = found.pop(name)
        case 2:
            found[name] = found[name][: rng.randrange(len(found[name]) + 1)]
        case 3:
            found[name] += rng.randbytes(rng.choice([1, 4, 64]))
        case _:
            found[name], found[other] = found[other], found[name]
    return found


def case(kind: str, seed: bytes, rng: random.Random) -> bytes:
    members = unpacked(seed)
    pickled = next(name for name in members if name.endswith("data.pkl"))
    match kind:
        case "bytes":
            return damaged(seed, rng)
        case "directory":
            return relisted(seed, rng)
        case "members":
            return packed(exchanged(members, rng))
    change = {"pickle": damaged, "opcodes": reworked, "streams": streamed, "numbers": renumbered}[kind]
    return packed({**members, pickled: change(members[pickled], rng)})


KINDS = ("bytes", "directory", "members", "pickle", "opcodes", "streams", "numbers")


class Watch:
    """The audit hook: everything but opening files for reading is kept while it is on."""

    def __init__(self) -> None:
        self.on, self.events = False, []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.on and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            self.events.append((event, str(arguments)[:200]))


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--quick", action="store_true", help="200 cases")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cases = 200
    folder = Path(tempfile.mkdtemp(prefix="fuzz-unpickle-"))
    path, seed, watch = folder / "it.pt", good(), Watch()
    path.write_bytes(seed)
    load_pickle(path, NAMES)  # what is imported late is imported now
    limit_memory()
    modules, counts, slowest = set(sys.modules), collections.Counter(), 0.0
    start, number = time.monotonic(), 0
    while time.monotonic() < start + 60 * arguments.minutes and number < arguments.cases:
        kind, rng = KINDS[number % len(KINDS)], random.Random(f"{arguments.seed} {number}")  # noqa: S311  # no secret
        data = case(kind, seed, rng)
        path.write_bytes(data)
        began, problem = time.perf_counter(), ""
        watch.on = True
        try:
            load_pickle(path, NAMES)
            outcome = "read"
        except WeightsError as error:
            text = str(error).removeprefix(f"{path} is refused: ").rpartition(": fetch")[0].rpartition(": ")[2]
            outcome = re.sub(r"b['\"].*|\S*[._\d]\S*|\(.*", "*", text)
            problem = "" if len(str(error).splitlines()) == 1 else "a message of several lines"
        except BaseException:
            outcome, problem = "another exception", traceback.format_exc()
        watch.on = False
        seconds = time.perf_counter() - began
        slowest, number = max(slowest, seconds), number + 1
        counts[kind, outcome] += 1
        problem = problem or "".join(map(str, watch.events)) or " ".join(set(sys.modules) - modules)
        if problem or seconds > SECONDS:
            print(f"{kind} {number - 1} of seed {arguments.seed}, {seconds:.1f} s, kept as {path}: {problem}")
            return 1
    path.unlink()
    folder.rmdir()
    for kind in KINDS:
        print(f"\n{kind}: {sum(count for (of, _), count in counts.items() if of == kind)}")
        for (of, outcome), count in counts.most_common():
            if of == kind and count >= 0.005 * number / len(KINDS):
                print(f"{count:10} {outcome}")
    peak, done = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.monotonic() - start
    taken = sum(count for (_, outcome), count in counts.items() if outcome == "read")
    print(f"\n{number} cases in {done:.0f} s, {taken} read, none failed; slowest {slowest:.2f} s, peak {peak} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
