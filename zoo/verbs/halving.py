"""Halving: which of many models is the best that is fast enough, found with few timings.

First a glance at each that may be: of all that aren't timed yet, that whose chance to be fast enough, times what it
would gain, is largest; how long it will take is expected from those before (`zoo.measurement.expectation`). None is
looked at that is expected to be too slow, or whose accuracy another exceeds that is fast enough for certain. Then those
that a glance can't tell apart take turns, with twice as many rounds each time, and whoever is decided leaves.

Source: Jamieson, Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from zoo.errors import ZooError
from zoo.measurement.expectation import FEW, expected
from zoo.measurement.latency import FEWEST, Timing
from zoo.verbs.contenders import Contender

SLIGHT = 0.02  # a chance that isn't taken
NEAR = 1.3  # by which a glance may be off, as a factor
WIDE = 3  # times the fastest: how far the front is told where there is no limit
FRONT = 10  # models of the front that are timed with the winner
GLANCES = 10  # at models that may be on the front, once the winner is known
ROUNDS = (FEWEST, 2 * FEWEST, 4 * FEWEST)

Glance = Callable[[Contender], float]
"""A model → about how many milliseconds it takes."""
Together = Callable[[Sequence[Contender], int], Mapping[str, Timing]]
"""Models that take turns, and in how many rounds → structure → how long it takes."""


class Found(Struct):
    """What is known after a search.

    Args:
        glances: structure → milliseconds, of a glance.
        timings: structure → how long it takes, of those that took turns.
        refused: name → why it couldn't be timed.
        winner: the best; None where nothing is fast enough.
        ties: those that can't be told from it.
        open: how many weren't looked at for want of time, though they might be better.
    """

    glances: dict[str, float]
    timings: dict[str, Timing]
    refused: dict[str, str] = {}
    winner: Contender | None = None
    ties: list[Contender] = []
    open: int = 0

    def ms(self, contender: Contender) -> float:
        """Milliseconds, as well as they are known; infinite where they aren't."""
        timing = self.timings.get(contender.structure)
        return timing.ms if timing else self.glances.get(contender.structure, math.inf)


def search(
    contenders: Sequence[Contender],
    limit: float | None,
    glance: Glance,
    together: Together,
    enough: Callable[[], bool],
    found: Found,
) -> Found:
    """Find the most accurate model within a limit, or the fastest where there is none.

    Args:
        contenders: of each structure one.
        limit: milliseconds.
        glance: looks at one.
        together: times several.
        enough: whether the time is spent: then nothing more is looked at, and what takes turns does so once.
        found: what is known already; it is filled.
    """
    before = len(found.glances)
    kinds = [[each for each in contenders if each.compressed is kind] for kind in (True, False)]
    for group in (contenders, *kinds):  # the best at all, then the best of each kind
        while (following := _following(group, limit, found, contenders)) and not enough():
            _look(following[0], glance, found)
        found.open = len(following) if group is contenders else found.open
    _decide(contenders, limit, together, enough, found)
    if found.winner is not None:
        for _ in range(GLANCES if len(found.glances) > before else 0):  # what is asked again costs nothing
            if enough() or not (following := _on_front(contenders, limit, found)):
                break
            _look(following[0], glance, found)
        while untimed := _untimed(contenders, limit, found):  # what turns show may let others onto the front
            _time(untimed, ROUNDS[0], together, found)
    return found


def front(contenders: Iterable[Contender], limit: float | None, found: Found) -> list[Contender]:
    """The models of which none that is as fast is more accurate, from the slowest that is within the limit on."""
    known = sorted(_known(contenders, found), key=lambda each: (found.ms(each), -each.top1))
    most = limit if limit is not None else WIDE * found.ms(known[0]) if known else 0.0
    best, chosen = -math.inf, []
    for each in known:
        if each.top1 > best and found.ms(each) <= most:
            best = each.top1
            chosen.append(each)
    return chosen[::-1][:FRONT] if limit is not None else chosen[:FRONT][::-1]


def bests(contenders: Iterable[Contender], limit: float | None, found: Found) -> list[Contender]:
    """The best compressed and the best dense model within the limit, where there are any."""
    kinds = [[each for each in contenders if each.compressed is kind] for kind in (True, False)]
    return [each for kind in kinds if (each := _best(kind, limit, found)) is not None]


def _untimed(contenders: Sequence[Contender], limit: float | None, found: Found) -> list[Contender]:
    """What is told in the end and has only had a glance."""
    told = [*front(contenders, limit, found), *bests(contenders, limit, found)]
    return [each for each in dict.fromkeys(told) if each.structure not in found.timings]


def _best(contenders: Iterable[Contender], limit: float | None, found: Found, slack: float = 1.0) -> Contender | None:
    """The most accurate that is within the limit, or the fastest of all; of equals the faster."""
    known = _known(contenders, found)
    if limit is None:
        return min(known, key=found.ms, default=None)
    within = [each for each in known if found.ms(each) * slack <= limit]
    return max(within, key=lambda each: (each.top1, -found.ms(each)), default=None)


