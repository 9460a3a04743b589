"""The Hub: repositories fetched at a commit and published in one.

The cache is huggingface_hub's alone: its refs say which commit a tag or branch named last, its rules what is asked.
A commit that is in it is used without a request. What arrives is checked against the hash that the Hub announced, which
the client itself doesn't do over plain HTTP.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from zoo.errors import HubError, RepositoryError, UnknownName, WeightsError
from zoo.files import MAX_JSON, REPOSITORY, sha256_stamped
from zoo.hub.errors import explained, refused, unreachable
from zoo.hub.graph_view import CONSTANTS, GRAPH, files_of
from zoo.hub.repository import CONFIG, FILES, WEIGHTS, read_config
from zoo.printable import logger

# The tag by which our repositories are found, and their library_name: were that timm, the Hub would show a snippet that
# fails on changed widths.
LIBRARY = "compressed-zoo"
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
EVALUATED = ".eval_results/*.yaml"  # what was measured on data sets of the Hub
TIMEOUT = 10.0  # seconds for the first answer
_COMMIT = re.compile("[0-9a-f]{40}")
_SHORT = re.compile("[0-9a-f]{7,39}")
_ABSENT = Path()  # in place of a file that a commit is known not to have

log = logger(__name__)


@dataclass(frozen=True)
class Access:
    """How huggingface_hub is asked; each is its own option.

    Args:
        cache_dir: its cache; None is where it keeps it.
        token: a token, False for none; None is the one that was logged in with.
        local_files_only: take what the cache holds and ask for nothing.
        refresh: fetch again what the cache holds (`force_download`).
    """

    cache_dir: Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    refresh: bool = False


DEFAULT = Access()


def fetch(repo: str, revision: str | None = None, *, access: Access = DEFAULT, files: Iterable[str] = FILES) -> Path:
    """Fetch a repository, or take it from huggingface_hub's cache.

    Args:
        repo: `org/name`.
        revision: a commit, in full or shortened, a tag or a branch; None is the head. A commit that is cached costs no
            request; where the endpoint can't be reached, the commit that a tag or branch named last serves.
        access: how the Hub is asked.
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
    with explained(repo, revision):
        revision = _commit_of(repo, revision, access)
        config = _file(repo, CONFIG, revision, access)
        if config == _ABSENT:
            raise RepositoryError(f"{repo} at {(revision or 'main')[:7]} has no {CONFIG}: not written by zoo")
        folder, commit = config.parent, config.parent.name
        structure = files_of(read_config(folder)["zoo"])  # refuses what isn't ours before the weights are fetched
        for name in dict.fromkeys((*files, *structure)):
            if name == CONFIG or (name in (GRAPH, CONSTANTS) and name not in structure):
                continue
            needed = name == WEIGHTS or name in structure
            if not needed and _offline(access) and _cached(repo, name, commit, access) is None:
                continue  # what another program fetched is often without the card
            if _file(repo, name, commit, access) == _ABSENT and needed:
                raise RepositoryError(f"{repo} at {commit[:7]} has no {name}: not written by zoo")
    return folder


def fetch_files(repo: str, revision: str | None, files: Sequence[str], *, access: Access = DEFAULT) -> Path:
    """Fetch files of another project's repository, or take them from the cache.

    Args:
        repo: `org/name`.
        revision: as for `fetch`; the commit that it gave when the files were fetched is trusted from then on.
        files: all of them must be there.
        access: as for `fetch`.

    Returns:
        The folder that they lie in.

    Raises:
        UnknownName, HubError, RepositoryError, WeightsError, StorageError: as for `fetch`.
    """
    with explained(repo, revision):
        revision = _commit_of(repo, revision, access)
        cached = [_cached(repo, name, revision, access) for name in files]
        if not access.refresh and cached[0] and all(path and path != _ABSENT for path in cached):
            return cached[0].parent
        paths = [_file(repo, files[0], revision, access)]
        commit = (revision or "main") if paths[0] == _ABSENT else paths[0].parent.name
        paths += [_file(repo, name, commit, access) for name in files[1:]]
    if absent := [name for name, path in zip(files, paths, strict=True) if path == _ABSENT]:
        raise RepositoryError(f"{repo} at {commit[:7]} has no {absent[0]}: it isn't what the catalog says")
    return paths[0].parent


def place_of(folder: Path) -> dict[str, str]:
    """`repo` and `commit` of a folder that `fetch_files` gave; nothing of another."""
    kind, _, repo = folder.absolute().parents[1].name.partition("--")
    if folder.parent.name != "snapshots" or kind != "models":
        return {}
    return {"repo": repo.replace("--", "/"), "commit": folder.name}


