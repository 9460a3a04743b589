"""What a model says of its own widths (`num_features`, `feature_info`), kept true while its layers are narrowed.

Each such figure is the width of a layer's outputs: of the last layer that had this width in the base, within the part
of the network that the figure is about. Read off shapes, so it costs no forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from zoo.structure.narrowing import output_width

WIDTHS = ("num_features", "head_hidden_size", "embed_dim", "in_features", "hidden_size")


@contextmanager
def followed(model: nn.Module) -> Iterator[None]:
    """Within this, layers may change; afterwards the model's figures are those of its layers."""
    before = _outputs(model)
    last = {path: i for i, path in enumerate(before)}
    yield
    after = _outputs(model)
    if before == after:
        return
    order = list(before)

    def width(old: int, end: int) -> int:
        found = next((path for path in reversed(order[:end]) if before[path] == old and path in after), None)
        return old if found is None else after[found] or old

    info: Any = getattr(model, "feature_info", None)
    for row in getattr(info, "info", info) or ():
        inside = [i for path, i in last.items() if f"{path}.".startswith(f"{row.get('module')}.")]
        if inside and "num_chs" in row:
            row["num_chs"] = width(row["num_chs"], max(inside) + 1)
    classifier = _classifier(model)
    end = min((i for path, i in last.items() if f"{path}.".startswith(classifier)), default=len(order))
    for owner in (model, getattr(model, "head", None)):
        if isinstance(owner, nn.Module) and not isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
            for name in WIDTHS:
                if isinstance(old := vars(owner).get(name), int):
                    setattr(owner, name, width(old, end))


def _outputs(model: nn.Module) -> dict[str, int]:
    """Module path → how many channels its own tensors put out, 0 where it has none or several."""
    return {path: output_width(module) for path, module in model.named_modules()}


def _classifier(model: nn.Module) -> str:
    """The path of the classifier with a dot behind it, or what no path begins with."""
    get: Any = getattr(model, "get_classifier", None)
    found = get() if callable(get) else None
    if isinstance(found, tuple | list):
        found = found[0]
    return next((f"{path}." for path, module in model.named_modules() if module is found and path), "\n")
