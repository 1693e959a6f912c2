"""The functions of `import cbtqa`: the examples of their docstrings run, and any form of text goes."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cbtqa
from cbtqa.dataset.settings import BuildSettings
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.metrics.scoring import ScoreSettings
from cbtqa.psyqa import bundled_sample_path
from tests.support.answers import good_answer
from tests.support.endpoint import ScriptedEndpoint, ok
from tests.support.python_docs import examples, verbs

REFERENCES = ["先照顾好自己，再慢慢来。", "可以试着把想法写下来。", "找信任的人聊一聊。"]
TUNED = ["先照顾好自己。", "试着把想法写下来。", "找人聊一聊。"]
BASE = ["你要坚强。", "别想太多。", "会好的。"]


@pytest.mark.parametrize(
    "example", [one for one in examples() if not one.needs], ids=lambda one: one.verb
)
def test_the_example_of_a_docstring_runs(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundled_sample_path(), "PsyQA_full.json")
    with ScriptedEndpoint(lambda seen: ok(good_answer(seen))) as server:
        code = example.code.replace('"vllm"', repr(server.url))
        exec(compile(code, f"example of {example.verb}", "exec"), {"cbtqa": cbtqa})


def test_the_face_names_every_verb_and_nothing_that_is_missing() -> None:
    assert set(verbs()) <= set(cbtqa.__all__) <= set(dir(cbtqa))
    assert all(getattr(cbtqa, name) is not None for name in cbtqa.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scoer'"):
        cbtqa.scoer  # type: ignore[attr-defined] # noqa: B018


def test_importing_the_package_loads_no_room() -> None:
    code = "import sys, cbtqa; print([name for name in sys.modules if name.startswith('cbtqa.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _value(scored: Any, system: str = "system") -> float:
    (row,) = [row for row in scored.to_rows() if row["system"] == system]
    return float(row["value"])


def test_every_form_of_texts_gives_the_same_score(tmp_path: Path) -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    rows = [{"id": f"q{n}", "prediction": text} for n, text in enumerate(TUNED)]
    right = [{"id": f"q{n}", "reference": text} for n, text in enumerate(REFERENCES)]
    file = tmp_path / "tuned.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    how = {"metrics": "chrf2", "bootstrap": 0, "anchors": False}
    expected = _value(cbtqa.score(TUNED, REFERENCES, **how))
    for given in (rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows)):
        assert _value(cbtqa.score(given, pandas.DataFrame(right), **how)) == expected
    assert _value(cbtqa.score(str(file), right, **how), "tuned") == expected
    assert _value(cbtqa.score([file], right, **how), "tuned") == expected
    assert _value(cbtqa.score({"mine": file}, right, **how), "mine") == expected
    assert _value(cbtqa.score({"a": BASE, "b": TUNED}, REFERENCES, **how), "b") == expected


def test_a_score_goes_straight_into_a_comparison_and_alike_from_its_folder(tmp_path: Path) -> None:
    systems = {"base": BASE, "tuned": TUNED}
    how: dict[str, Any] = {"metrics": ["chrf2", "bleu_zh"], "bootstrap": 100}
    scores = cbtqa.score(systems, references=REFERENCES, out=tmp_path / "scores", **how)
    direct = cbtqa.compare(scores, baseline="base", trials=100)
    read = cbtqa.compare(tmp_path / "scores", baseline="base", trials=100)
    assert direct.pairs == read.pairs
    assert [one.system for one in direct.pairs] == ["tuned", "tuned"], "no anchors unless asked for"
    assert list(scores.to_pandas()["system"].unique())[:2] == ["base", "tuned"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cbtqa.build_dataset(limt=3), ConfigError, "'limt', did you mean 'limit'"),
        (lambda: cbtqa.build_dataset(limit=0), ConfigError, "--limit"),
        (lambda: cbtqa.build_dataset(BuildSettings(), limit=3), UsageError, "not both"),
        (lambda: cbtqa.build_dataset(ScoreSettings()), UsageError, "expected BuildSettings"),
        (lambda: cbtqa.score({"a": []}, REFERENCES), DataError, "no texts"),
        (lambda: cbtqa.score(TUNED[:2], REFERENCES), DataError, "2 predictions and 3 references"),
    ],
)
def test_what_does_not_fit_is_reported(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_settings_object_stands_for_the_keywords(tmp_path: Path) -> None:
    data = cbtqa.build_dataset(BuildSettings(limit=12, out=tmp_path / "d"))
    told = data.manifest.settings
    assert (told["limit"].origin, told["seed"].origin) == ("settings object", "default")
    assert data.to_pandas().shape[0] == data.manifest.counts["n_out"]


def test_an_endpoint_is_asked_from_inside_a_running_event_loop(tmp_path: Path) -> None:
    seen: list[int] = []

    async def notebook() -> cbtqa.DatasetFolder:
        return cbtqa.build_dataset(
            limit=4,
            endpoint=server.url,
            model="m",
            out=tmp_path / "d",
            progress=lambda progress: seen.append(progress.n_done),
        )

    with ScriptedEndpoint(lambda one: ok(good_answer(one))) as server:
        data = asyncio.run(notebook())
    assert data.manifest.counts["n_out"] == 4 and seen[-1] == 4


def test_results_show_as_a_small_escaped_table() -> None:
    shown = cbtqa.label(["我什么都做不好<script>"] * 30)._repr_html_()
    assert shown.count("<tr>") == 21 and "20 of 30 rows" in shown
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    found = cbtqa.screen("我不想活了")
    assert (
        found.to_dict()["risk"] == found.risk and found.to_rows()[0]["rule"] in found._repr_html_()
    )


def test_labels_are_given_and_also_written_where_asked(tmp_path: Path) -> None:
    texts = ["我什么都做不好。", "今天下雨了。"]
    given = cbtqa.label(texts)
    assert [bool(row.labels) for row in given.rows] == [True, False]
    for name in ("labels.csv", "labels.parquet"):
        assert cbtqa.label(texts, out=tmp_path / name) == given
        assert (tmp_path / name).exists()


def test_lists_without_ids_pair_by_order_with_a_file_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "ref.txt"
    path.write_text("先照顾好自己。\n可以写下来。\n", encoding="utf-8")
    given = ["你要坚强。", "可以写下来。"]
    scored = cbtqa.score(given, references=path, metrics="chrf2", bootstrap=0)
    assert scored.report.systems[0].n_identical == 1
    with pytest.raises(DataError, match="1 rows, and ref"):
        cbtqa.score(given[:1], references=path, metrics="chrf2", bootstrap=0)


def test_lists_of_references_are_several_to_each_prediction() -> None:
    from sacrebleu.metrics.chrf import CHRF

    given, references = (
        ["你要坚强。", "写下来。"],
        [["先照顾好自己。", "要坚强些。"], ["可以写下来。"]],
    )
    scored = cbtqa.score(given, references=references, metrics="chrf", bootstrap=0)
    value = next(one.value for one in scored.report.scores if one.system == "system")
    theirs = CHRF().corpus_score(given, [["先照顾好自己。", "可以写下来。"], ["要坚强些。", None]])
    assert value == pytest.approx(theirs.score, rel=1e-12)
    with pytest.raises(DataError, match="1 predictions and 2 references"):
        cbtqa.score(given[:1], references=references)
    with pytest.raises(DataError, match="differ in kind"):
        cbtqa.score(given, references=[["好。"], [3]])


def test_an_experiment_and_its_report_are_functions_beside_their_rooms(tmp_path: Path) -> None:
    import cbtqa.report.table  # binds the room over the function
    import cbtqa.reproduce.pipeline

    done = cbtqa.reproduce("cbt-llm", only=["build"], smoke=True, out=tmp_path / "run")
    assert [(one.stage, one.state) for one in done.stages] == [("build", "done")]
    assert done.report is None and "done" in done._repr_html_()
    page = cbtqa.report(done, out=tmp_path / "page")
    assert [path.name for path in page.files] == ["report.html"]
    ours = page.to_pandas("table-1").set_index("column 1")["ours"]
    built = cbtqa.DatasetFolder.open(tmp_path / "run/dataset")
    assert ours["entries"] == built.manifest.counts["n_out"]
    assert list(page.to_pandas()["table"])[0] == "table-1" and "<table>" in page._repr_html_()
    planned = cbtqa.reproduce("cbt-llm", smoke=True, dry_run=True, out=tmp_path / "run")
    states = planned.to_pandas().set_index("stage")["state"]
    assert states["build"] == "done" and states["score"] == "waiting"
    with pytest.raises(UsageError, match="no stage 'scor'"):
        cbtqa.reproduce("cbt-llm", from_="scor", out=tmp_path / "run")
    with pytest.raises(DataError, match="no experiment here"):
        cbtqa.report(tmp_path / "page")
