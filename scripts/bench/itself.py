"""A model beside itself: how many differences are claimed, by simulated noise and on this machine.

scripts/bench/run itself [--quick] [--repetitions 50] [--rounds 50] [--clock wall] [NAME]

Simulated are a base, a model that is the same, and the copy of the base, each in a turn of a round whose order is
drawn; copies differ by nothing or, in the logarithm, by 0.8 % (standard deviation). Shown is the share of repetitions
in which a 95 % interval, one of 99.99 %, and what `zoo bench` tells claim a difference.
"""

import argparse
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator

import zoo
from zoo.measurement.latency import Timing, interval, margin_of, ratios

LAYOUT = 0.008


def slots(kind: str, draw: random.Random) -> Iterator[float]:
    """The logarithm of how long one turn after the other takes."""
    busy, near, turn = draw.random() < 0.5, draw.gauss(0, 0.2), 0
    while True:
        busy, near, turn = busy ^ (draw.random() < 0.05), 0.9 * near + draw.gauss(0, 0.087), turn + 1
        more = {
            "white, 2 %": 0.0,
            "white, 20 %": draw.gauss(0, 0.2),
            "drifting": 0.002 * (turn % 150),
            "correlated": near,
            "in bursts": math.log(2) * busy,
            "every third turn": 0.3 * (turn % 3 == 0),
        }
        yield draw.gauss(0, 0.02) + more[kind]


KINDS = ("white, 2 %", "white, 20 %", "drifting", "correlated", "in bursts", "every third turn")


def simulated(kind: str, rounds: int, layout: float, draw: random.Random) -> tuple[bool, bool, bool]:
    """Whether each of the three rules claims a difference."""
    own, noise, order = [draw.gauss(0, layout) for _ in range(3)], slots(kind, draw), [0, 1, 2]
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        draw.shuffle(order)
        for place in order:
            times[place].append(math.exp(own[place] + next(noise)))
    base, model, copy = times
    found = ratios(base, model)
    (low, high), (lower, higher) = interval(found, 20), interval(found)
    told = Timing(1, 1, 1, 1, lower, higher, margin_of(ratios(base, copy))).verdict
    return low > 1 or high < 1, lower > 1 or higher < 1, told in ("faster", "slower")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="digits_cnn")
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--simulated", type=int, default=1000, help="repetitions")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clock", default="wall")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    asked = parser.parse_args()
    if asked.quick:
        asked.repetitions, asked.simulated, asked.rounds = 1, 10, 15
    draw = random.Random(0)  # noqa: S311
    print(f"{'share of claims':20}{'copies differ by':>18}{'95 %':>9}{'99.99 %':>9}{'told':>9}")
    for layout in (0.0, LAYOUT):
        for kind in KINDS:
            claims = [simulated(kind, asked.rounds, layout, draw) for _ in range(asked.simulated)]
            shares = "".join(f"{statistics.mean(each):9.4f}" for each in zip(*claims, strict=True))
            print(f"{kind:20}{layout:18.1%}{shares}")
    model, told, waits = zoo.create(asked.name), Counter[str](), []
    for _ in range(asked.repetitions):
        found = zoo.bench(model, base=model, rounds=asked.rounds, clock=asked.clock)
        told[str(found.rows[1].verdict)] += 1
        waits.append(found.waited or 0.0)
    print(f"{asked.name}, {asked.clock} time, {found.machine}: {dict(told)} in {asked.repetitions} repetitions")
    print(f"others had the cores for {min(waits):.0%} to {max(waits):.0%} of the time that it was ready")


if __name__ == "__main__":
    main()
