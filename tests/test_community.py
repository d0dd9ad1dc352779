"""What GitHub reads of this repository, and the hooks of a clone: they are valid, and say what the Makefile does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import guard
from tests.documents import ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# By the schema that check-jsonschema brings.
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": FORMS,
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE/config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}

every_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)


def tool(name: str, *arguments: str | Path) -> None:
    """Run a tool of this environment, which must have nothing to say."""
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def jobs_of(workflow: Path) -> dict[str, dict[str, Any]]:
    read: dict[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    jobs: dict[str, dict[str, Any]] = read["jobs"]
    return jobs


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in jobs_of(workflow).values() for step in job.get("steps", [])]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schemas(schema: str) -> None:
    assert SCHEMAS[schema]
    tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *SCHEMAS[schema])


@every_workflow
def test_names_within_a_workflow_exist(workflow: Path) -> None:
    """Of what actionlint would find, and the schema does not: its packages download it from where not all may go."""
    jobs = jobs_of(workflow)
    for name, job in jobs.items():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(jobs), name
        text = yaml.safe_dump(job)
        assert set(re.findall(r"\bsteps\.(\w+)\.", text)) <= {step.get("id") for step in job.get("steps", [])}, name
        assert set(re.findall(r"\bmatrix\.(\w+)", text)) <= set(job.get("strategy", {}).get("matrix", {})), name
        assert set(re.findall(r"\$\{\{\s*(\w+)\.", text)) <= {"github", "matrix", "needs", "secrets", "steps"}, name


@every_workflow
def test_a_workflow_may_do_little_and_not_for_ever(workflow: Path) -> None:
    read = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert read["permissions"] == {"contents": "read"}
    assert read["concurrency"]["group"]
    for name, job in jobs_of(workflow).items():
        assert "uses" in job or job["timeout-minutes"] <= 120, f"{name} has no bound"


@every_workflow
def test_actions_are_pinned_by_their_major_version(workflow: Path) -> None:
    used = [step["uses"] for step in steps_of(workflow) if "uses" in step]
    assert used
    for one in used:
        assert re.fullmatch(r"(actions|docker)/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", one), one
        if one.startswith("actions/checkout@"):
            assert not [s for s in steps_of(workflow) if s.get("uses") == one and s["with"]["persist-credentials"]]


@every_workflow
def test_workflows_make_what_the_makefile_knows(workflow: Path) -> None:
    made = [target for step in steps_of(workflow) for target in re.findall(r"\bmake (\S+)", step.get("run", ""))]
    assert [target for target in made if not re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)] == []


def test_each_python_that_is_supported_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, end = re.findall(r"3\.(\d+)", project["requires-python"])
    matrix = jobs_of(GITHUB / "workflows/check.yml")["test"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(first), int(end))]


def test_hooks_run_what_the_checks_run() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == commands
    assert not [hook for hook in hooks if hook["pass_filenames"]], "each looks at everything"


def test_pre_commit_reads_the_hooks() -> None:
    tool("pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml")


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issues_ask_for_what_doctor_says(form: Path) -> None:
    (field,) = (one for one in yaml.safe_load(form.read_text())["body"] if one.get("id") == "doctor")
    assert "`hguard doctor`" in field["attributes"]["label"]


def test_pull_requests_ask_for_what_doctor_says() -> None:
    assert "`hguard doctor`" in (GITHUB / "pull_request_template.md").read_text()


def test_security_names_no_address() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert "private vulnerability reporting" in text
    assert "@" not in text


def test_what_is_cited_is_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (guard.__version__, project["license"])
    assert (cited["title"], cited["abstract"]) == (project["name"], project["description"])
    assert cited["references"][0]["title"] in " ".join((ROOT / "NOTICE").read_text().split())
