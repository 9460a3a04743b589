"""Writing files: which way each goes, where LFS objects are uploaded to, and the commit that ties them together."""

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from anyio import to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.server import access, blobs, changes, receiving, store
from zoo.server.errors import BadRequest, TooLarge
from zoo.server.hub import Hub, changeable, hub, parameter, url
from zoo.server.names import SHA256, RepoId, file_path
from zoo.server.receiving import json_body, short, text_field
from zoo.server.values import LARGE, Change, File, git_oid, is_large, pointer

LINE = LARGE // 3 * 4 + (1 << 16)  # bytes; a file of the largest size that isn't an LFS object, in base64
COMMIT = 1 << 30  # bytes of a whole commit
CHANGES = 50_000  # in a commit
FOLDERS = 100  # deleted by a commit, each looked for among all files
OBJECTS = 1000  # asked about at once; clients ask about 256
LFS = "application/vnd.git-lfs+json"


def _without_pull_request(request: Request) -> None:
    if request.query_params.get("create_pr", "").lower() in ("1", "true"):
        raise BadRequest("this server has no pull requests: commit to a branch")


async def preupload(request: Request) -> Response:
    """For each file whether it is an LFS object, and what the repository has at its path."""
    _without_pull_request(request)
    name = await run_in_threadpool(changeable, request)
    wanted = _objects(await json_body(request), "files")

    def answer() -> Response:
        repository = store.find(hub(request).root, name)
        commit = store.resolved(repository, parameter(request, "rev"))
        return JSONResponse({"files": [_mode(commit.files.get(text_field(file, "path")), file) for file in wanted]})

    return await run_in_threadpool(answer)


