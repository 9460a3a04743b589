"""Repositories as a whole: made, moved, deleted; their settings, branches and tags; who asks, and what a card says."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.server import changes, metadata
from zoo.server.errors import BadRequest, Conflict, Unauthorized
from zoo.server.hub import OWNER, changeable, changing, hub, owner, parameter, url
from zoo.server.names import new_repo_id, repo_id
from zoo.server.receiving import json_body, short, text_field


def whoami(request: Request) -> Response:
    """Who the token belongs to."""
    if not owner(request):
        raise Unauthorized("Invalid username or password.")
    token = {"type": "access_token", "accessToken": {"displayName": OWNER, "role": "write"}}
    return JSONResponse({"type": "user", "id": OWNER, "name": OWNER, "fullname": OWNER, "orgs": [], "auth": token})


async def validate_yaml(request: Request) -> Response:
    """Whether a card's front matter can be read; long ones take seconds, and are checked for the owner alone."""
    content, longest = text_field(await json_body(request), "content"), metadata.FRONT_MATTER
    try:
        header = await run_in_threadpool(metadata.front_matter, content, longest if owner(request) else longest // 16)
    except BadRequest as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": [], "error": str(error)}, 400)
    warnings = [] if header else [{"message": "empty or missing yaml metadata in repo card"}]
    return JSONResponse({"errors": [], "warnings": warnings})


def _named(data: dict[str, Any]) -> tuple[str, str]:
    name, namespace = text_field(data, "name"), data.get("organization") or None
    if namespace is None and "/" not in name:
        namespace = OWNER
    return data.get("type") or "model", name if namespace is None else f"{namespace}/{name}"


def _private(data: dict[str, Any]) -> bool | None:
    said = data.get("visibility")
    if said is None and isinstance(data.get("private"), bool):  # clients before 1.0
        said = "private" if data["private"] else "public"
    if said not in (None, "public", "private"):
        raise BadRequest(f"visibility: expected public or private, found {short(said)}")
    return None if said is None else said == "private"


async def create(request: Request) -> Response:
    """Make a repository."""
    changing(request)
    data = await json_body(request)
    name, private = new_repo_id(*_named(data)), bool(_private(data))
    place = url(hub(request), name)
    try:
        await run_in_threadpool(changes.create, hub(request).root, name, private)
    except Conflict as error:
        raise Conflict(str(error), place) from None
    return JSONResponse({"url": place, "name": name.id, "private": private})


async def delete(request: Request) -> Response:
    """Remove a repository."""
    changing(request)
    data = await json_body(request)
    await run_in_threadpool(changes.delete, hub(request).root, repo_id(*_named(data)))
    return JSONResponse({})


async def move(request: Request) -> Response:
    """Give a repository another name."""
    changing(request)
    data = await json_body(request)
    kind = data.get("type") or "model"
    old, new = repo_id(kind, text_field(data, "fromRepo")), new_repo_id(kind, text_field(data, "toRepo"))
    await run_in_threadpool(changes.move, hub(request).root, old, new)
    return JSONResponse({"url": url(hub(request), new)})


async def settings(request: Request) -> Response:
    """Make a repository private, public, gated or free."""
    name = await run_in_threadpool(changeable, request)
    data = await json_body(request)
    changed: dict[str, Any] = {}
    if (private := _private(data)) is not None:
        changed["private"] = private
    if "gated" in data:
        if data["gated"] not in ("auto", "manual", False):
            raise BadRequest(f"gated: expected auto, manual or false, found {short(data['gated'])}")
        changed["gated"] = data["gated"]
    await run_in_threadpool(changes.configure, hub(request).root, name, **changed)
    return JSONResponse(changed)


async def add_branch(request: Request) -> Response:
    """Make a branch where another revision is."""
    name = await run_in_threadpool(changeable, request)
    start = text_field(await json_body(request), "startingPoint", "main")
    await run_in_threadpool(changes.add_ref, hub(request).root, name, "branches", parameter(request, "ref"), start)
    return JSONResponse({})


async def add_tag(request: Request) -> Response:
    """Make a tag where a revision is."""
    name = await run_in_threadpool(changeable, request)
    new = text_field(await json_body(request), "tag")
    await run_in_threadpool(changes.add_ref, hub(request).root, name, "tags", new, parameter(request, "ref"))
    return JSONResponse({})


def remove_branch(request: Request) -> Response:
    """Remove a branch."""
    changes.remove_ref(hub(request).root, changeable(request), "branches", parameter(request, "ref"))
    return JSONResponse({})


def remove_tag(request: Request) -> Response:
    """Remove a tag."""
    changes.remove_ref(hub(request).root, changeable(request), "tags", parameter(request, "ref"))
    return JSONResponse({})
