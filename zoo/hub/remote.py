"""The Hub: repositories fetched at a commit and published in one.

A commit that is in the cache is used without a request. What arrives is checked against the hash that the Hub
announced, which the client itself doesn't do over plain HTTP.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from zoo.errors import HubError, RepositoryError, StorageError, UnknownName, WeightsError
from zoo.files import cache, read_json, sha256_stamped, write_json
from zoo.hub.refusals import explained, refused, unreachable
from zoo.hub.repository import CONFIG, FILES, GRAPH, WEIGHTS, read

# The tag by which our repositories are found, and their library_name: were that timm, the Hub would show a snippet that
# fails on changed widths.
LIBRARY = "compressed-zoo"
METHOD_TAGS = ("dense", "pruned", "channel-pruning", "low-rank", "unstructured", "quantized", "int8", "distillation")
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMEOUT = 10.0  # seconds for the first answer
_COMMIT = re.compile("[0-9a-f]{40}")
_SHORT = re.compile("[0-9a-f]{7,39}")
_ABSENT = Path()  # in place of a file that a commit is known not to have

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """A repository as the Hub lists it.

    Args:
        repo: `org/name`.
        commit: its head.
        base: the id of the dense model.
        methods: tags that say how it was compressed.
    """

    repo: str
    commit: str
    base: str | None
    methods: tuple[str, ...]


def fetch(
    repo: str, revision: str | None = None, *, cache_dir: Path | None = None, files: Iterable[str] = FILES
) -> Path:
    """Fetch a repository, or take it from the cache.

    Args:
        repo: `org/name`.
        revision: a commit, in full or shortened, a tag or a branch; None is the head.
        cache_dir: the cache; None is huggingface_hub's own.
        files: which of them; the card and the results may be missing there.

    Returns:
        The folder in the cache; whole, and never changed again.

    Raises:
        UnknownName: no such repository or revision.
        HubError: the endpoint can't be reached, refuses, or is offline by wish.
        RepositoryError: it isn't a repository of ours.
        WeightsError: a file arrived damaged, twice.
        StorageError: the disk is full.
    """
    commit, answered = _resolved(repo, revision)
    said = False

    def have(name: str, needed: bool) -> Path:
        nonlocal answered, said
        path = _cached(repo, name, commit, cache_dir)
        if path is None:
            if not answered:  # the client alone would try a dead endpoint for half a minute
                HfApi().model_info(repo, revision=commit, timeout=TIMEOUT)
            if not said:
                log.info("fetching %s at %s from %s", repo, commit[:7], constants.ENDPOINT)
            answered = said = True
            path = _download(repo, name, commit, cache_dir)
        if path == _ABSENT and needed:
            raise RepositoryError(f"{repo} at {commit[:7]} has no {name}: not written by zoo")
        return path

    with explained(repo, commit):
        folder = have(CONFIG, True).parent
        graph = "graph" in read(folder)["zoo"]  # refuses what isn't ours before the weights are fetched
        for name in dict.fromkeys((*files, GRAPH)):
            if name != GRAPH or graph:
                have(name, name in (WEIGHTS, GRAPH))
    return folder


def fetch_files(repo: str, revision: str | None, files: Sequence[str], *, cache_dir: Path | None = None) -> Path:
    """Fetch files of another project's repository, or take them from the cache.

    Args:
        repo: `org/name`.
        revision: as for `fetch`; the commit that None gave the first time is remembered and trusted from then on.
        files: all of them must be there.
        cache_dir: as for `fetch`.

    Returns:
        The folder that they lie in.

    Raises:
        UnknownName, HubError, RepositoryError, WeightsError, StorageError: as for `fetch`.
    """
    commit, answered = _resolved(repo, revision, once=True)
    with explained(repo, commit):
        paths = {name: _cached(repo, name, commit, cache_dir) for name in files}
        missing = [name for name, path in paths.items() if path is None]
        if missing and not answered:
            HfApi().model_info(repo, revision=commit, timeout=TIMEOUT)
        for name in missing:
            log.info("fetching %s of %s at %s from %s", name, repo, commit, constants.ENDPOINT)
            paths[name] = _download(repo, name, commit, cache_dir)
    if absent := [name for name, path in paths.items() if path in (None, _ABSENT)]:
        raise RepositoryError(f"{repo} at {commit[:7]} has no {absent[0]}: it isn't what the catalog says")
    return next(path.parent for path in paths.values() if path is not None)


def resolve(repo: str, revision: str | None = None) -> str:
    """The full hash of a commit.

    A tag or a shortened commit is asked for once and remembered; a branch each time, and the last answer serves where
    the endpoint can't be reached.

    Raises:
        UnknownName, HubError: as for `fetch`.
    """
    return _resolved(repo, revision)[0]


def _resolved(repo: str, revision: str | None, once: bool = False) -> tuple[str, bool]:
    """The full hash of a commit, and whether the endpoint has just given it."""
    if revision and _COMMIT.fullmatch(revision):
        return revision, False
    memory = cache() / "revisions" / f"{_name(constants.ENDPOINT)}--{_name(repo)}.json"
    known = read_json(memory) if memory.is_file() else {}
    asked = revision or "main"
    if asked in known and (once or asked not in known.get("branches", [])):
        return str(known[asked]), False
    log.info("asking %s for %s", constants.ENDPOINT, repo)
    try:
        with explained(repo, revision):
            commit, branch = _ask(repo, asked)
    except HubError:
        if asked not in known:
            raise
        log.info("%s can't be asked: taking %s, its last known commit", constants.ENDPOINT, known[asked][:7])
        return str(known[asked]), False
    branches = sorted({*known.get("branches", []), *([asked] if branch else [])})
    with contextlib.suppress(StorageError):
        write_json(memory, {**known, asked: commit, "branches": branches})
    return commit, True


def reach(repo: str) -> None:
    """Ask for a repository whose weights aren't in the cache, so that what is wrong is said at once.

    The client tries for half a minute where an endpoint is dead.

    Raises:
        UnknownName, HubError: as for `fetch`.
    """
    if try_to_load_from_cache(repo, WEIGHTS) is None:
        log.info("fetching %s from %s", repo, constants.ENDPOINT)
        with explained(repo, None):
            HfApi().model_info(repo, timeout=TIMEOUT)


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    tag: str | None = None,
    files: Mapping[str, str] | None = None,
) -> str:
    """Publish a repository in one commit; the same folder again makes none.

    Args:
        folder: the repository.
        repo: `org/name`; made where it isn't there yet.
        private: make it so that only its owner sees it.
        tag: name the commit.
        files: further files, path → text.

    Returns:
        Its page.

    Raises:
        UnknownName, HubError, StorageError: as for `fetch`.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo} can't be published: HF_HUB_OFFLINE is set, unset it")
    api = HfApi()
    add = [CommitOperationAdd(name, folder / name) for name in FILES if (folder / name).is_file()]
    add += [CommitOperationAdd(name, text.encode()) for name, text in (files or {}).items()]
    with explained(repo, None):
        page = api.create_repo(repo, private=private or None, exist_ok=True)
        head = api.model_info(repo, timeout=TIMEOUT)
        if private and not head.private:
            raise HubError(f"{repo} is there already and public: make it private in its settings on {page}")
        there = {sibling.rfilename for sibling in head.siblings or []}
        gone = (there & set(FILES)) - {operation.path_in_repo for operation in add}
        with _transfer(repo):
            commit = api.create_commit(
                repo,
                [*add, *(CommitOperationDelete(name) for name in sorted(gone))],
                commit_message=f"Publish {folder.name}",
                parent_commit=head.sha,
            )
        if tag:
            _tag(api, repo, tag, commit.oid)
    return str(page)


