"""Links of pages that are written for GitHub, as the site needs them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container

# A fenced block or code in a line, which stay as they are; a link or a picture, whose text may hold a picture.
_LINK = re.compile(
    r"^ *```.*?^ *```$|`[^`\n]*`"
    r"|(?P<picture>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


def place_of(path: str) -> str:
    """Where a file of the repository stands in the site: ``docs/`` is its root."""
    return path.removeprefix("docs/")


def rewritten(markdown: str, path: str, present: Container[str], repository: str) -> str:
    """The text of the page at ``path`` in the repository, with links that hold in the site.

    present: the site's files, by their place. repository: the address that links to other files lead to; without one
    their text alone is left.
    """

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None:
            return match[0]
        text = _LINK.sub(moved, match["text"])
        if not re.match(r"[a-z]+:|#", target):
            target = _moved(target, path, present, repository)
        return f"{match['picture']}[{text}]({target})" if target else text

    return _LINK.sub(moved, markdown)


def _moved(target: str, path: str, present: Container[str], repository: str) -> str:
    """Where a link of the page at ``path`` leads in the site; empty for nowhere."""
    file, hash_, anchor = target.partition("#")
    named = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
    place = place_of(named)
    if place in present:
        return posixpath.relpath(place, posixpath.dirname(place_of(path)) or ".") + hash_ + anchor
    return f"{repository}/blob/HEAD/{named}{hash_}{anchor}" if repository else ""