def _mode(there: File | None, file: dict[str, Any]) -> dict[str, Any]:
    path = file_path(text_field(file, "path"))
    try:
        sample = base64.b64decode(text_field(file, "sample", ""))
    except binascii.Error:
        raise BadRequest(f"{path}: the sample isn't base64") from None
    mode = "lfs" if is_large(path, _size(file), sample) else "regular"
    oid = there and (there.sha256 if there.lfs else there.oid)
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _objects(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = data.get(key)
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        raise BadRequest(f"{key}: expected a list of objects")
    if len(items) > OBJECTS:
        raise TooLarge(f"{key}: at most {OBJECTS} at once, found {len(items)}")
    return items


def _size(data: dict[str, Any]) -> int:
    size = data.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadRequest(f"size: expected a number of bytes, found {short(size)}")
    return size


def _sha256(data: dict[str, Any]) -> str:
    if not SHA256.fullmatch(oid := text_field(data, "oid")):
        raise BadRequest(f"oid: expected a sha256, found {short(oid)}")
    return oid


async def lfs_batch(request: Request) -> Response:
    """Where each LFS object goes; one that is there already goes nowhere."""
    name = await run_in_threadpool(changeable, request)
    data = await json_body(request)
    if data.get("operation") != "upload" or data.get("hash_algo", "sha256") != "sha256":
        raise BadRequest("only uploads of objects named by sha256 are answered here")
    several = "multipart" in receiving.as_list(data.get("transfers", []))

    def answer() -> Response:
        rows = [_upload(hub(request), name, _sha256(each), _size(each), several) for each in _objects(data, "objects")]
        return JSONResponse({"objects": rows}, media_type=LFS)

    return await run_in_threadpool(answer)


def _upload(hub: Hub, name: RepoId, oid: str, size: int, several: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"oid": oid, "size": size}
    if size > hub.largest:
        return {**row, "error": {"code": 413, "message": f"larger than {hub.largest} bytes"}}
    if _present(hub.root, oid, size):
        return row
    if several and size > hub.part:
        count = -(-size // hub.part)
        parts = {
            str(number): hub.cdn + access.signed(hub.key, "PUT", f"/uploads/{oid}/{number}", size=hub.part)
            for number in range(1, count + 1)
        }
        href = access.signed(hub.key, "POST", f"/uploads/{oid}", size=size, parts=count)
        upload = {"href": hub.cdn + href, "header": {"chunk_size": str(hub.part), **parts}}
    else:
        upload = {"href": hub.cdn + access.signed(hub.key, "PUT", f"/uploads/{oid}", size=size)}
    return {**row, "actions": {"upload": upload, "verify": {"href": f"{url(hub, name)}.git/info/lfs/verify"}}}


def _present(root: Path, oid: str, size: int) -> bool:
    path = blobs.location(root, oid)
    return path.is_file() and path.stat().st_size == size


async def lfs_verify(request: Request) -> Response:
    """Whether an LFS object has arrived."""
    await run_in_threadpool(changeable, request)
    data = await json_body(request)
    oid, size = _sha256(data), _size(data)
    if not await run_in_threadpool(_present, hub(request).root, oid, size):
        raise BadRequest(f"object {oid} of {size} bytes hasn't arrived: upload it again")
    return JSONResponse({}, media_type=LFS)


@dataclass(frozen=True)
class Message:
    """The first line of a commit's body.

    Args:
        title: the first line of its message.
        description: the rest.
        parent: the hash, or its beginning, that the branch must be at.
        changes: what the other lines say.
    """

    title: str
    description: str = ""
    parent: str | None = None
    changes: list[Change] = field(default_factory=list)


async def commit(request: Request) -> Response:
    """Add a commit to a branch."""
    _without_pull_request(request)
    served = hub(request)
    name = await run_in_threadpool(changeable, request)
    branch = parameter(request, "rev")

    def work(file: IO[bytes]) -> Response:
        said = _read(served.root, receiving.lines(file, LINE))
        new = changes.commit(served.root, name, branch, said.changes, said.title, said.description, said.parent)
        place = f"{url(served, name)}/commit/{new.id}"
        return JSONResponse({"success": True, "commitOid": new.id, "commitUrl": place, "hookOutput": ""})

    async with receiving.received(request, COMMIT) as file:
        return await to_thread.run_sync(work, file, limiter=served.bodies)


def _read(root: Path, lines: Iterable[bytes]) -> Message:
    message, folders = None, 0
    for line in lines:
        said = receiving.parsed(line)
        key, value = said.get("key"), said.get("value")
        if not isinstance(value, dict):
            raise BadRequest(f"a line of the commit has the value {short(value)}, expected an object")
        if key == "header":
            message = Message(
                text_field(value, "summary"),
                text_field(value, "description", ""),
                value.get("parentCommit") and text_field(value, "parentCommit"),
            )
        elif message is None:
            raise BadRequest("the commit doesn't begin with its header")
        else:
            message.changes.append(_change(root, key, value))
            folders += message.changes[-1].folder
            if len(message.changes) > CHANGES or folders > FOLDERS:
                raise TooLarge(f"a commit has at most {CHANGES} changes and deletes {FOLDERS} folders: make several")
    if message is None:
        raise BadRequest("the commit is empty")
    return message


def _change(root: Path, key: Any, value: dict[str, Any]) -> Change:
    path = text_field(value, "path")
    if key in ("deletedFile", "deletedFolder"):
        return Change(path, folder=key == "deletedFolder")
    file_path(path)
    if key == "lfsFile":
        oid = _sha256(value)
        stored = blobs.location(root, oid)
        if not stored.is_file() or value.get("size", stored.stat().st_size) != stored.stat().st_size:
            raise BadRequest(f"{path}: object {oid} of that size hasn't arrived: upload it first")
        size = stored.stat().st_size
        return Change(path, File(git_oid(pointer(oid, size)), size, oid, True))
    if key != "file" or value.get("encoding", "base64") not in ("base64", "utf-8"):
        raise BadRequest(f"a commit has no lines {json.dumps(key)[:100]} of encoding {short(value.get('encoding'))}")
    try:
        content = text_field(value, "content")
        data = content.encode() if value.get("encoding") == "utf-8" else base64.b64decode(content, validate=True)
    except ValueError:
        raise BadRequest(f"{path}: the content isn't {value.get('encoding', 'base64')}") from None
    if len(data) > LARGE:
        raise TooLarge(f"{path}: larger than {LARGE} bytes: upload it as an LFS object")
    return Change(path, File(git_oid(data), len(data), blobs.keep(root, data), False))
