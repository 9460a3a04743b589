"""The graph view of a plan: written beside it, and compared with it."""

import os
import shutil
from pathlib import Path

import torch

from zoo.errors import RepositoryError, StructureError
from zoo.files import REPOSITORY, read_json, write_json, writing_folder
from zoo.hub import graph_view, repository, weights
from zoo.measurement.divergence import apart
from zoo.measurement.macs import noise, unchanged
from zoo.printable import logger
from zoo.structure.graph.capture import BATCHES, capture
from zoo.structure.tensors import tensors_of
from zoo.verbs.loading import folder_of

log = logger(__name__)

CLOSE = 1e-5  # of the largest output


def add_graph(source: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """Write a model's structure as a graph beside its plan, for `load(..., structure="graph")`.

    Args:
        source: what `load` takes, but for a timm id.
        folder: the new repository; None adds to the repository in the folder `source`.

    Returns:
        The repository's folder.

    Raises:
        RepositoryError: the repository has no plan, or isn't in a folder of yours and no other was named.
        StructureError: the model does what no graph can do, or its graph computes something else.
        UnknownName, HubError, StorageError: as for `load` and `save`.
    """
    place = folder_of(source)
    written = read_json(place / repository.CONFIG)
    if "zoo" not in written or "graph" in written["zoo"]:
        what = "is a graph already" if "zoo" in written else "isn't written by zoo"
        raise RepositoryError(f"{source} {what}, expected a plan over a base")
    if folder is None and place != Path(source):
        raise RepositoryError(
            f"{source} isn't a folder of yours: say where the one with its graph shall lie, --out FOLDER"
        )
    model = repository.rebuild(place)
    made, graph = capture(model, noise(model, 1, seed=1))
    stored = weights.load_weights(place / repository.WEIGHTS, structure=model)
    constants = {name: tensor for name, tensor in tensors_of(made).items() if name not in stored}
    with writing_folder(place if folder is None else Path(folder)) as new:
        for name in REPOSITORY - {graph_view.GRAPH, graph_view.CONSTANTS}:
            if (place / name).is_file():
                shutil.copy(place / name, new / name)
        view = graph_view.write_view(new, graph, constants)
        write_json(new / repository.CONFIG, {**written, "zoo": {**written["zoo"], "view": view}})
        off = views_apart(new)
        if off > CLOSE:
            raise StructureError(f"{source}: its graph gives something else (by {off:.2g} of the largest output)")
    log.info("%d operations, %d constants; off by %.2g of the largest output", len(graph.nodes), len(constants), off)
    return place if folder is None else Path(folder)


def views_apart(folder: Path) -> float:
    """How far the outputs of a repository's two structures are apart, as a share of the largest output.

    Args:
        folder: a repository with a plan and its view.

    Raises:
        ZooError: as for `load`.
    """
    plan, graph = (repository.rebuild(folder, form=form) for form in ("plan", "graph"))
    most = 0.0
    for batch in BATCHES:
        images = noise(plan, batch, seed=batch)
        with unchanged(plan, graph), torch.no_grad():
            most = max(most, apart(graph(images), plan(images)))
    return most
