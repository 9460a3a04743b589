"""What looking costs in a large catalog and on a large Hub: commands of fresh processes, look-ups, pages of a listing.

scripts/bench/run catalog [--quick] [--entries 1000 10000 100000] [--repositories 10000] [--rounds 3]

Seconds that the processor works, of whole processes, medians. `first` is a command that reads all files and writes the
index, the others find it there.
"""

import argparse
import functools
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

FAMILY = """[family]
architecture = "resnet50d"
task = "image-classification"
base = "timm/resnet50d.a1_in1k"
license = "apache-2.0"
dataset = "ILSVRC/imagenet-1k"
[family.recipe]
method = "prune"
schedule = {{ epochs = 30 }}
"""
MODEL = """[[model]]
name = "resnet50d_pruned_{0:06}"
repo = "org/resnet50d_pruned_{0:06}"
revision = "{0:040x}"
recipe.budget.macs = 0.5
reported = [{{ top1 = 0.75, params_m = 12.5, kmapp = 87.5 }}]
"""
OF_A_FILE = 20  # models
CARD = "---\nlibrary_name: compressed-zoo\ntags: [compressed-zoo, pruned]\nlicense: mit\n---\n# {}\n"
LOOKED_UP = """
import sys, time
from zoo import catalog
from zoo.errors import UnknownName
catalog.info(sys.argv[1])
started = time.perf_counter()
for _ in range(1000):
    catalog.info(sys.argv[1])
print(time.perf_counter() - started)  # ms of one
"""
SERVED = (
    "import sys; from zoo.server import serve; serve(sys.argv[1], port=0, say=lambda line: print(line, flush=True))"
)
COMMANDS = {
    "list": ["list"],
    "list --json": ["list", "--json"],
    "show NAME": ["show", "resnet50d_pruned_000042"],
    "show WRONG": ["show", "resnet50d_prned_00042"],
}


def write_catalog(folder: Path, entries: int) -> None:
    """Files of a hundred projects."""
    for number in range(0, entries, OF_A_FILE):
        project = folder / f"project{number // OF_A_FILE % 100}"
        project.mkdir(parents=True, exist_ok=True)
        models = map(MODEL.format, range(number, min(number + OF_A_FILE, entries)))
        (project / f"family{number}.toml").write_text(FAMILY.format() + "".join(models))


def write_hub(folder: Path, repositories: int) -> None:
    """Repositories as pushes leave them; nothing waits for the disk."""
    os.fsync = lambda _: None
    from zoo.server import blobs, changes
    from zoo.server.names import repo_id
    from zoo.server.values import Change, File, git_oid

    for number in range(repositories):
        name, data = repo_id("model", f"org/model-{number:06}"), CARD.format(number).encode()
        changes.create(folder / ".hub", name, private=False)
        card = File(git_oid(data), len(data), blobs.keep(folder / ".hub", data), False)
        changes.commit(folder / ".hub", name, "main", [Change("README.md", card)], "card")


def seconds(call: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    """The median of a call."""
    times = []
    for _ in range(rounds):
        started = clock()
        call()
        times.append(clock() - started)
    return statistics.median(times)


def of_children() -> float:
    """Seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_process(process: int) -> float:
    """Seconds of one that runs."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def of_catalog(entries: int, rounds: int) -> list[float]:
    """Seconds of the first command and of each of the others; milliseconds of a look-up."""
    with tempfile.TemporaryDirectory() as temporary:
        write_catalog(Path(temporary), entries)
        time.sleep(2)  # until the files have settled
        environment = {**os.environ, "ZOO_CATALOG": temporary}

        def command(arguments: list[str]) -> Callable[[], object]:
            whole = [sys.executable, "-m", "zoo", *arguments]
            return lambda: subprocess.run(whole, env=environment, capture_output=True)

        first = seconds(command(COMMANDS["show NAME"]), of_children, 1)
        found = [seconds(command(arguments), of_children, rounds) for arguments in COMMANDS.values()]
        looked_up = [sys.executable, "-c", LOOKED_UP, "resnet50d_pruned_000042"]
        once = subprocess.run(looked_up, env=environment, capture_output=True, text=True, check=True).stdout
        return [first, *found, float(once)]


def of_hub(repositories: int, rounds: int) -> dict[str, float]:
    """Seconds of the first page, of others, and of a walk through all of them."""
    with tempfile.TemporaryDirectory() as temporary:
        write_hub(Path(temporary), repositories)
        command = [sys.executable, "-c", SERVED, temporary]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                models = f"{process.stdout.readline().strip()}/api/models?filter=compressed-zoo"
                clock = functools.partial(of_process, process.pid)
                return {
                    "first page of 10": seconds(lambda: page(f"{models}&limit=10"), clock, 1),
                    "page of 10": seconds(lambda: page(f"{models}&limit=10"), clock, rounds),
                    "page of 1,000": seconds(lambda: page(f"{models}&limit=1000&full=True"), clock, rounds),
                    "walk of all": seconds(lambda: walk(f"{models}&limit=1000&full=True"), clock, 1),
                }
            finally:
                process.kill()


def page(url: str) -> str | None:
    """Fetch a page; where the next one is."""
    with urllib.request.urlopen(url) as answer:  # noqa: S310  # of this machine
        answer.read()
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
    return link[1] if link else None


def walk(url: str | None) -> None:
    """Fetch a page and all that follow."""
    while url:
        url = page(url)


def main() -> None:
    """Print a row for each catalog, and one for each request."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repositories", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a hundred of each, one round")
    asked = parser.parse_args()
    if asked.quick:
        asked.entries, asked.repositories, asked.rounds = [100], 100, 1
    head = ["first", *COMMANDS, "look-up, ms"]
    print(f"{'entries':>10}" + "".join(f"{title:>14}" for title in head))
    for entries in asked.entries:
        print(f"{entries:10,}" + "".join(f"{figure:14.3f}" for figure in of_catalog(entries, asked.rounds)), flush=True)
    print(f"\n{asked.repositories:,} repositories")
    for request, took in of_hub(asked.repositories, asked.rounds).items():
        print(f"{request:20}{took:10.3f}", flush=True)


if __name__ == "__main__":
    main()
