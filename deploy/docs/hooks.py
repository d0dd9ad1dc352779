"""What mkdocs is told beside ``mkdocs.yml``: pages from outside ``docs/``, references that are made, links, lists.

Pages are written for GitHub first and stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from deploy.docs import links, openapi

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "build/openapi.json"
# Pages of the repository that stand elsewhere.
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/gpu/README.md",
    "deploy/image/README.md",
    "models/atlas/README.md",
    "models/smollm2/README.md",
)
HTTP, PYTHON = "reference/http.md", "reference/python"


class GitHubLists(Extension):
    """Lists as GitHub reads them: what is indented by two belongs to an item. Python-Markdown wants four."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Python-Markdown's name
        md.tab_length = 2
        for processor in md.parser.blockprocessors:
            if type(processor).__module__ == "markdown.blockprocessors":
                processor.__init__(md.parser)  # it has worked out its patterns from the length


def packages() -> dict[str, list[str]]:
    """The modules of each package of app/ and guard/ that has any, by the package's name."""
    found: dict[str, list[str]] = {}
    for top in ("guard", "app"):
        for init in sorted((ROOT / top).rglob("__init__.py")):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            modules = [f"{name}.{path.stem}" for path in sorted(init.parent.glob("*.py")) if path != init]
            if modules:
                found[name] = modules
    return found


def on_config(config: Any) -> Any:
    config.markdown_extensions.insert(0, GitHubLists())
    config.nav.append({"Python": [{name: f"{PYTHON}/{name}.md"} for name in packages()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    if not DOCUMENT.is_file():
        raise PluginError(f"there is no {DOCUMENT.relative_to(ROOT)}: `make docs` makes it")
    for page in PAGES:
        files.append(File.generated(config, page, abs_src_path=str(ROOT / page)))
    reference = openapi.page(json.loads(DOCUMENT.read_text(encoding="utf-8")))
    files.append(File.generated(config, HTTP, content=reference))
    for name, modules in packages().items():
        text = "\n\n".join([f"# {name}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"{PYTHON}/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    path = place if place in PAGES else f"docs/{place}"
    return links.rewritten(markdown, path, files.src_uris, (config.repo_url or "").rstrip("/"))
