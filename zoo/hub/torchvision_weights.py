"""The weights that torchvision publishes: pickles on its own server, kept where torch.hub keeps them.

Read by our unpickler, and brought to the names that torchvision's modules have today: some of its files are older.
"""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from zoo.catalog.entry import Base
from zoo.errors import FOREIGN, HubError, WeightsError, as_cause, first_line
from zoo.files import sha256_stamped
from zoo.hub.remote import DEFAULT, Access
from zoo.hub.state_dicts import StateDict, read_state_dict
from zoo.structure.base import tag
from zoo.structure.torchvision_models import weights

# As torchvision itself does: dense layers of before its modules' names had no dots, the perceptron of transformers, and
# heads that only training needs.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)
_LEFT_OUT = ("aux1.", "aux2.", "AuxLogits.")
_HASH = re.compile(r"-([0-9a-f]{8,})\.")


def fetch_state_dict(base: Base, access: Access = DEFAULT) -> StateDict:
    """The weights of a torchvision id with its tag.

    Args:
        base: such as `torchvision/resnet18.IMAGENET1K_V1`.
        access: how files are fetched; `cache_dir` is the folder that they are kept in.

    Raises:
        HubError: they aren't there and can't be fetched: the message says from where, and where they could be put.
        WeightsError: the file isn't the one that its name says.
    """
    url: str = weights(base.architecture)[str(tag(base))].url
    found = read_state_dict(_fetched(base, url, access))
    return StateDict(dict(_as_today(found.values)), found.where)


def _as_today(values: Any) -> Any:
    for name, value in values.items():
        for pattern, now in _RENAMED:
            name = pattern.sub(now, name)
        if not name.startswith(_LEFT_OUT):
            yield name, value


def _fetched(base: Base, url: str, access: Access) -> Path:
    folder = access.cache_dir or Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / url.rpartition("/")[2]
    known = _HASH.search(file.name)
    begins = known[1] if known else ""
    if file.is_file() and not access.refresh:
        if not (found := sha256_stamped(file)).startswith(begins):
            raise WeightsError(f"{file} has sha256 {found[:12]}…, expected {begins}…: remove it, or load with refresh")
        return file
    remedy = f"put {url} there, or load it once with a network"
    if access.local_files_only or constants.HF_HUB_OFFLINE:
        raise HubError(f"{base.id}: {folder} has no {file.name}, and nothing is fetched (offline): {remedy}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), begins or None, progress=False)
    except FOREIGN as error:
        raise HubError(f"{base.id}: {folder} has no {file.name}: {first_line(error)}; {remedy}") from as_cause(error)
    return file
