"""What folders cost that ask for much: CPU seconds and memory of each, and what was said.

scripts/bench/run hostile [--quick] [--only WORD] [--fuzz MINUTES]

Each folder of `hostile_folders` is read through each of its doors in a process of its own; of the doors the dearest is
shown. The exit status is 1 where a folder costs more than SECONDS or MEMORY, or is refused by anything but a ZooError.
With `--fuzz` valid folders are read of which parts were changed at random, for so many minutes.
"""

import argparse
import gc
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hostile_folders import DOORS, FOLDERS
from hostile_fuzz import fuzz

from zoo.errors import ZooError
from zoo.printable import MAX_MESSAGE

SECONDS = 10.0  # of CPU
MEMORY = 2048  # MiB, beyond what the process has when it starts
PATIENCE = 60.0  # seconds of the clock, after which a process is ended
QUICK = ("2,000 empty edits", "a safetensors shape of a million sizes", "model.safetensors is a FIFO")


@dataclass(frozen=True)
class Cost:
    """What one reading took.

    Args:
        seconds: of CPU.
        memory: at its peak, in MiB, beyond what the process had.
        said: a ZooError's message, nothing where it was read, or what else happened.
        as_agreed: whether it was read or refused by a ZooError.
    """

    seconds: float
    memory: float
    said: str
    as_agreed: bool

    @property
    def within(self) -> bool:
        """Whether it is within all bounds."""
        return self.as_agreed and self.seconds <= SECONDS and self.memory <= MEMORY


def cost(read: Callable[[Path], object], folder: Path) -> Cost:
    """Read a folder in a process of its own, which ends after `PATIENCE`."""
    ours, theirs = multiprocessing.Pipe()
    gc.freeze()
    process = os.fork()
    if not process:
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))  # spares the machine
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read(folder)
            theirs.send(("read", True, before))
        except ZooError as error:
            said = str(error)
            theirs.send((said, said.isprintable() and len(said) <= MAX_MESSAGE, before))
        except BaseException as error:
            theirs.send((f"{type(error).__name__}: {error}", False, before))
        os._exit(0)
    theirs.close()
    ended = ours.poll(PATIENCE)
    try:
        said, as_agreed, before = ours.recv() if ended else (f"no answer within {PATIENCE:.0f} s", False, 0)
    except EOFError:
        said, as_agreed, before = "the process ended", False, 0
    if not ended:
        os.kill(process, 9)
    _, _, used = os.wait4(process, 0)
    return Cost(used.ru_utime + used.ru_stime, (used.ru_maxrss - before) / 1024, said, as_agreed)


def main() -> None:
    """Print a row for each folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three folders")
    parser.add_argument("--only", default="", help="folders with this in their name")
    parser.add_argument("--fuzz", type=float, metavar="MINUTES", help="read folders changed at random instead")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # a process that is forked has the one
    if asked.fuzz:
        sys.exit(bool(fuzz(asked.fuzz, SECONDS)))
    names = QUICK if asked.quick else [name for name in FOLDERS if asked.only in name]
    exceeded = 0
    print(f"{'folder':44}{'CPU s':>7}{'MiB':>7}  {'door':17}said")
    for name in names:
        write, doors = FOLDERS[name]
        with tempfile.TemporaryDirectory() as place:
            os.environ["ZOO_CACHE"] = str(Path(place) / "cache")
            write(folder := Path(place) / "net")
            costs = {door: cost(DOORS[door], folder) for door in doors}
        door = max(costs, key=lambda each: (not costs[each].within, costs[each].said != "read", costs[each].seconds))
        exceeded += not all(each.within for each in costs.values())
        mark = "" if all(each.within for each in costs.values()) else "ABOVE: "
        most = max(each.memory for each in costs.values())
        print(f"{name:44}{costs[door].seconds:7.2f}{most:7.0f}  {door:17}{mark}{costs[door].said[:300]!r}", flush=True)
    sys.exit(bool(exceeded))


if __name__ == "__main__":
    main()
