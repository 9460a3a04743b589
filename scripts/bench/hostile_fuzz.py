"""Valid folders of which a part is anything, read through every door: what is neither a model nor a ZooError."""

import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from hostile_folders import DOORS, doors
from hypothesis import HealthCheck, Phase, given, seed, settings

from zoo.errors import ZooError

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from mutating import mutations, valid_folders, written

BATCH = 200  # examples that share a seed


def fuzz(minutes: float, seconds: float) -> int:
    """Read changed folders for so many minutes.

    Args:
        minutes: of the clock.
        seconds: of CPU that a door may take.

    Returns:
        How many kinds of failures there were; a folder of each is kept.
    """
    counts, failures = Counter[str](), dict[str, Path]()
    kept = Path(tempfile.mkdtemp(prefix="hostile-"))
    with tempfile.TemporaryDirectory() as place:
        folders, end = valid_folders(Path(place)), time.monotonic() + 60 * minutes

        def read(mutation: tuple[str, dict[str, bytes]]) -> None:
            if time.monotonic() > end:
                return
            name, files = mutation
            folder = written(folders[name], Path(place) / "net", files)
            for door in doors(folder):
                started = time.process_time()
                try:
                    DOORS[door](folder)
                    counts["read"] += 1
                    failure = ""
                except ZooError as error:
                    counts["refused"] += 1
                    failure = "more than a line" if "\n" in str(error) else ""
                except Exception as error:
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    failure = f"{type(error).__name__} at {last.filename}:{last.lineno}: {str(error)[:120]!r}"
                if (spent := time.process_time() - started) > seconds:
                    failure = f"{door} takes {spent:.0f} s of CPU"
                kind = failure.partition(": ")[0]
                if failure and kind not in failures:
                    failures[kind] = kept / str(len(failures))
                    shutil.copytree(folder, failures[kind])
                    print(f"{door} of {name}, {', '.join(files)}: {failure}, kept in {failures[kind]}", flush=True)

        number = 0
        while time.monotonic() < end:
            number += 1
            alike = settings(
                max_examples=BATCH,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            seed(number)(alike(given(mutations(folders))(read)))()
    print(f"{counts['read']:,} were read, {counts['refused']:,} refused, {len(failures)} kinds of failures")
    if not failures:
        kept.rmdir()
    return len(failures)
