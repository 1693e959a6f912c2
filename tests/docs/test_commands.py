"""Every command that README, tutorials and how-to pages show is run as it is written there.

A page is followed from top to bottom in an empty folder. Models behind `--endpoint vllm` are a
scripted endpoint on loopback, Baichuan is a tiny random checkpoint on a loopback Hub, and
`PsyQA_full.json` is the invented sample. The output that a page shows must be in what the commands
before it print: of `txt` blocks every figure, of `text` blocks all but the figures. What cannot run
here is in not_run.yaml, by reason; the counts are printed at the end of a test run.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.players import any_reply
from tests.support.doc_blocks import Block, Command, blocks_of, commands_of, is_shown_in
from tests.support.endpoint import ScriptedEndpoint
from tests.support.program import run_cbtqa
from tests.support.published import published
from tests.support.sources import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("docs")]
NOT_RUN: dict[str, list[str]] = yaml.safe_load(
    (Path(__file__).with_name("not_run.yaml")).read_text()
)
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in (*sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("howto/*.md")))
    if any(block.language == "bash" for block in blocks_of(page))
] + [ROOT / "README.md"]
TRANSLATIONS = {
    ROOT / "README.zh.md": ROOT / "README.md",
    **{path: DOCS / "tutorials" / path.name for path in sorted(DOCS.glob("zh/tutorials/*.md"))},
}
SHORT = {
    "finetune": {"MAX_STEPS": "1", "BATCH_SIZE": "1", "N_SAMPLES": "0", "MAX_LENGTH": "2048"},
    "generate": {"TEMPERATURE": "2", "MAX_NEW_TOKENS": "300"},
    "chat": {"MAX_NEW_TOKENS": "50"},
    "score": {"BOOTSTRAP": "50"},
    "compare": {"BOOTSTRAP": "50"},
}
"""By verb, settings from the environment that make tiny random weights quick and let them stop."""


def reason_not_run(words: str) -> str | None:
    """Why no test runs the command; None for one that is run."""
    for reason, patterns in NOT_RUN.items():
        if any(re.match(pattern, words) for pattern in patterns):
            return reason
    return None


class Page:
    """Follows one page in a folder, with the URL of what answers for every local server."""

    def __init__(self, folder: Path, url: str, done: set[str], monkeypatch: pytest.MonkeyPatch):
        self.folder, self.url, self.done, self.patch = folder, url, done, monkeypatch
        self.names: dict[str, Any] = {}
        self.output = ""
        self.counts: Counter[str] = Counter()

        self._put_psyqa()

    def _put_psyqa(self) -> None:
        """The file that a reader has got from PsyQA's authors, invented; not the sample to a byte."""
        rows = json.loads((ROOT / "data/psyqa/sample.json").read_text(encoding="utf-8"))
        rows[0]["question"] += "？"
        path = self.folder / "PsyQA_full.json"
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    def follow(self, path: Path) -> None:
        for block in blocks_of(path):
            where = f"{path.relative_to(ROOT)}:{block.line}"
            if block.language == "bash":
                self.output = ""
                for command in commands_of(block):
                    self._run(command, f"{path.relative_to(ROOT)}:{command.line}")
            elif block.language == "python":
                self.output = self._execute(block, where)
            elif block.language in ("text", "txt"):
                exact = block.language == "txt"
                for line in block.text.splitlines():
                    is_there = line.strip() in ("", "...") or is_shown_in(
                        line, self.output, to_the_figure=exact
                    )
                    assert is_there, f"{where}: not in the output: {line}\n{self.output}"

    def _run(self, command: Command, where: str) -> None:
        words = command.words
        if reason := reason_not_run(words):
            self.counts[reason] += 1
        elif "finetune" in words and "--dry-run" in words and words in self.done:
            self.counts["another page has the same dry run"] += 1
        else:
            self.counts["run"] += 1
            self.done.add(words)
            run = self._cbtqa if words.startswith("cbtqa ") else self._shell
            try:
                run(words, command.code)
            except AssertionError as error:
                raise AssertionError(f"{where}: {words}\n{error}") from None

    def _cbtqa(self, words: str, code: int | None) -> None:
        _, verb, *rest = shlex.split(words.replace("=vllm", f"={self.url}"))
        args = [self.url if one in ("vllm", "llama.cpp") else one for one in rest]
        short = {} if "--dry-run" in args else SHORT.get(verb, {})
        more = {f"CBTQA_{name}": value for name, value in short.items()}
        code = (
            None if verb == "chat" else code
        )  # random weights may say nothing, or what is withheld
        done = run_cbtqa(verb, *args, cwd=self.folder, code=code, COLUMNS="80", **more)
        self.output += done.stderr + done.stdout

    def _shell(self, words: str, code: int) -> None:
        if words.startswith("cd "):
            self.folder = (self.folder / words[3:]).resolve()
            assert self.folder.is_dir(), f"no folder {self.folder}"
            self._put_psyqa()
            return
        if words.startswith("export "):
            shown = subprocess.check_output(
                ["bash", "-c", f"{words}; env -0"], cwd=self.folder, text=True
            )
            for name, value in (one.split("=", 1) for one in shown.split("\0") if one):
                if f"{name}=" in words:
                    self.patch.setenv(name, value)
            return
        words = words.replace(": vllm", f": {self.url!r}").replace("scripts/", f"{ROOT}/scripts/")
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", words], cwd=self.folder, env=env, capture_output=True, text=True
        )
        self.output += done.stderr + done.stdout
        assert done.returncode == code, f"exit {done.returncode}\n{self.output}"

    def _execute(self, block: Block, where: str) -> str:
        said = io.StringIO()
        self.patch.chdir(self.folder)
        source = block.text.replace('"vllm"', repr(self.url))
        with redirect_stdout(said):
            exec(compile(source, where, "exec"), self.names)
        self.counts["run"] += 1
        return said.getvalue()


