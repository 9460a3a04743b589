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
from zoo.hub.repository import CONFIG, RESULTS, read_config
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
        task: what it is for, the Hub's pipeline tag.
        measured: figure → value, as its results say, where they were asked for.
        method: which one made it, as its config.json says, where that was asked for.
    """

    repo: str
    commit: str
    base: str | None
    methods: tuple[str, ...]
    task: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    method: str | None = None


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
            told = dense if isinstance(dense, str) else None
            yield Listed(model.id, model.sha or "", told, methods, model.pipeline_tag or "")


def with_figures(listed: Sequence[Listed]) -> list[Listed]:
    """Repositories with what each claims of itself; nothing where its files can't be read."""
    with ThreadPoolExecutor(READERS) as pool:
        return [*pool.map(_claimed, listed)]


def _claimed(listed: Listed) -> Listed:
    if not (ID.fullmatch(listed.repo) and re.fullmatch("[0-9a-f]{40}", listed.commit)):
        return listed
    try:
        folder = fetch_files(listed.repo, listed.commit, [CONFIG, RESULTS])
        measured = Report.from_json(read_json(folder / RESULTS), str(folder / RESULTS)).measured
        method = read_config(folder)["zoo"].get("recipe", {}).get("method")
    except ZooError as error:
        log.info("%s: its figures aren't known: %s", listed.repo, error)
        return listed
    return replace(listed, measured=measured, method=method if method in METHODS else None)
