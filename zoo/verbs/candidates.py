"""Candidates: models that are chosen among before their weights are there.

What lies here, embedded or in a folder, is loaded; of anything else the structure is built with random weights, or,
where nothing draws any, as of a graph, with zeros. Its latency is the same.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import catalog
from zoo.catalog.entry import Base
from zoo.errors import RepositoryError, StructureError
from zoo.measurement.macs import measure, noise, noise_like
from zoo.structure.description import Description, attach_, configure_, description_of, skeleton_of
from zoo.structure.graph.certificate import check_floats
from zoo.structure.tensors import assign_, computable, tensors_of
from zoo.verbs.backends import Model, input_of
from zoo.verbs.loading import description_named, drawn, load

Named = str | os.PathLike[str] | Base | nn.Module


@dataclass(frozen=True)
class Candidate:
    """A model that is looked at.

    Args:
        name: of its row.
        model: with weights that may be any; or an ONNX file's program.
        input: channels, height and width of its images.
        base: the dense architecture that it was made of; None of a dense model, and where that isn't known.
        dense: the architecture that it is, of a dense model.
        macs: of one image; None of a program.
        source: what a fresh process builds it from; None of a module.
    """

    name: str
    model: Model
    input: tuple[int, int, int]
    base: Base | None = None
    dense: Base | None = None
    macs: int | None = None
    source: str | Base | None = None

    def images(self, batch: int) -> Tensor:
        """Noise, of the type that the model takes and where it lies."""
        if isinstance(self.model, bytes):
            return noise_like(torch.zeros(1, *self.input), batch)
        return noise(self.model, batch, size=self.input)


def candidate(
    given: Named,
    *,
    input: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Candidate:
    """Build a model to look at; no weights are fetched.

    Args:
        given: what `load` or `create` takes, an ONNX file, or a module, which is copied.
        input: channels, height and width; None takes the model's own.
        device: where it is to compute.
        dtype: of floats; None keeps what there is.

    Raises:
        UnknownName, RepositoryError, StructureError: as for `create`; or the size of the images isn't known.
    """
    if not isinstance(given, nn.Module | Base) and str(given).endswith(".onnx"):
        return _file(Path(given), input, dtype)
    model = copy.deepcopy(given).eval() if isinstance(given, nn.Module) else built(given)
    if dtype is not None:
        check_floats(model, "given another dtype")
    model = model.to(device=device, dtype=dtype)
    description = description_of(model)
    source = None if isinstance(given, nn.Module) else given if isinstance(given, Base) else str(given)
    counts = measure(model, input)
    own = description.name if description else type(model).__name__
    name = source if isinstance(source, str) else own
    found = Candidate(name, model, counts.input, macs=counts.macs, source=source)
    if description is None:
        return found
    smaller = description.graph is not None or description.plan.edits
    return replace(found, base=description.base) if smaller else replace(found, dense=description.base)


def built(name: str | os.PathLike[str] | Base) -> nn.Module:
    """A model as `load` gives it where its weights lie here, else its structure, without its weights.

    Raises:
        UnknownName, RepositoryError, StructureError: as for `create`.
    """
    entry = None if isinstance(name, Base) else catalog.known(str(name))
    if not isinstance(name, Base) and (Path(name).is_dir() or (entry is not None and entry.status == "embedded")):
        return load(name, mmap=False)
    description, config = description_named(name)
    return drawn(description, config) if description.graph is None else _zeros(description, config)


def _zeros(description: Description, config: Mapping[str, Any]) -> nn.Module:
    """A graph's structure, which has no initialiser, with zeros."""
    model = skeleton_of(description)
    computed = computable(model)
    held = {path: each for path, each in tensors_of(model).items() if path not in computed}
    assign_(model, {path: torch.zeros(each.shape, dtype=each.dtype) for path, each in held.items()}, description.name)
    configure_(model, config)
    attach_(model, description)
    return model


def base_of(base: Base, like: Candidate, **where: Any) -> Candidate:
    """The dense model of an architecture, for images as another model takes them.

    Args:
        base: the architecture.
        like: what was made of it.
        where: device and dtype.
    """
    return replace(candidate(base, input=like.input, **where), name=_name_of(base))


def _name_of(base: Base) -> str:
    """An entry of the catalog that is this very architecture, or its id."""
    entries = (catalog.info(name) for name in catalog.names())
    return next((each.name for each in entries if each.base == base and each.recipe.method is None), base.id)


def _file(path: Path, input: Sequence[int] | None, dtype: torch.dtype | None) -> Candidate:
    if not path.is_file():
        raise RepositoryError(f"no file {path}: zoo export MODEL --onnx {path} writes one")
    if dtype is not None:
        raise StructureError(f"{path} computes in what it was written in: leave dtype out")
    program = path.read_bytes()
    size = list(input_of(program, str(path))[1:]) if input is None else list(input)
    if len(size) != 3 or not all(isinstance(each, int) for each in size):
        raise StructureError(f"{path} takes images of {size}: say input=(CHANNELS, HEIGHT, WIDTH)")
    channels, height, width = size
    return Candidate(str(path), program, (channels, height, width), source=str(path))
