"""scripts/release.yml: its steps are run, twice, as GitHub would, with a `gh` that keeps its releases in a folder."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qvec_deploy.cli.commands import commands

WORKFLOW = Path(__file__).parents[2] / "scripts" / "release.yml"
INSTALLS = "python -m pip install"
FAKE_GH = r"""#!/usr/bin/env bash
set -euo pipefail
store="$GH_STORE"
echo "gh $*" >> "$store/log"
case "$1 $2" in
  "release list") [ -n "$GH_TOKEN" ]; cat "$store/latest" 2>/dev/null || true ;;
  "release download") cp "$store/$3/release.tar.gz" "$7/" ;;
  "release create")
    mkdir "$store/$3"
    cp "$4" "$store/$3/"
    cp "$7" "$store/$3/notes.md"
    echo "$3" > "$store/latest" ;;
  "pr comment") [ ! -e "$store/comment-$3.md" ]; cp "$5" "$store/comment-$3.md" ;;
  "api --paginate") [ "${!#}" ]; if [ -e "$store/comment-7.md" ]; then printf '%s\n' 41 42; fi ;;
  "api --method") [ "$4" = repos/acme/models/issues/comments/41 ]; cp "${6#body=@}" "$store/comment-7.md" ;;
  *) echo "gh has no $*" >&2; exit 1 ;;
