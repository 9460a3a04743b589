"""How many images there are to train on, which a stream doesn't say by itself.

In this order: map-style data knows; a data set of the Hub that is small is downloaded, as then everything is at hand;
of a larger one the footers of its parquet files say how many rows each of their row groups has; else its card may say
how many there are in all; else the schedule's steps do.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from zoo.catalog.data_names import form_of_boxes, limited, on_hub
from zoo.errors import DataError, as_cause, require
from zoo.tasks.columns import is_stream
from zoo.tasks.datasets import dataset
from zoo.tasks.folders import SPLITS
from zoo.tasks.inside import check_card
from zoo.tasks.streams import Stream

if TYPE_CHECKING:
    from zoo.tasks.columns import Data

READ_WHOLE = 2 << 30  # bytes of a data set of the Hub that is downloaded rather than streamed


def training_set(
    spec: Any, *, steps: int | None = None, batch_size: int = 1, skip_damaged: bool = False
) -> "Data | Stream":
    """Open a data set to train on.

    Args:
        spec: as `dataset` takes it.
        steps: of the schedule, where it says so: what a stream is taken to last if nobody knows how many images it has.
        batch_size: of the schedule.
        skip_damaged: as for `dataset`.

    Returns:
        Its train split, with a length.

    Raises:
        UnknownName, DataError: as for `dataset`; or it is a stream of unknown length, and the schedule says no steps.
    """
    name, most = limited(spec)
    builder = _builder(name) if on_hub(name) else None
    if builder is not None and _size(builder) <= READ_WHOLE:
        form = form_of_boxes(spec)
        return dataset(_downloaded(name), "train", limit=most, skip_damaged=skip_damaged, boxes=form)
    data = dataset(spec, "train", skip_damaged=skip_damaged)
    if not is_stream(data):
        return data
    return counted(data, spec, None if skip_damaged else builder, most, steps and steps * batch_size)


def counted(
    data: Any, spec: Any = "the stream", builder: Any = None, most: int | None = None, least: int | None = None
) -> Stream:
    """A stream with the number of its images.

    Args:
        data: from `dataset`.
        spec: of the data, for the message.
        builder: of `datasets`, that it came from; None where rows were left out.
        most: images that it was limited to.
        least: images that it is taken to have if nobody knows.

    Raises:
        DataError: nobody knows.
    """
    told = (data.info.splits or {}).get(str(data.split))
    total = told.num_examples if told and told.num_examples else None
    if builder is not None and most is None:
        files = builder.config.data_files or {}
        groups = _row_groups(tuple(next((files[name] for name in SPLITS["train"] if name in files), ())))
        total = sum(map(sum, groups)) or total
        if groups and hasattr(data, "reshard"):
            data = data.reshard()
        for rows in ([row for group in groups for row in group], [sum(group) for group in groups]):
            if rows and len(rows) == data.num_shards:
                return Stream(data, sum(rows), tuple(rows))
    known = least if total is None else total
    if known is None:
        raise DataError(
            f"{spec} is a stream, and nothing says how many images it has: say how many steps to train, by --steps or "
            "the schedule's steps"
        )
    return Stream(data, known if most is None else min(most, known))


def _builder(name: str) -> Any:
    datasets = require("datasets", "eval")
    check_card(name)
    try:
        return datasets.load_dataset_builder(name)
    except Exception:  # the library lets through whatever its HTTP client raises; opening it says what is wrong
        return None


def _size(builder: Any) -> float:
    """Bytes to download."""
    if builder.info.download_size:
        return float(builder.info.download_size)
    files = [file for of_split in (builder.config.data_files or {}).values() for file in of_split]
    if not files:
        return float("inf")
    with ThreadPoolExecutor(16) as pool:
        return float(sum(pool.map(_bytes, files)))


def _bytes(file: str) -> int:
    files, path = require("fsspec", "eval").core.url_to_fs(file)
    return int(files.size(path))


def _downloaded(name: str) -> Any:
    datasets = require("datasets", "eval")
    try:
        return datasets.load_dataset(name)
    except Exception as error:
        raise DataError(f"{name}: it couldn't be downloaded ({error}); try again") from as_cause(error)


@cache
def _row_groups(files: tuple[str, ...]) -> list[list[int]]:
    """The rows of each row group of each file; nothing where they aren't parquet."""
    if not files or not all(file.endswith(".parquet") for file in files):
        return []
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_of_file, files))


def _of_file(file: str) -> list[int]:
    files, path = require("fsspec", "eval").core.url_to_fs(file)
    with files.open(path) as opened:
        metadata = require("pyarrow.parquet", "eval").ParquetFile(opened).metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
