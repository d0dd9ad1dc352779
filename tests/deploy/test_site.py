"""The site of the documentation, by what it is made with; ``make docs`` builds it, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.docs import check, links, openapi
from tests.documents import DOCUMENTS, ROOT, prose_of
from tests.scripted.openapi import document as openapi_document

PRESENT = {"README.md", "api.md", "token-risk.png", "models/atlas/README.md"}
ADDRESS = "https://forge.example/owner/name"


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags are mkdocs's own."""


Loader.add_multi_constructor("!", lambda loader, tag, node: None)
Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: None)


def pages(nav: Any) -> list[str]:
    """The pages that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_the_navigation_has_every_page() -> None:
    nav = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    assert nav[:2] == ["README.md", "quickstart.md"]
    assert len(nav) == len(set(nav))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(nav)
    outside = [page for page in nav if not (ROOT / "docs" / page).exists()]
    assert [page for page in outside if not (ROOT / page).is_file() and page != "reference/http.md"] == []
    hooks = (ROOT / "deploy/docs/hooks.py").read_text()
    assert [page for page in outside if f'"{page}"' not in hooks] == []


@pytest.mark.parametrize(
    ("path", "written", "shown"),
    [
        ("docs/quickstart.md", "[API](api.md#asking)", "[API](api.md#asking)"),
        ("docs/quickstart.md", "[atlas](../models/atlas/README.md)", "[atlas](models/atlas/README.md)"),
        ("docs/quickstart.md", "[here](#below), [there](https://x.example/a.md)", None),
        ("README.md", "![risk](docs/token-risk.png)", "![risk](token-risk.png)"),
        ("models/atlas/README.md", "[API](../../docs/api.md)", "[API](../../api.md)"),
        (
            "README.md",
            "[it](LICENSE) [all](examples)",
            f"[it]({ADDRESS}/blob/HEAD/LICENSE) [all]({ADDRESS}/blob/HEAD/examples)",
        ),
        ("README.md", "[![risk](docs/token-risk.png)](docs/api.md)", "[![risk](token-risk.png)](api.md)"),
        ("README.md", "```text\n[API](docs/api.md)\n```", None),
        ("README.md", "a [0] of `x[1](2)`? [API](docs/api.md)", "a [0] of `x[1](2)`? [API](api.md)"),
    ],
)
def test_links(path: str, written: str, shown: str | None) -> None:
    assert links.rewritten(written, path, PRESENT, ADDRESS) == (written if shown is None else shown)


def test_without_an_address_only_text_is_left_of_a_link_to_source() -> None:
    text = "[it](LICENSE), ![x](docs/none.png) and [API](docs/api.md)"
    assert links.rewritten(text, "README.md", PRESENT, "") == "it, x and [API](api.md)"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_after_a_paragraph_within_an_item_a_list_goes_on_below_a_blank_line(document: Path) -> None:
    """GitHub needs none, the site does: it would read the next item as more of the paragraph."""
    assert re.findall(r"\n\n +(?![*|-])\S.*\n(?: +.*\n)*[*-] .*", prose_of(document)) == []


async def test_the_reference_has_every_route_and_every_field() -> None:
    made = await openapi_document()
    text = openapi.page(made)
    for path, operations in made["paths"].items():
        for method in operations:
            assert f"\n## {method.upper()} {path} {{ #" in text
    anchors = re.findall(r"^##+ .* \{ #(\S+) \}$", text, re.MULTILINE)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(anchors)
    for name, schema in made["components"]["schemas"].items():
        section = text.partition(f"\n### {name} {{ #")[2].partition("\n### ")[0]
        assert [field for field in schema.get("properties", {}) if f"| `{field}` |" not in section] == []
    assert "Needs a key." in text


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top"></h1><a href="api/#asking">a</a><a href="https://x.example">b</a>'
    )
    (tmp_path / "api/index.html").write_text('<h2 id="asking"></h2><img src="../a.png"><a href="..#top">c</a>')
    assert check.main(tmp_path) == 1
    assert check.broken(tmp_path) == ["api/index.html: there is no ../a.png"]
    (tmp_path / "a.png").write_bytes(b"")
    assert check.main(tmp_path) == 0
    (tmp_path / "index.html").write_text('<a href="api/#answering">a</a>')
    assert check.broken(tmp_path) == [
        "api/index.html: ..#top names no heading",
        "index.html: api/#answering names no heading",
    ]


def test_a_folder_without_a_site_is_no_success(tmp_path: Path) -> None:
    assert check.main(tmp_path) == 1
