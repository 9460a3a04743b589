"""What a browser sees: the models that are here, and of each repository its card and files.

Nothing that a repository says is markup: HTML in a card is shown as it is written, links lead to the web alone, and the
page is told to load and run nothing. Who may see what is `access`'s business, as everywhere: a page shows what the API
would say to the same reader.
"""

from collections.abc import Iterable, Mapping
from html import escape
from itertools import islice
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from zoo.errors import RepositoryError
from zoo.pages import markdown
from zoo.printable import printable
from zoo.server import info, metadata, store
from zoo.server.errors import RevisionNotFound
from zoo.server.hub import hub, owner, readable, revision
from zoo.server.names import RepoId
from zoo.server.values import Commit

LISTED = 1_000  # models and files of a page
SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # another reader of the same browser may see less
}
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;border-bottom:1px solid #ddd}"
    "th:not([align]){text-align:left}"
    "pre{background:#f6f6f6;padding:.8rem;overflow-x:auto}code{background:#f6f6f6}a{color:#06c}"
)


def home(request: Request) -> Response:
    """The models and data sets that whoever asks may know of."""
    root, asking, parts = hub(request).root, owner(request), []
    for kind, title in (("model", "Models"), ("dataset", "Data sets")):
        seen = (each for each in store.repositories(root, kind) if asking or not each.private)
        rows = []
        for repository in islice(seen, LISTED):
            try:
                summary = info.summary(root, repository, store.resolved(repository, "main"))
            except (RevisionNotFound, RepositoryError):  # it went away meanwhile, or is damaged
                continue
            task = summary.get("pipeline_tag") or ""
            rows.append((_link(repository.name), *map(_text, (task, _figures(summary["cardData"])))))
        parts += [f"<h2>{title}</h2>", _table(("name", "task", "figures"), rows)] if rows else []
    return _page("Models", ["<h1>What is here</h1>", *(parts or ["<p>Nothing yet.</p>"])])


def repository(request: Request) -> Response:
    """A repository's card and its files."""
    repo = readable(request)
    commit = revision(request, repo)
    there = f"/{quote(repo.name.path)}/resolve/{commit.id}/"
    files = [f'<li><a href="{there}{quote(path)}">{_text(path)}</a></li>' for path in islice(commit.files, LISTED)]
    more = f"<p>and {len(commit.files) - LISTED:,} more</p>" if len(commit.files) > LISTED else ""
    parts = [
        f'<p><a href="/">all</a> / {_text(repo.name.id)} at <code>{commit.id[:7]}</code></p>',
        _card(hub(request).root, repo, commit),
        "<h2>Files</h2>",
        f"<ul>{''.join(files)}</ul>",
        more,
    ]
    return _page(repo.name.id, parts)


def _card(root: Any, repo: store.Repository, commit: Commit) -> str:
    """A card as HTML; nothing where there is none that can be read."""
    if "README.md" not in commit.files:
        return f"<h1>{_text(repo.name.id)}</h1>"
    try:
        with store.location(root, repo, commit, "README.md").open("rb") as file:
            data = file.read(metadata.FRONT_MATTER + markdown.RENDERED)
    except OSError:  # it went away meanwhile
        return ""
    return markdown.rendered(markdown.body(data.decode("utf-8", "replace")))


def _figures(card: Mapping[str, Any]) -> str:
    """What a card's head says was measured; it may say anything."""
    said: list[str] = []
    for model in _items(card.get("model-index"))[:1]:
        for result in _items(model.get("results"))[:5]:
            for metric in _items(result.get("metrics"))[:5]:
                value = metric.get("value")
                if isinstance(value, int | float) and not isinstance(value, bool):
                    said.append(f"{metric.get('name') or metric.get('type')} {value:.4g}")
    return ", ".join(said)


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _link(name: RepoId) -> str:
    return f'<a href="/{quote(name.path)}">{_text(name.id)}</a>'


def _text(value: Any) -> str:
    return escape(printable(str(value)))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _page(title: str, parts: Iterable[str]) -> Response:
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    html = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'
    return Response(html, headers=SAFE, media_type="text/html")
