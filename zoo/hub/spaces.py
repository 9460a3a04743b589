"""Static Spaces of the Hub: pages that need no server."""

from collections.abc import Mapping

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

from zoo.errors import HubError
from zoo.hub.errors import explained
from zoo.hub.remote import TIMEOUT

README = """---
title: {title}
sdk: static
app_file: index.html
pinned: false
---
"""


GIT = ".gitattributes"
MADE_WITH = (GIT, "style.css")  # what the Hub puts into a new static Space, beside a README and a page


def publish_space(files: Mapping[str, bytes], repo: str, title: str) -> str:
    """Publish a page as a static Space in one commit; the same page again makes none, and no other Space is touched.

    Args:
        files: path → bytes, `index.html` among them.
        repo: `org/name`; made where it isn't there yet.
        title: that the Hub shows.

    Returns:
        Its page on the Hub.

    Raises:
        HubError, UnknownName: the Hub can't be reached, or refuses; or another Space has that name.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"{repo} can't be published: HF_HUB_OFFLINE is set, unset it")
    api = HfApi()
    told = {"README.md": README.format(title=title).encode(), **files}
    with explained(repo, None):
        page = api.create_repo(repo, repo_type="space", space_sdk="static", exist_ok=True)
        head = api.space_info(repo, timeout=TIMEOUT)
        there = {sibling.rfilename for sibling in head.siblings or []}
        if foreign := sorted(there - {*told, *MADE_WITH}):
            raise HubError(f"{repo} isn't a page of zoo browse (found {foreign[0]}): choose another Space")
        gone = sorted(there - {*told, GIT})
        api.create_commit(
            repo,
            [
                *(CommitOperationAdd(path, data) for path, data in told.items()),
                *(CommitOperationDelete(path) for path in gone),
            ],
            repo_type="space",
            commit_message=f"Publish {title}",
            parent_commit=head.sha,
        )
    return str(page)
