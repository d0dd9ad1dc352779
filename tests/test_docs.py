"""The documents say what is there."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import guard
from app.cli import main
from app.ingress.middleware import PUBLIC
from app.protocols.options import GuardOptions
from app.server.routes import ALLOWED, OWN
from app.settings import ATLAS, Settings, settings_from
from bench import report
from guard.launch import overrides, support
from guard.probe.bundle import FILES, LARGEST, load_bundle
from tests import settings_table
from tests.documents import DOCUMENTS, ROOT, anchors_of, blocks_of, links_of, prose_of

PACKAGES = sorted(path.parent for folder in ("app", "guard") for path in (ROOT / folder).rglob("*/__init__.py"))
CROWDED = 12  # files of one package
# In the order in which a newcomer reads them.
ORDER = ["quickstart", "api", "calibration", "operations", "benchmarks", "security", "structure"]
# Flags of programs that are neither ours nor vLLM's.
OTHERS = {
    "docker": {"--build-arg", "--cap-drop", "--gpus", "--secret", "--shm-size", "--stop-timeout", "--tmpfs"},
}

# Messages of other programs, in docs/troubleshooting.md.
OTHERS_SAY: set[str] = set()

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_structure_has_a_line_for_every_package(package: Path) -> None:
    assert f"\n| `{package.relative_to(ROOT)}/` |" in (ROOT / "docs/structure.md").read_text()


def test_structure_names_files_that_exist() -> None:
    text = (ROOT / "docs/structure.md").read_text()
    names = {path.name for folder in ("app", "guard") for path in (ROOT / folder).rglob("*.py")}
    for named in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / named).is_file() if "/" in named else named in names, f"there is no {named}"


def test_contributing_names_what_exists() -> None:
    """Files by their paths; names of the code as they stand in the files that it names."""
    spans = set(re.findall(r"`([^`\n]+)`", prose_of(ROOT / "CONTRIBUTING.md")))
    paths = {span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)+|\w+\.(md|cff|toml)|Dockerfile", span)}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    code = "\n".join((ROOT / path).read_text() for path in paths if path.endswith(".py"))
    names = {span for span in spans if re.fullmatch(r"[A-Z]\w+(\.\w+)?|[a-z]+_\w+", span)} - {"Dockerfile"}
    assert len(names) > 20
    assert [name for name in sorted(names) if not re.search(rf"\b{name.rpartition('.')[2]}\b", code)] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_is_crowded(package: Path) -> None:
    assert len([path for path in package.glob("*.py") if path.name != "__init__.py"]) <= CROWDED


def test_readme_shows_what_it_is_on_its_first_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 80
    first_screen = lines[:38]
    for start in (
        "![",
        "| **AUROC",
        "docker run",
        "make serve",
        "make test",
        "docker compose -f deploy/compose.yaml up",
    ):
        assert any(line.startswith(start) for line in first_screen), start


def test_readme_s_figures_are_those_of_the_reports() -> None:
    page = (ROOT / "README.md").read_text()
    assert report.readme(page) == page
    outside = page.partition("<!-- end of the figures -->")[2]
    assert re.findall(r"(?<![\w.])0?\.\d+(?![\d.]*\.\d)\b|\d+ ?%", outside) == []


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in links_of(document):
        target = document.parent / path if path else document
        assert target.exists(), f"there is no {path}"
        assert not anchor or anchor in anchors_of(target), f"{path} has no heading #{anchor}"


def test_every_document_is_linked() -> None:
    linked = {(document.parent / path).resolve() for document in DOCUMENTS for path, _ in links_of(document) if path}
    assert [
        str(document) for document in DOCUMENTS if document.parent == ROOT / "docs" and document not in linked
    ] == []


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_newcomers_are_led_in_order(name: str) -> None:
    last_part = (ROOT / name).read_text().rpartition("\n## ")[2]
    named = re.findall(r"\((?:docs/)?(\w+)\.md\)", last_part)
    order = [one for one in ORDER if f"docs/{one}.md" != name]
    assert [one for one in named if one in order] == order


@every_document
def test_variables_exist(document: Path) -> None:
    settings = {f"HGUARD_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bHGUARD_[A-Z][A-Z_]*\b", document.read_text()))
    assert [name for name in sorted(named - settings) if not re.search(rf"\b{name}\b", sources())] == []


@every_document
def test_flags_exist(document: Path) -> None:
    for span in re.findall(r"`([^`]+)`", prose_of(document)):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span))
        if not named:
            continue
        own = re.match(r"hguard (\w+)", span)
        known = flags_of(own[1]) if own and " -- " not in span else every_flag()
        unknown = [flag for flag in sorted(named - known) if not re.search(rf"{flag}\b", scripts())]
        assert unknown == [], f"`{span}` names flags that do not exist"


@cache
def sources() -> str:
    """Everything that may read a variable."""
    kinds = {".py", ".sh", ".yaml"}
    folders = ("app", "guard", "bench", "deploy", "examples", "models", "tests/fuzz")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*found, ROOT / "Makefile"])


@cache
def scripts() -> str:
    """Programs with flags of their own."""
    found = [path for path in (ROOT / "bench").rglob("*") if path.suffix in {".py", ".sh"}]
    return "\n".join(path.read_text(encoding="utf-8") for path in found)


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(command, parser) of each of hguard's commands, and of the actions of those that have some."""

    def below(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for chosen, inner in action.choices.items():
                    yield name or chosen, inner
                    yield from below(inner, name or chosen)

    return below(main._parser(), "")


def flags_of(command: str) -> set[str]:
    return {flag for name, parser in parsers() if name == command for flag in parser._option_string_actions}


@cache
def every_flag() -> set[str]:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from guard.compat import make_arg_parser

    engine = set(make_arg_parser(FlexibleArgumentParser())._option_string_actions)
    return engine.union(*(parser._option_string_actions for _, parser in parsers()), *OTHERS.values())


def test_the_tables_of_settings_are_up_to_date() -> None:
    page = settings_table.PAGE.read_text(encoding="utf-8")
    assert page == settings_table.filled(page), "run `python -m tests.settings_table`"
    keys = re.findall(r"^\| `[^`]+` \| `HGUARD_(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(key for _, key in keys) == sorted(Settings.model_fields)
    assert all(variable == key.upper() for variable, key in keys)


def test_the_sample_of_a_settings_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = (block for block in blocks_of(settings_table.PAGE) if block.language == "toml")
    keys = tmp_path / "hguard_api_keys"
    keys.write_text("a-key\n")
    (tmp_path / "hguard.toml").write_text(sample.text.replace("/run/secrets/hguard_api_keys", str(keys)))
    monkeypatch.chdir(tmp_path)
    loaded = settings_from({})
    given = tomllib.loads(sample.text)
    assert loaded.model_dump(mode="json", include=set(given) - {"api_keys_file"}) == {
        key: value for key, value in given.items() if key != "api_keys_file"
    }
    assert len(loaded.api_keys) == 1


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    # Texts over several lines joined, and what is filled in as dots.
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", sources())
    said = re.sub(r"\{[^{}]*\}", "...", joined)
    text = (ROOT / "docs/troubleshooting.md").read_text()
    symptoms = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    quoted = [span for symptom in symptoms for span in re.findall(r"`([^`]+)`", symptom) if " " in span]
    assert len(quoted) > 30
    unknown = {span for span in quoted for part in span.split("...") if part.strip() and part.strip() not in said}
    assert unknown - OTHERS_SAY == set()


def test_api_describes_every_option() -> None:
    text = (ROOT / "docs/api.md").read_text()
    missing = [name for name in GuardOptions.model_fields if f"| `{name}` |" not in text]
    assert missing == []


def test_api_names_every_open_route() -> None:
    text = (ROOT / "docs/api.md").read_text()
    assert [path for path in sorted(ALLOWED | OWN) if path not in text] == []


def test_api_names_every_metric() -> None:
    text = (ROOT / "docs/api.md").read_text()
    metrics = set(re.findall(r'"(hguard_\w+)"', (ROOT / "app/telemetry/metrics.py").read_text()))
    assert len(metrics) > 10
    assert [name for name in sorted(metrics) if not re.search(rf"`{name}\b", text)] == []


@pytest.mark.parametrize("name", ["docs/api.md", "docs/operations.md", "docs/security.md"])
def test_documents_name_what_needs_no_key(name: str) -> None:
    text = " ".join((ROOT / name).read_text().split())
    pages = ("/", "/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js")
    paths = [f"`{path}`" for path in (*pages, "/live", "/ready", "/health", "/ping", "/metrics")]
    assert {path.strip("`") for path in paths} == PUBLIC
    assert f"{', '.join(paths[:-1])} and {paths[-1]}" in text


def test_security_names_what_is_refused() -> None:
    text = (ROOT / "docs/security.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| options of vLLM"))
    assert set(re.findall(r"`(--[\w-]+)`", row)) == {option for option, _, _ in support._REFUSED}
    (row,) = (line for line in text.splitlines() if line.startswith("| what would serve something else"))
    assert set(re.findall(r"`(--[\w-]+)`", row.partition(" | ")[0])) == {one.option for one in overrides.REFUSED}
    source = (ROOT / "guard/launch/support.py").read_text()
    variables = set(re.findall(r'environment\.get\("(\w+)"', source))
    assert [name for name in sorted(variables) if f"`{name}`" not in text] == []


def test_users_find_what_is_refused_where_they_look() -> None:
    text = (ROOT / "docs/api.md").read_text()
    named = set(re.findall(r'param="(\w+)"', (ROOT / "app/protocols/adapters/base.py").read_text())) - {"messages"}
    assert "use_beam_search" in named
    assert [name for name in sorted(named) if f"| `{name}` |" not in text] == []
    section = (
        (ROOT / "docs/deployment.md").read_text().partition("## What vLLM may not be told\n")[2].partition("\n## ")[0]
    )
    rows = "\n".join(line for line in section.splitlines() if line.startswith("| `"))
    refused = {option for option, _, _ in support._REFUSED} | {one.option for one in overrides.REFUSED}
    for option in ("--enable-lora", "--quantization", "--speculative-config", "--tokenizer", "--model", "--api-key"):
        assert option in refused
        assert f"`{option}`" in rows
    assert "security.md#what-is-open-what-is-closed" in section


def test_security_says_what_a_bundle_is() -> None:
    text = (ROOT / "docs/security.md").read_text()
    assert {Path(name).suffix for name in FILES} == {".json", ".safetensors"}
    assert f"larger than {LARGEST >> 20} MiB" in text


def test_the_changelog_has_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert versions[0] == "## [Unreleased]"
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert len(versions) == 1 or versions[1].startswith(f"## [{guard.__version__}]")


@pytest.mark.parametrize("page", ["docs/quickstart.md", "models/atlas/README.md"])
def test_atlas_s_revision_is_the_one_that_ships(page: str) -> None:
    said = re.findall(r"revision\"?:? \"?([0-9a-f]{12})", (ROOT / page).read_text())
    assert set(said) == {load_bundle(ATLAS / "probe").revision}
