"""A card as HTML, whoever wrote it: nothing in it is markup but what Markdown has, and nothing is loaded."""

import re
import threading
from functools import lru_cache
from html import escape

from zoo.errors import require

RENDERED = 1 << 15  # bytes of a card; a longer one, which may take seconds, is shown as it is written
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n.*?^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_FOLDED = re.compile(r"<p>&lt;details&gt;\n&lt;summary&gt;([^<]{0,200}?)&lt;/summary&gt;</p>")
_WEB = re.compile(r"(?i:https?)://|[^:]*([/?#]|$)")  # an address, or one within this server
_one_at_a_time = threading.Lock()


def body(text: str) -> str:
    """A card without its YAML front matter."""
    return _FRONT.sub("", text, count=1).strip()


@lru_cache(maxsize=256)
def rendered(text: str) -> str:
    r"""A card's Markdown as HTML: tags in it are shown as they are written, links lead to the web alone, no images.

    Args:
        text: without front matter.

    Returns:
        Elements without scripts, styles or anything that is fetched.

    Raises:
        MissingExtra: markdown-it-py isn't installed.

    >>> rendered("*macs* <script>")
    '<p><em>macs</em> &lt;script&gt;</p>\n'
    """
    if len(text) > RENDERED:
        return f"<pre>{escape(text[:RENDERED])} ...</pre>"
    markdown = require("markdown_it", "serve").MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.validateLink = _WEB.match  # else it is any but javascript, vbscript, file and data
    with _one_at_a_time:
        html: str = markdown.render(text)
    html = re.sub(r"<img\b[^>]*>", "", html)  # of another address, which would learn who reads
    html = re.sub(r' style="text-align:(\w+)"', r' align="\1"', html)  # which a page that allows no styles refuses
    return _FOLDED.sub(r"<details><summary>\1</summary>", html).replace("<p>&lt;/details&gt;</p>", "</details>")