def fetch_weights(repo: str, name: str, revision: str | None, *, access: Access = DEFAULT) -> Path | None:
    """Fetch a file of dense weights; None where the repository has none of that name.

    Args:
        repo: `org/name`.
        name: of the file.
        revision: as for `fetch`.
        access: as for `fetch`.

    Raises:
        UnknownName, HubError, WeightsError, StorageError: as for `fetch`.
    """
    with explained(repo, revision):
        path = _file(repo, name, _commit_of(repo, revision, access), access)
    return None if path == _ABSENT else path


def publish(
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
        files: further files, or in the place of those of the folder, path → text.

    Returns:
        Its page.

    Raises:
        UnknownName, HubError, StorageError: as for `fetch`.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo} can't be published: HF_HUB_OFFLINE is set, unset it")
    api = HfApi()
    files = files or {}
    own = [name for name in sorted(REPOSITORY) if (folder / name).is_file() and name not in files]
    add = [CommitOperationAdd(name, folder / name) for name in own]
    add += [CommitOperationAdd(name, text.encode()) for name, text in files.items()]
    with explained(repo, None):
        page = api.create_repo(repo, private=private or None, exist_ok=True)
        head = api.model_info(repo, timeout=TIMEOUT)
        if private and not head.private:
            raise HubError(f"{repo} is there already and public: make it private in its settings on {page}")
        there = {sibling.rfilename for sibling in head.siblings or []}
        ours = {name for name in there if name in REPOSITORY or fnmatchcase(name, EVALUATED)}
        gone = ours - {operation.path_in_repo for operation in add}
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


def _commit_of(repo: str, revision: str | None, access: Access) -> str | None:
    """A shortened commit in full, from the cache where it is there; the client takes none that is shortened."""
    if revision is None or not _SHORT.fullmatch(revision):
        return revision
    home = Path(access.cache_dir or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    if (home / "refs" / revision).is_file():
        return revision
    commits = [path.name for path in home.glob(f"snapshots/{revision}*")]
    if not commits and not access.local_files_only:
        log.info("asking %s for %s", constants.ENDPOINT, repo)
        api = HfApi(token=access.token)
        try:
            api.model_info(repo, revision=revision, timeout=TIMEOUT)
            return revision
        except RevisionNotFoundError:
            commits = [c.commit_id for c in api.list_repo_commits(repo) if c.commit_id.startswith(revision)]
            if not commits:
                raise
    if len(commits) > 1:
        raise UnknownName(f"{len(commits)} commits of {repo} begin with {revision}: give more digits")
    return commits[0] if commits else revision


def _offline(access: Access) -> bool:
    return access.local_files_only or constants.HF_HUB_OFFLINE


def _file(repo: str, name: str, revision: str | None, access: Access) -> Path:
    """One file, `_ABSENT` if there is none of that name; a commit that is cached costs no request."""
    if access.refresh and _offline(access):
        raise HubError(
            f"{repo} can't be fetched again without the Hub: leave out refresh, or local_files_only and HF_HUB_OFFLINE"
        )
    path = _cached(repo, name, revision, access)
    pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    if path is not None and pinned and not access.refresh:
        return path
    if not pinned and not _offline(access):
        log.info("asking %s for %s", constants.ENDPOINT, repo)
    if path is None and not access.local_files_only:  # the client alone would try a dead endpoint for half a minute
        _check_size(repo, name, revision, access)
        log.info("fetching %s of %s from %s", name, repo, constants.ENDPOINT)
    return _download(repo, name, revision, access)


def _check_size(repo: str, name: str, revision: str | None, access: Access) -> None:
    """Refuse a file that would be refused once it is here; one that isn't there the client tells, and remembers."""
    with contextlib.suppress(EntryNotFoundError):
        url = hf_hub_url(repo, name, revision=revision)
        size = get_hf_file_metadata(url, token=access.token, timeout=TIMEOUT).size or 0
        if name != WEIGHTS and size > MAX_JSON:
            raise RepositoryError(f"{name} of {repo} has {size:,} bytes, expected at most {MAX_JSON:,}: not fetched")


def _cached(repo: str, name: str, revision: str | None, access: Access) -> Path | None:
    """A file in the cache, `_ABSENT` if the commit is known to lack it; one that was damaged there is removed."""
    path = try_to_load_from_cache(repo, name, revision=revision, cache_dir=access.cache_dir)
    if not isinstance(path, str):
        return None if path is None else _ABSENT
    return Path(path) if _kept(Path(path)) else None


def _download(repo: str, name: str, revision: str | None, access: Access) -> Path:
    """One file, `_ABSENT` if the commit lacks it; a damaged one is removed and fetched once more."""
    for _ in range(2):
        try:
            path = Path(
                hf_hub_download(
                    repo,
                    name,
                    revision=revision,
                    cache_dir=access.cache_dir,
                    token=access.token,
                    local_files_only=access.local_files_only,
                    force_download=access.refresh,
                )
            )
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
