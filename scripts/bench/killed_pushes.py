"""Pushes killed at moments spread over their time, and servers killed at each step of a push: what is left, counted.

scripts/bench/run killed_pushes [--quick] [--times 50]

After each kill the repository must be the old one or the new one, file by file, and the next push must succeed.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from client import publish
from hub import serving
from killing import NAME, attempt, rehearsal

from zoo import catalog

OLD, NEW = catalog.EMBEDDED / "digits_cnn_pruned_25", catalog.EMBEDDED / "digits_vit_pruned_25"


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="one time")
    asked = parser.parse_args()
    times = 1 if asked.quick else asked.times
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        before, cache = here / "before", here / "cache"
        with serving(before) as address:
            publish(address, NAME, OLD)
        states, seconds = rehearsal(before, NEW, here / "rehearsal", cache)
        last = 1 if asked.quick else steps(before, here, states, cache)
        print(f"a push takes {seconds:.2f} s and {last - 1} steps of the server")
        print(f"{'killed':8}{'times':>6}  left")
        for who in ("client", "server"):
            found: Counter[tuple[str, str]] = Counter()
            for number in range(times):
                moment = {"after": seconds * (number + 0.5) / times} if who == "client" else {"kill": number % last + 1}
                found[attempt(before, NEW, here / "served", states, cache, **moment)] += 1
            left = ", ".join(f"{count} {state} (push {how})" for (state, how), count in sorted(found.items()))
            print(f"{who:8}{times:6}  {left}; the next push succeeded {times} times")


def steps(before: Path, here: Path, states: tuple[object, object], cache: Path) -> int:
    """The first step that a push doesn't come to, by halves."""
    low, high = 1, 1024
    while low < high:
        middle = (low + high) // 2
        ended = attempt(before, NEW, here / "served", states, cache, kill=middle)[1] == "ended"
        low, high = (low, middle) if ended else (middle + 1, high)
    return low


if __name__ == "__main__":
    main()