def listing(organisation: str | None = None) -> Iterator[Listed]:
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


def _ask(repo: str, revision: str) -> tuple[str, bool]:
    """The commit that a revision names now, and whether it is a branch."""
    api = HfApi()
    try:
        commit = api.model_info(repo, revision=revision, timeout=TIMEOUT).sha
    except RevisionNotFoundError:
        if not _SHORT.fullmatch(revision):
            raise
        found = [c.commit_id for c in api.list_repo_commits(repo) if c.commit_id.startswith(revision)]
        if not found:
            raise
        if len(found) > 1:
            raise UnknownName(f"{len(found)} commits of {repo} begin with {revision}: give more digits") from None
        return found[0], False
    assert commit is not None  # the Hub always says
    refs = api.list_repo_refs(repo)
    return commit, revision not in {ref.name for ref in refs.tags}


def _cached(repo: str, name: str, commit: str, cache_dir: Path | None) -> Path | None:
    """A file in the cache, `_ABSENT` if the commit is known to lack it; one that was damaged there is removed."""
    found = try_to_load_from_cache(repo, name, revision=commit, cache_dir=cache_dir)
    if not isinstance(found, str):
        return None if found is None else _ABSENT
    return Path(found) if _kept(Path(found)) else None


def _download(repo: str, name: str, commit: str, cache_dir: Path | None) -> Path:
    """One file, `_ABSENT` if the commit lacks it; a damaged one is removed and fetched once more."""
    for _ in range(2):
        try:
            path = Path(hf_hub_download(repo, name, revision=commit, cache_dir=cache_dir))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return _ABSENT
        if _kept(path):
            return path
        log.info("%s of %s arrived damaged", name, repo)
    raise WeightsError(f"{name} of {repo} arrives damaged, twice: {constants.ENDPOINT} or a proxy alters it; try later")