def _look(contender: Contender, glance: Glance, found: Found) -> None:
    try:
        found.glances[contender.structure] = glance(contender)
    except ZooError as error:
        found.refused[contender.name] = str(error)


def _known(contenders: Iterable[Contender], found: Found) -> list[Contender]:
    return [each for each in contenders if found.ms(each) < math.inf]


def _unknown(contenders: Iterable[Contender], found: Found) -> list[Contender]:
    return [each for each in contenders if found.ms(each) == math.inf and each.name not in found.refused]


def _chances(
    unknown: Sequence[Contender], below: Sequence[float], found: Found, all: Sequence[Contender]
) -> list[float]:
    """How likely each takes less than so many milliseconds."""
    timed = [(each.cost, found.ms(each)) for each in _known(all, found)]
    if not timed:  # that which costs least comes first
        least = min(each.cost.macs for each in unknown)
        return [float(each.cost.macs == least) for each in unknown]
    ms, spread = expected([each.cost for each in unknown], timed)
    return [
        0.5 * math.erfc(-math.log(most / each) / spread / math.sqrt(2)) if most > 0 else 0.0
        for each, most in zip(ms.tolist(), below, strict=True)
    ]


def _following(
    contenders: Sequence[Contender], limit: float | None, found: Found, all: Sequence[Contender]
) -> list[Contender]:
    """Those that may be the best, the most promising first."""
    sure = _best(contenders, limit, found, NEAR)
    least = sure.top1 if sure and limit is not None else 0.0
    unknown = [each for each in _unknown(contenders, found) if each.top1 > least]
    if not unknown:
        return []
    most = limit if limit is not None else (found.ms(sure) if sure else 1.0)
    chances = _chances(unknown, [NEAR * most] * len(unknown), found, all)
    gains = [
        chance * (each.top1 - least if limit is not None else 1.0)
        for chance, each in zip(chances, unknown, strict=True)
    ]
    order = sorted(range(len(unknown)), key=lambda place: -gains[place])
    unsure = sure is None and len(_known(all, found)) < FEW  # one bad glance must not say that nothing is fast enough
    return [unknown[place] for place in order if unsure or chances[place] > SLIGHT]


def _on_front(contenders: Sequence[Contender], limit: float | None, found: Found) -> list[Contender]:
    """Those that are rather faster than whatever known is as accurate, the likeliest first."""
    known = _known(contenders, found)
    unknown = _unknown(contenders, found)
    below = [min([limit or math.inf, *(found.ms(one) for one in known if one.top1 >= each.top1)]) for each in unknown]
    pairs = [(each, most) for each, most in zip(unknown, below, strict=True) if most < math.inf]
    if not pairs:
        return []
    chances = _chances([each for each, _ in pairs], [most for _, most in pairs], found, contenders)
    order = sorted(range(len(pairs)), key=lambda place: -chances[place])
    return [pairs[place][0] for place in order if chances[place] > 0.5]


def _time(contenders: Sequence[Contender], rounds: int, together: Together, found: Found) -> None:
    if contenders:
        found.timings.update(together(contenders, rounds))


def _decide(
    contenders: Sequence[Contender],
    limit: float | None,
    together: Together,
    enough: Callable[[], bool],
    found: Found,
) -> None:
    """Let those that a glance can't tell apart take turns until they can be told."""
    known = sorted(_known(contenders, found), key=found.ms)
    while found.winner is None:
        left = [each for each in known if each.structure not in found.timings]
        if limit is None:
            near = [each for each in left if found.ms(each) <= NEAR * found.ms(known[0])]
        else:
            least = max((each.top1 for each in known if _surely(each, limit, found)), default=0.0)
            near = [each for each in left if found.ms(each) <= NEAR * limit and each.top1 >= least]
        undecided = near + _undecided(known, limit, found)
        for rounds in ROUNDS if near else ():
            _time(undecided, rounds, together, found)
            undecided = _undecided(undecided, limit, found)
            if len(undecided) < 2 or enough():
                break
        found.winner = _best([each for each in known if each.structure in found.timings], limit, found)
        if not near:
            break
    if found.winner is not None:
        found.ties = [each for each in _undecided([*known], limit, found) if each != found.winner]


def _surely(contender: Contender, limit: float, found: Found) -> bool:
    """Whether a model is within the limit, as far as is known of it."""
    timing = found.timings.get(contender.structure)
    return timing.high <= limit if timing else NEAR * found.ms(contender) <= limit


def _undecided(contenders: Sequence[Contender], limit: float | None, found: Found) -> list[Contender]:
    """Those that may be the winner, of those that took turns."""
    timed = [(each, found.timings[each.structure]) for each in contenders if each.structure in found.timings]
    if limit is None:
        least = min((timing.high for _, timing in timed), default=math.inf)
        return [each for each, timing in timed if timing.low <= least]
    best = max((each.top1 for each, timing in timed if timing.high <= limit), default=0.0)
    return [each for each, timing in timed if timing.low <= limit and each.top1 >= best]