esac
"""


def _workflow() -> dict[Any, Any]:
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def _steps() -> Iterator[dict[str, Any]]:
    for job in _workflow()["jobs"].values():
        yield from job["steps"]


def test_actions_are_pinned_and_texts_of_others_stay_out_of_scripts() -> None:
    for step in _steps():
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v[0-9]+", step["uses"])
        else:
            assert step["name"]
            assert "${{" not in step["run"]  # a branch's name would be run as a command
    checkouts = [step for step in _steps() if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_permissions_are_the_least() -> None:
    workflow = _workflow()
    assert workflow["permissions"] == {"contents": "read"}
    rights = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    assert rights == {"build": {"contents": "read", "pull-requests": "write"}, "release": {"contents": "write"}}
    assert "pull_request_target" not in workflow[True]  # YAML 1.1 reads `on` as true


def test_the_key_is_seen_by_one_step_of_a_protected_job_and_is_never_printed() -> None:
    holders = [step for step in _steps() if "secrets." in str(step)]
    assert [step["name"] for step in holders] == ["Release"]
    assert _workflow()["jobs"]["release"]["environment"] == "release"
    script = holders[0]["run"]
    assert "umask 077" in script and "trap 'rm -f \"$key\"' EXIT" in script
    assert script.index("umask") < script.index("mktemp") < script.index("RELEASE_KEY")
    assert not re.search(r"set -x|echo", script)
    assert "secrets." not in str(_workflow()["jobs"]["build"]) and "secrets." not in str(_workflow().get("env"))


@pytest.fixture
def repository(tmp_path: Path, pico_recipe: Callable[..., Path], command: Path) -> Path:
    """A repository with a recipe, a public key, and `qvec-deploy` and `gh` on its machine."""
    tools, keys = tmp_path / "bin", tmp_path / "keys"
    for folder in (tools, keys, tmp_path / "github"):
        folder.mkdir()
    (tools / "gh").write_text(FAKE_GH)
    (tools / "gh").chmod(0o755)
    (tools / "qvec-deploy").symlink_to(command)
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", keys / "private.pem"], check=True
    )
    (tmp_path / "work").mkdir()
    public = tmp_path / "work" / "release.pub.pem"
    making = ["openssl", "ec", "-in", keys / "private.pem", "-pubout", "-out", public]
    subprocess.run(making, check=True, capture_output=True)
    pico_recipe(evaluate={"dataset": "tiny/realdigits", "limit": 40}, gates={"max_stored_bits": 8.0})
    return tmp_path


class Runner:
    """Runs the steps of a job; `if` conditions are this class's, everything else is the workflow's."""

    def __init__(self, root: Path, event: str) -> None:
        self.root, self.folder, self.event = root, root / "work", event
        self.summary = root / "summary.md"
        self.log = ""

    def run(self, jobs: tuple[str, ...], *, tag: str, skip: tuple[str, ...] = ()) -> int:
        """All jobs; the exit code of the first step that failed."""
        workflow, worst = _workflow(), 0
        values = {
            "secrets.RELEASE_KEY": (self.root / "keys" / "private.pem").read_text(),
            "github.token": "token",
            "github.repository": "acme/models",
            "github.ref_name": tag,
            "github.event.pull_request.number": "7",
        }
        for job in jobs:
            for step in workflow["jobs"][job]["steps"]:
                if "run" not in step or step["run"].startswith(INSTALLS) or step["name"] in skip:
                    continue
                if worst and "!cancelled()" not in step.get("if", ""):
                    continue
                if "pull_request" in step.get("if", "") and self.event != "pull_request":
                    continue
                worst = self._step(step, {**workflow["env"], **step.get("env", {})}, values) or worst
            if worst:
                break
        return worst

    def _step(self, step: dict[str, Any], variables: dict[str, str], values: dict[str, str]) -> int:
        env = {name: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], text) for name, text in variables.items()}
        env |= {"RECIPE": str(self.root / "pico.yaml"), "GITHUB_STEP_SUMMARY": str(self.summary)}
        env |= {"GH_STORE": str(self.root / "github"), "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}
        kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH", "LANG") if name in os.environ}
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub's runner
        done = subprocess.run(shell, cwd=self.folder, env={**kept, **env}, capture_output=True, text=True, check=False)
        self.log += f"== {step['name']}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.returncode


def _fresh(root: Path) -> None:
    """A new runner has the repository and nothing else."""
    for name in ("out", "last"):
        subprocess.run(["rm", "-rf", root / "work" / name], check=True)


def test_two_releases_and_a_missed_gate(repository: Path) -> None:
    first = Runner(repository, "push")
    assert first.run(("build", "release"), tag="v1") == 0, first.log
    published = repository / "github" / "v1"
    assert {path.name for path in published.iterdir()} == {"release.tar.gz", "notes.md"}
    notes = (published / "notes.md").read_text()
    assert notes.lstrip().startswith("# pico") and "library_name" not in notes
    assert "Not compared with an earlier release." in first.summary.read_text()
    assert "PRIVATE KEY" not in first.log + first.summary.read_text()
    _fresh(repository)

    second = Runner(repository, "pull_request")
    assert "compare" in commands.commands
    assert second.run(("build",), tag="v2") in (0, 3), second.log  # two images a second apart may well differ in speed
    assert "There is no release" not in second.log
    assert "signature every file is as the owner of release.pub.pem signed it" in second.log
    comment = (repository / "github" / "comment-7.md").read_text()
    assert "Not compared" not in comment and comment.startswith("<!-- qvec-deploy release.yml -->\n")
    assert "# pico" in comment and "max_stored_bits" in comment
    _fresh(repository)

    recipe = repository / "pico.yaml"
    recipe.write_text(recipe.read_text().replace("max_stored_bits: 8.0", "max_stored_bits: 1.0"))
    third = Runner(repository, "pull_request")
    assert third.run(("build", "release"), tag="v3", skip=("Compare with the last release",)) == 3, third.log
    assert "misses 1 of 1 gates" in third.log
    assert "MISSED" in (repository / "github" / "comment-7.md").read_text()
    log = (repository / "github" / "log").read_text()
    assert log.count("gh pr comment") == 1 and "issues/comments/41" in log and "--edit-last" not in log
    assert not (repository / "github" / "v3").exists()
    _fresh(repository)

    tar = published / "release.tar.gz"
    subprocess.run(["tar", "-xzf", tar, "-C", published], check=True)
    (published / "release" / "recipe.yaml").write_text("version: 1\n")
    subprocess.run(["tar", "-czf", tar, "-C", published, "release"], check=True)
    fourth = Runner(repository, "pull_request")
    fetch_only = ("Build", "Compare with the last release")
    assert fourth.run(("build",), tag="v4", skip=fetch_only) == 5, fourth.log
    assert "recipe.yaml was changed" in fourth.log
