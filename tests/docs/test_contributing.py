"""The recipes of CONTRIBUTING.md, carried out command by command on a copy of the package."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doc_blocks import Block, blocks_of, commands_of
from tests.support.sources import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("recipes")]


def recipes() -> Iterator[tuple[str, list[Block]]]:
    """The blocks under each heading of the third level, in order."""
    text = PAGE.read_text(encoding="utf-8").splitlines()
    headings = [
        (number, line[4:]) for number, line in enumerate(text, 1) if line.startswith("### ")
    ]
    ends = [number for number, _ in headings[1:]] + [len(text)]
    for (start, name), end in zip(headings, ends, strict=True):
        found = [
            one for one in blocks_of(PAGE) if start < one.line < end and one.language == "bash"
        ]
        if found:
            yield name, found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, its tests and the scripts, where a recipe may change them."""
    for name in ("torch", "xlsxwriter", "sacrebleu"):
        if (
            importlib.util.find_spec(name) is None
        ):  # looked for and not imported: torch takes seconds
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("clone")
    for name in ("cbtqa", "tests", "scripts", "data", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "bin").mkdir()
    program = folder / "bin/cbtqa"
    program.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -m cbtqa "$@"\n')
    program.chmod(0o755)
    return folder


def test_every_recipe_leads_where_it_says(copy: Path) -> None:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "PATH": f"{copy / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(copy),
        "NO_COLOR": "1",
    }
    shown = {}
    later = Counter(
        one.words for _, blocks in recipes() for block in blocks for one in commands_of(block)
    )
    for name, blocks in recipes():
        shown[name] = ""
        for command in (command for block in blocks for command in commands_of(block)):
            later[command.words] -= 1
            if later[command.words] and command.words.startswith("pytest"):
                continue  # the same tests are run at the end of a later recipe, which goes on from here
            words = command.words.replace("pytest -q", "pytest -q -p no:cacheprovider")
            done = subprocess.run(
                ["bash", "-c", words], cwd=copy, env=env, capture_output=True, text=True
            )
            shown[name] += done.stdout
            told = f"CONTRIBUTING.md:{command.line}: {command.words}\n{done.stdout}{done.stderr}"
            assert done.returncode == command.code, told
    assert "questions (marks)" in shown["A metric"]
    assert "1 passed" in shown["A prompt version"]
    assert "warmth" in shown["A rubric"]
    assert "judge on pace" in shown["An instrument"]
    assert "my-lab/Mini-1B" in shown["A backbone"]
    assert "plain-turns.jinja" in shown["A chat template"]