@pytest.fixture(scope="module")
def followed() -> set[str]:
    """The commands that an earlier page of this run has had."""
    return set()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedEndpoint]:
    """What answers for every server, and the Hub that Baichuan is downloaded from."""
    for name in ("torch", "peft", "xlsxwriter", "sacrebleu", "huggingface_hub"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("hub")
    with (
        published(folder, {"baichuan": "baichuan", "qwen": "qwen"}),
        ScriptedEndpoint(any_reply) as server,
    ):
        yield server


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_can_be_followed_word_for_word(
    path: Path,
    endpoint: ScriptedEndpoint,
    followed: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))  # nothing is converted yet
    folder = tmp_path / "empty"
    folder.mkdir()
    page = Page(folder, endpoint.url, followed, monkeypatch)
    page.follow(path)
    told = ", ".join(f"{n} {reason}" for reason, n in sorted(page.counts.items()))
    record_property("figure", f"{path.relative_to(ROOT)}: {told}")


def test_every_reason_for_not_running_a_command_has_a_command() -> None:
    shown = [
        command.words
        for path in PAGES
        for block in blocks_of(path)
        if block.language == "bash"
        for command in commands_of(block)
    ]
    patterns = [pattern for patterns in NOT_RUN.values() for pattern in patterns]
    unused = [one for one in patterns if not any(re.match(one, words) for words in shown)]
    assert not unused


@pytest.mark.parametrize("path", TRANSLATIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_translated_page_has_the_commands_of_the_page_that_is_followed(path: Path) -> None:
    def shown(page: Path) -> list[str]:
        blocks = (block for block in blocks_of(page) if block.language == "bash")
        return [command.words for block in blocks for command in commands_of(block)]

    found, whole = shown(path), shown(TRANSLATIONS[path])
    if path.name == "README.zh.md":
        assert not [words for words in found if words not in whole]
    else:
        assert found == whole
