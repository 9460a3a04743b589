"""Reading: listings, repositories, revisions, trees, and the files themselves."""

import contextlib
import json
from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.errors import RepositoryError
from zoo.server import access, info, listings, receiving, store
from zoo.server.errors import BadRequest, EntryNotFound, RevisionNotFound
from zoo.server.hub import OWNER, cdn_path, hub, owner, parameter, readable, revision, seen
from zoo.server.sending import FileAnswer

PAGE = 4 << 20  # bytes
SORTS = {"lastModified", "createdAt", "downloads", "likes", "trendingScore"}


def listing(request: Request) -> Response:
    """Repositories of a kind that the query asks for, those changed last first."""
    query = parse_qs(request.url.query, keep_blank_values=True)
    sort = query.get("sort", ["lastModified"])[0]
    if sort not in SORTS:
        raise BadRequest(f"can't sort by {sort!r}, known are {sorted(SORTS)}")
    root, asking, kind = hub(request).root, owner(request), request.path_params["kind"]
    every = listings.ordered(root, kind, sort, begins="cursor" not in query)
    if "cursor" in query:
        every = every[_after(every, sort, *_cursor(query["cursor"][0])) :]
    fits = info.asked_for(query)
    left = (row for row in every if (asking or not row["private"]) and fits(row))
    fields = set(query.get("expand", [])) or _fields(kind, query)

    def whole(row: dict[str, Any]) -> dict[str, Any] | None:
        for repository in store.named(root, kind, [row["id"]]):
            with contextlib.suppress(RevisionNotFound, RepositoryError):
                return info.picked(info.summary(root, repository, store.resolved(repository, "main")), fields)
        return None

    return _page(request, left, 1000, lambda row: json.dumps([row[sort], row["id"]]), whole)


def _after(ordered: list[dict[str, Any]], sort: str, value: Any, name: str) -> int:
    """Where the rows begin that come after a place in the order, whether or not a row is still there."""
    if ordered and type(ordered[0][sort]) is not type(value):
        return len(ordered)
    return bisect_left(ordered, True, key=lambda row: (row[sort] < value) or (row[sort] == value and row["id"] > name))


def _fields(kind: str, query: dict[str, list[str]]) -> set[str]:
    asked = {key for key in ("full", "cardData") if query.get(key, [""])[0].lower() in ("true", "1")}
    fields = info.BRIEF | {"sha"} | (asked & {"cardData"})
    if "full" in asked:
        fields |= {"siblings", "disabled"} | ({"cardData"} if kind != "model" else set())
    return fields


def _cursor(text: str) -> tuple[Any, str]:
    try:
        value, after = json.loads(text)
        return (value, after) if isinstance(after, str) and isinstance(value, str | int) else _cursor("")
    except (ValueError, TypeError, RecursionError):
        raise BadRequest("the cursor isn't one that a listing gave") from None


def _page(request: Request, rows: Iterable[Any], size: int, mark: Any, show: Any = lambda row: row) -> Response:
    """The first rows as `show` gives them, and where the rest is: a row that `mark` names comes before all of them.

    A page ends after some MB too, so that whoever asks for many and takes none doesn't fill the memory.
    """
    asked = request.query_params.get("limit", str(size))
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked) > 0):
        raise BadRequest(f"limit: expected a positive number, found {asked!r}")
    left, last, shown, room = iter(rows), None, [], PAGE
    for last in islice(left, min(int(asked), size)):
        if (row := show(last)) is not None:
            shown.append(JSONResponse(row).body)
            room -= len(shown[-1])
        if room < 0:
            break
    headers = {}
    if last is not None and next(left, None) is not None:
        query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
        query.append(("cursor", mark(last)))
        headers["Link"] = f'<{hub(request).origin}{request.scope["path"]}?{urlencode(query)}>; rel="next"'
    return Response(b"[" + b",".join(shown) + b"]", headers=headers, media_type="application/json")


def repository(request: Request) -> Response:
    """What is known of a repository at a revision."""
    repo = seen(request)
    commit = revision(request, repo)
    data = info.summary(hub(request).root, repo, commit)
    if request.query_params.get("blobs", "").lower() == "true":
        data["siblings"] = info.siblings(commit)
    expand = request.query_params.getlist("expand")
    return JSONResponse(info.picked(data, expand) if expand else data)


def refs(request: Request) -> Response:
    """Branches and tags."""
    return JSONResponse(info.refs(seen(request)))


def commits(request: Request) -> Response:
    """The history of a revision, newest first."""
    repository = seen(request)
    first = revision(request, repository)
    after = request.query_params.get("cursor")
    start = store.resolved(repository, after) if after else first
    rows = islice(store.history(repository, start), 1 if after else 0, None)
    return _page(request, rows, 1000, lambda row: row.id, lambda row: info.commit_row(row, OWNER))


def tree(request: Request) -> Response:
    """The files and folders of a revision, or of a folder in it."""
    repository = seen(request)
    commit = revision(request, repository)
    folder = parameter(request, "path").strip("/") if "path" in request.path_params else ""
    asked = {key: request.query_params.get(key, "").lower() == "true" for key in ("recursive", "expand")}
    rows = info.tree(commit, folder, asked["recursive"])
    if folder and not rows:
        raise EntryNotFound(f"{repository.name.id} has no folder {folder!r}", commit.id)
    after = request.query_params.get("cursor", "")
    rows = [row for row in rows if row["path"] > after]
    if asked["expand"]:  # no more of them than a page has
        rows = [*info.with_last_commits(repository, commit, rows[:1000]), *rows[1000:]]
    return _page(request, rows, 1000, lambda row: row["path"])


async def paths_info(request: Request) -> Response:
    """The files and folders among some paths."""
    repository = await run_in_threadpool(seen, request)
    fields = await receiving.form(request)

    def answer() -> Response:
        commit = revision(request, repository)
        rows = info.path_entries(commit, dict.fromkeys(path.strip("/") for path in fields.get("paths", [])))
        expand = fields.get("expand", [""])[0].lower() == "true"
        return JSONResponse(info.with_last_commits(repository, commit, rows) if expand else rows)

    return await run_in_threadpool(answer)


def resolve(request: Request) -> Response:
    """A file: its bytes if it is a regular one, the address on the CDN if it is an LFS object."""
    served, repository = hub(request), readable(request)
    commit = revision(request, repository)
    path = parameter(request, "path")
    if path not in commit.files:
        raise EntryNotFound(f"{repository.name.id} has no file {path!r} at {commit.id}", commit.id)
    file = commit.files[path]
    name = quote(path.rpartition("/")[2])
    headers = {"X-Repo-Commit": commit.id, "Content-Disposition": f"inline; filename*=UTF-8''{name}"}
    if not file.lfs:
        return FileAnswer(store.location(served.root, repository, commit, path), file.size, file.oid, headers)
    headers["X-Linked-ETag"] = f'"{file.sha256}"'
    headers["X-Linked-Size"] = str(file.size)
    headers["Location"] = served.cdn + access.signed(served.key, "GET", cdn_path(repository.name, commit, path))
    return Response(status_code=302, headers=headers)
