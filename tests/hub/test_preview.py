"""The local page: what it shows, and that it shows nothing that would not be published."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cbtqa.errors import IncompleteRunError
from cbtqa.hub.publish import Prepared, PreviewSettings, prepare_preview, preview_page
from tests.hub.runs import BASE, edit_rows, rows_of, write_scores


def test_the_page_shows_card_form_files_and_rows(ready: Prepared, run: Path) -> None:
    page = preview_page(ready.plan)
    for told in ("lab/cbt-qa", "qa/train-00000-of-00001.parquet", "申请访问", "12356", "<table>"):
        assert told in page
    assert rows_of(run)[0]["answer"][:40] in page
    assert page.count("<h1") == 1


def test_no_word_of_a_question_is_on_it(ready: Prepared, run: Path) -> None:
    page = preview_page(ready.plan)
    for row in rows_of(run):
        assert row["question"] not in page and row["description"][:14] not in page


def test_what_would_be_refused_is_told_and_no_row_is_shown(run: Path) -> None:
    stolen = rows_of(run)[2]["description"]
    edit_rows(run, lambda row: row.update(answer=row["answer"] + stolen))
    prepared = prepare_preview(PreviewSettings(run=run))
    page = preview_page(prepared.plan, prepared.findings)
    assert "Would be refused" in page and "repeats protected text" in page
    assert stolen[:20] not in page


def test_markup_in_answers_and_cards_is_shown_and_never_run(run: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("<script>alert(1)</script> [x](javascript:alert(2))", "utf-8")
    edit_rows(run, lambda row: row.update(answer="<img src=x onerror=alert(3)>" + row["answer"]))
    prepared = prepare_preview(PreviewSettings(run=run, notes=notes))
    page = preview_page(prepared.plan, prepared.findings)
    assert "<script" not in page and "<img" not in page
    assert not re.search(r'href="javascript:', page)
    assert "default-src 'none'" in page


def test_a_model_shows_its_scores(adapter: Path, run: Path, tmp_path: Path) -> None:
    scores = write_scores(run, tmp_path / "scores")
    prepared = prepare_preview(PreviewSettings(run=adapter, scores=(scores,)))
    page = preview_page(prepared.plan, prepared.findings)
    assert "model-index" in page and "chrF" in page and BASE in page


def test_a_page_without_a_suffix_gets_one_that_a_browser_opens(
    ready: Prepared, tmp_path: Path
) -> None:
    assert ready.write_preview(tmp_path / "prev") == tmp_path / "prev.html"
    assert ready.write_preview(tmp_path / "p.htm").read_text().startswith("<!doctype html>")


def test_an_unfinished_run_has_no_preview(run: Path) -> None:
    (run / "manifest.json").unlink()
    with pytest.raises(IncompleteRunError, match="did not finish"):
        prepare_preview(PreviewSettings(run=run))


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_renders_it(ready: Prepared, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium")
    page = ready.write_preview(tmp_path / "preview.html")
    picture = tmp_path / "preview.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,1200"]
    subprocess.run(
        [chromium, *words, f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert picture.stat().st_size > 20_000
