"""A run: what is opened, what a killed one left, what is said when it is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbtqa.llm.chat import Reply
from cbtqa.llm.journal import Entry, State
from cbtqa.llm.runs import open_run


@pytest.mark.parametrize(
    ("journal", "is_removed"), [("journal.sqlite", True), ("labels.journal.sqlite", False)]
)
def test_half_written_files_of_a_killed_run_are_removed_but_never_those_of_others(
    tmp_path: Path, journal: str, is_removed: bool
) -> None:
    own, other = tmp_path / ".labels.jsonl.x1.part", tmp_path / ".thesis.docx.x2.part"
    for path in (own, other):
        path.write_text("half")
    with open_run(tmp_path / journal, {}, None):
        assert not own.exists()
        assert other.exists() is not is_removed


def test_an_interrupt_outside_of_the_asking_says_what_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt, match="interrupted: 1 reply is kept"),
        open_run(tmp_path / "journal.sqlite", {}, None) as run,
    ):
        run.journal.record([Entry("一", 1, State.ACCEPTED, Reply("好"))])
        raise KeyboardInterrupt
