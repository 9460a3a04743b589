"""The graph view of a plan: its structure once more, as a graph, which loads without the library that has the base.

config.json         base and plan, and under `zoo.view` the sha256 of what lies beside
graph.json          the graph, whose layers have the paths of the plan's model
graph.safetensors   what the graph reads and no weights file holds: relative positions, masks of windows
model.safetensors   the weights, which plan and graph share
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from msgspec import Struct
from torch import Tensor, nn

from zoo.declarations import Name
from zoo.errors import RepositoryError, StructureError, WeightsError
from zoo.files import sha256, sha256_stamped, write_json
from zoo.hub import weights
from zoo.structure.graph.graph import Graph
from zoo.structure.tensors import tensors_of

GRAPH = "graph.json"
CONSTANTS = "graph.safetensors"
Form = Literal["plan", "graph"]


class View(Struct, frozen=True, kw_only=True):
    """What `zoo.view` says: the sha256 of `graph.json`, and of `graph.safetensors` where there is one."""

    graph: Name
    constants: Name | None = None


def write_view(folder: Path, graph: Graph, constants: Mapping[str, Tensor]) -> dict[str, str]:
    """Write a graph beside a plan.

    Args:
        folder: the repository, which isn't at its place yet.
        graph: the structure.
        constants: what it is given beside the weights.

    Returns:
        What `zoo.view` shall say.
    """
    write_json(folder / GRAPH, graph.to_json())
    view = {"graph": sha256(folder / GRAPH)}
    if constants:
        view["constants"] = weights.save_weights(folder / CONSTANTS, constants)
    return view


def files_of(ours: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that a structure lies in beside config.json, by what that says under `zoo`."""
    view = ours.get("view") or {}
    both = ("graph" in ours or "graph" in view, GRAPH), ("constants" in view, CONSTANTS)
    return tuple(name for there, name in both if there)


def seen_as(folder: Path, config: Mapping[str, Any], form: Form | None) -> dict[str, Any]:
    """A repository's configuration as if it had one structure alone.

    Args:
        folder: the repository.
        config: its config.json.
        form: the structure to take; None is the plan where there is one.

    Returns:
        The configuration; for the view of a plan that of a graph, with what `zoo.view` says.

    Raises:
        StructureError: there is no such form.
        RepositoryError: the repository doesn't have that one, or it was altered.
    """
    ours: Mapping[str, Any] = config["zoo"]
    if form is not None and form not in get_args(Form):
        raise StructureError(f"structure is {form!r}, expected plan or graph")
    if form == "plan" and "graph" in ours:
        raise RepositoryError(f"{folder} is a graph, and no plan over a base: leave structure='plan' out")
    if form != "graph" or "graph" in ours:
        return dict(config)
    if "view" not in ours:
        raise RepositoryError(f"{folder} has no {GRAPH} beside its plan: zoo convert {folder} --graph writes it")
    _compare(folder / GRAPH, ours["view"]["graph"], sha256_stamped)
    kept = {key: value for key, value in ours.items() if key not in ("plan", "fingerprint", "structure")}
    return {**config, "zoo": {**kept, "graph": GRAPH}}


def completed(
    values: Mapping[str, Tensor], folder: Path, config: Mapping[str, Any], model: nn.Module, device: str | torch.device
) -> dict[str, Tensor]:
    """What a view's model is given: of the weights those that it reads, and the constants.

    Args:
        values: name → tensor, from the weights.
        folder: the repository.
        config: from `seen_as`.
        model: the structure on meta.
        device: where the constants shall lie.

    Raises:
        RepositoryError, WeightsError: the constants are missing, damaged or altered.
    """
    ours, held = config["zoo"], tensors_of(model)
    if not {"graph", "view"} <= ours.keys():
        return dict(values)
    read = {name: value for name, value in values.items() if name in held}
    if (expected := ours["view"].get("constants")) is None:
        return read
    path = folder / CONSTANTS
    constants = weights.load_weights(path, device, mmap=False, structure=model)
    _compare(path, expected, sha256_stamped)
    return {**read, **constants}


def check_view(folder: Path, config: Mapping[str, Any]) -> None:
    """Read what lies beside the plan from the disk and compare its sha256.

    Raises:
        RepositoryError, WeightsError: a file is missing or was altered.
    """
    view: Mapping[str, str] = config["zoo"].get("view") or {}
    for key, name in (("graph", GRAPH), ("constants", CONSTANTS)):
        if key in view:
            _compare(folder / name, view[key], sha256)


def _compare(path: Path, expected: str, read: Callable[[Path], str]) -> None:
    if not path.is_file():
        raise RepositoryError(f"{path.parent} has no {path.name}: fetch or save the repository again")
    if (found := read(path)) != expected:
        raise WeightsError(f"{path} has sha256 {found[:12]}…, expected {expected[:12]}…: fetch or save it again")
