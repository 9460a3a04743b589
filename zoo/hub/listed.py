"""What the Hub has of ours: repositories with our tag, and what their results say."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from zoo.catalog.methods import METHODS
from zoo.catalog.report import Report
from zoo.errors import ZooError
from zoo.files import read_json
from zoo.hub.errors import explained
from zoo.hub.remote import ID, LIBRARY, TIMEOUT, fetch_files
from zoo.hub.repository import RESULTS
from zoo.printable import logger

METHOD_TAGS = {"dense", "distillation", *(tag for method in METHODS.values() for tag in method.tags)}
READERS = 8  # results that are fetched at once

log = logger(__name__)


@dataclass(frozen=True)
class Listed:
    """A repository as the Hub lists it.

    Args:
        repo: `org/name`.
        commit: its head.
        base: the id of the dense model.
        methods: tags that say how it was compressed.
        measured: figure → value, as its results say, where they were asked for.
    """

    repo: str
    commit: str
    base: str | None
    methods: tuple[str, ...]
    measured: Mapping[str, float] = field(default_factory=dict)


def models_on_hub(organisation: str | None = None) -> Iterator[Listed]:
    """The compressed models on the endpoint.

    Args:
        organisation: only those of this organisation or user.

    Yields:
        Each repository with our tag, page by page.

    Raises:
        HubError: as for `fetch`.
    """
    with explained(f"the models of {organisation}" if organisation else "the list of models", None):
        log.info("asking %s for its models", constants.ENDPOINT)
        once = {"filter": LIBRARY, "limit": "1"}  # the client alone would try a dead endpoint for half a minute
        url = f"{constants.ENDPOINT}/api/models"
        hf_raise_for_status(get_session().get(url, params=once, headers=build_hf_headers(), timeout=TIMEOUT))
        for model in HfApi().list_models(author=organisation, filter=LIBRARY, full=True, cardData=True):
            card = model.card_data.to_dict() if model.card_data else {}
            base = card.get("base_model")
            dense = base[0] if isinstance(base, list) and base else base
            methods = tuple(tag for tag in model.tags or () if tag in METHOD_TAGS)
            yield Listed(model.id, model.sha or "", dense if isinstance(dense, str) else None, methods)


def with_figures(listed: Sequence[Listed]) -> list[Listed]:
    """Repositories with what the results of each claim; none where there are no results that can be read."""
    with ThreadPoolExecutor(READERS) as pool:
        return [replace(each, measured=found) for each, found in zip(listed, pool.map(_claimed, listed), strict=True)]


def _claimed(listed: Listed) -> Mapping[str, float]:
    if not (ID.fullmatch(listed.repo) and re.fullmatch("[0-9a-f]{40}", listed.commit)):
        return {}
    try:
        path = fetch_files(listed.repo, listed.commit, [RESULTS]) / RESULTS
        return Report.from_json(read_json(path), str(path)).measured
    except ZooError as error:
        log.info("%s: its figures aren't known: %s", listed.repo, error)
        return {}
