"""Checks the built site: each link and picture of each page leads to a file of it, and to an anchor that is there.

External addresses are not asked. Standard library only; ``python -m deploy.docs.check site``.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """A line for each link that leads nowhere."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{path.relative_to(site)}: there is no {link}")
            elif anchor and target in pages and anchor not in pages[target].anchors | {"__top"}:
                found.append(f"{path.relative_to(site)}: {link} names no heading")
    return found


def main(site: Path) -> int:
    """Print what is broken; the exit status says whether anything is."""
    if not (site / "index.html").is_file():
        print(f"{site} holds no site", file=sys.stderr)
        return 1
    found = broken(site.resolve())
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