def _kept(path: Path) -> bool:
    """Whether a file of the cache is intact; otherwise it is removed."""
    blob = _blob(path)
    if intact := _intact(blob):
        return intact
    for part in (blob, path):
        part.unlink(missing_ok=True)
    return False


def _blob(path: Path) -> Path:
    """What a file of the cache links to; that may be a link itself, to where Xet keeps what several files share."""
    return path.parent / path.readlink() if path.is_symlink() else path


def _intact(blob: Path) -> bool:
    """Whether a file of the cache has the hash that it is named for: sha256, or git's own of a small file."""
    if len(blob.name) == 64:
        return sha256_stamped(blob) == blob.name
    if len(blob.name) == 40:
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == blob.name
    return True  # a file system without links: the weights' sha256 is checked when they are read


@contextlib.contextmanager
def _transfer(repo: str) -> Iterator[None]:
    """Upload over LFS where the endpoint has no Xet: the client doesn't find that out by itself."""
    former = constants.HF_HUB_DISABLE_XET
    url = f"{constants.ENDPOINT}/api/models/{repo}/xet-write-token/main"
    lacking = former or get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT).status_code == 404
    constants.HF_HUB_DISABLE_XET = lacking
    try:
        yield
    except HfHubHTTPError as error:  # the repository is there, whatever the client makes of the answer
        raise HubError(refused(repo, error)) from None
    except RuntimeError as error:  # an upload's
        raise error.__cause__ or HubError(unreachable(error)) from None
    except ValueError as error:  # what the endpoint says of files that it doesn't take
        raise HubError(f"{constants.ENDPOINT} refuses {repo}: {' '.join(str(error).split())}") from None
    finally:
        constants.HF_HUB_DISABLE_XET = former


def _tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    known = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
    if known.get(tag, commit) != commit:
        raise HubError(f"{repo} has a tag {tag} already, at {known[tag][:7]}: choose another, what was pushed stands")
    if tag not in known:
        try:
            api.create_tag(repo, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            raise HubError(f"{refused(repo, error)}; what was pushed stands") from None


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "--", text)
