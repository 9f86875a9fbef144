"""What README and the docs tell a reader to type: that it is there, and that the Python lines do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from command_line import ROOT, python

from ddray.cli import app

PAGES: tuple[str, ...] = ("README.md", "docs/text.md", "docs/images.md", "docs/engine.md")
COMMAND = re.compile(r"\bddray ([a-z]+)\b([^`\n#]*)|python run_search\.py\b([^`\n#]*)")
QUICK = {
    "outer.steps: 160": "outer.steps: 4",
    "outer.score_every: 20": "outer.score_every: 2",
    "grace_steps: 40": "grace_steps: 2",
    "int: [6, 10]": "int: [1, 2]",
}


def shown() -> list[str]:
    """Commands in code blocks and code spans, each with its flags."""
    lines = []
    for page in PAGES:
        for index, part in enumerate(re.split(r"^```.*$", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)):
            lines += part.splitlines() if index % 2 else re.findall(r"`([^`]+)`", part)
    return sorted({found.group(0).strip() for line in lines for found in COMMAND.finditer(line)})


def test_there_is_something_to_check() -> None:
    assert len(shown()) >= 8


@pytest.mark.parametrize("line", shown())
def test_every_command_and_flag_that_is_shown_exists(line: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name = "search" if line.startswith("python") else line.split()[1]
    assert name in commands
    known = {flag for parameter in commands[name].params for flag in parameter.opts} | {"--help"}
    assert set(re.findall(r"--[a-z][a-z-]*", line)) <= known


def test_both_make_targets_are_there() -> None:
    told = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert told == {"search", "test"}
    for target in told:
        assert subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True).returncode == 0


def test_the_python_lines_run_as_they_stand(migrated: Path, work: Path) -> None:
    """The search first, since the others read its record; two trials of it, on a space that takes four outer steps a trial."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (search,) = [line for line in block.splitlines() if line.startswith("ddray.search(")]
    space = (ROOT / "search_spaces" / "digits_lenet.yaml").read_text(encoding="utf-8")
    for told, quick in QUICK.items():
        assert told in space
        space = space.replace(told, quick)
    (work / "search_spaces").mkdir()
    (work / "search_spaces" / "digits_lenet.yaml").write_text(space, encoding="utf-8")
    (work / "sweeps").mkdir()
    shutil.copy(migrated, work / "sweeps" / "mlflow.db")
    assert "trials=8" in search
    lines = ["import ddray", search.replace("trials=8", "trials=2"), block.replace(search, "")]
    ended = python("-c", "\n".join(lines), cwd=work)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d % \(n = 20 networks; as-distilled, validation\)", ended.stdout)
    assert (work / "mine" / "manifest.json").is_file() and (work / "mine.png").is_file()
