"""What a browser sees of a served Hub: cards and files, and nothing that a card's author would like it to run."""

import html.parser
import time

import pytest
from hub import TOKEN, ask, commit, create, regular, serving
from served import address, folder

from zoo.pages import markdown

EVIL = """---
tags: [pruned]
model-index: [{name: x, results: [{metrics: [{name: "<script>alert(1)</script>", value: 0.5}]}]}]
---
# <script>alert(2)</script>

<img src=x onerror=alert(3)> <iframe src="http://elsewhere"></iframe>
[one](javascript:alert(4)) [two](data:text/html;base64,PHNjcmlwdD4=) [three](https://example.org)
[four](steam://run/1) [five](jar:javascript:alert(6)) <intent://scan> [six](tel:1)
![picture](https://elsewhere/who-reads-this.png)
<javascript:alert(5)> `</code><script>`

| a | b |
|:--|--:|
| 1 | <b onmouseover=alert(6)> |

<details>
<summary>All 2 of them</summary>

hidden

</details>
"""


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def seen(address, path, token=None):
    answer = ask(address, "GET", path, token=token)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer, Elements(answer.body.decode())


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("evil")) as address:
        create(address, "org/evil")
        commit(address, "org/evil", regular("README.md", EVIL), regular("a <b>.txt", "x"))
        yield address


def test_a_repository_is_a_page_with_its_card_and_its_files(address):
    _, page = seen(address, "/org/public")

    assert "public" in page.words  # the card's title
    assert not any("pipeline_tag" in word for word in page.words)  # but not its head
    for link in page.named("a")[1:]:
        assert ask(address, "GET", link["href"]).status in (200, 302)
    assert [word for word in page.words if word in ("README.md", "model.safetensors", "sub/notes.txt")] == [
        "README.md",
        "model.safetensors",
        "sub/notes.txt",
    ]
    assert seen(address, "/datasets/org/public")
    assert seen(address, "/plain/model")
    assert seen(address, "/alone")


def test_nothing_that_a_card_says_is_run_loaded_or_leads_elsewhere_than_the_web(evil):
    answer, page = seen(evil, "/org/evil")
    tags = {tag for tag, _ in page.found}

    assert not tags & {"script", "img", "iframe", "b", "form", "object", "link", "svg", "base"}
    assert not [key for _, attributes in page.found for key in attributes if key.startswith("on")]
    links = [attributes["href"] for attributes in page.named("a")]
    assert all(link.startswith(("/", "https://example.org")) for link in links), links
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert {"table", "details", "summary"} <= tags
    assert "alert(1)" in " ".join(seen(evil, "/")[1].words)
    assert not seen(evil, "/")[1].named("script")


def test_the_first_page_lists_what_whoever_asks_may_know_of(address):
    strangers, owners = (seen(address, "/", token)[1].words for token in (None, TOKEN))

    assert {"org/public", "org/gated", "plain/model"} <= set(strangers)
    assert "org/private" not in strangers
    assert "org/private" in owners


@pytest.mark.parametrize("path", ["org/private", "org/gated", "org/none", "api/nothing", "datasets/org/private"])
def test_what_a_stranger_may_not_read_is_no_page_either(address, path):
    answer = ask(address, "GET", f"/{path}")

    assert answer.status == 401
    assert b"nobody may read" not in answer.body
    assert b"<html" not in answer.body


@pytest.mark.parametrize("text", ["[" * 10**6, "![[" * 10**5, "|a|b|\n|-|-|\n" + "|x|y|\n" * 10**5, "a" * 10**6])
def test_a_long_card_is_shown_as_it_is_written_at_once(text):
    begun = time.monotonic()
    assert markdown.rendered(text).startswith("<pre>")
    assert time.monotonic() - begun < 1


def test_a_page_changes_nothing(evil):
    for method in ("POST", "PUT", "DELETE"):
        assert ask(evil, method, "/org/evil", {}).status == 405
