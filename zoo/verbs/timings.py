"""Timings that were taken on this machine before, one file for each machine, version, backend, batch and precision."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from zoo.declarations import Name, Positive, validated
from zoo.errors import RepositoryError, StorageError
from zoo.files import cache, read_json, write_json
from zoo.measurement.latency import Timing

Conditions = Mapping[str, Any]
"""What timings hold for: processor and threads, versions, device, backend, batch, dtype."""


class _Turns(Struct, forbid_unknown_fields=True):
    ms: Positive
    low: Positive
    high: Positive


class _Known(Struct, forbid_unknown_fields=True):
    conditions: dict[Name, Any]
    glances: dict[Name, Positive]
    timings: dict[Name, _Turns]


def file_of(conditions: Conditions) -> Path:
    """The file of such timings."""
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16]
    return cache() / "timings" / f"{key}.json"


def known(conditions: Conditions) -> tuple[dict[str, float], dict[str, Timing]]:
    """Structure → milliseconds of a glance, and structure → timing; a file that can't be read is as none."""
    with contextlib.suppress(RepositoryError):
        read: _Known = validated(_Known, read_json(file_of(conditions)), "timings:", RepositoryError)
        timings = {structure: Timing(each.ms, each.low, each.high) for structure, each in read.timings.items()}
        return dict(read.glances), timings
    return {}, {}


def remember(conditions: Conditions, glances: Mapping[str, float], timings: Mapping[str, Timing]) -> None:
    """Keep timings beside those that are known; where the cache can't be written, that costs time alone."""
    before, timed = known(conditions)
    turns = {structure: _Turns(each.ms, each.low, each.high) for structure, each in {**timed, **timings}.items()}
    kept = _Known(dict(conditions), {**before, **glances}, turns)
    with contextlib.suppress(StorageError):
        write_json(file_of(conditions), to_builtins(kept))
