"""`cbtqa distortions`, through the program's own error frame."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from cbtqa.cli import main as program
from cbtqa.cli.distortions import app as distortions_app
from cbtqa.files import read_rows
from tests.distortions.texts import invented_gold
from tests.support.endpoint import ScriptedEndpoint, ok


@pytest.fixture
def run(monkeypatch):
    app = typer.Typer()
    app.callback()(lambda: None)
    app.add_typer(distortions_app, name="distortions")
    monkeypatch.setattr(program, "app", app)
    return lambda *words: program._run(["distortions", *map(str, words)], False)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    rows = [
        {"id": "a", "question": "我就是个废物", "description": "天气不错。这辈子都不会好了！"},
        {"id": "b", "question": "请问怎么早睡", "description": ""},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


@pytest.fixture(scope="module")
def gold(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gold") / "gold.jsonl"
    rows = (
        {"id": item.id, "text": item.text, "labels": sorted(item.types)}
        for item in invented_gold(160).items
    )
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def test_label_gives_documents_and_sentences_with_evidence(run, questions, capsys) -> None:
    assert run("label", questions, "--level", "both", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_texts"], summary["n_rows"], summary["n_rejected"]) == (2, 6, 0)
    rows = [json.loads(line) for line in Path(summary["out"]).read_text().splitlines()]
    assert [(row["id"], row["level"], row["part"]) for row in rows[:4]] == [
        ("a", "document", 0),
        ("a", "sentence", 1),
        ("a", "sentence", 2),
        ("a", "sentence", 3),
    ]
    assert [label["id"] for label in rows[1]["labels"]] == ["labeling"]
    assert rows[2]["labels"] == []
    assert rows[3]["labels"][0]["evidence"] == "这辈子都不会好了"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_label_writes_tables(run, questions, tmp_path, suffix, capsys) -> None:
    out = tmp_path / f"labels{suffix}"
    assert run("label", questions, "--out", out) == 0
    if suffix == ".parquet":
        rows = pq.read_table(out).to_pylist()
        assert {label["id"] for label in rows[0]["labels"]} == {
            "labeling",
            "jumping_to_conclusions",
        }
    else:
        with out.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ","))
        assert rows[0]["types"].startswith("labeling") and rows[1]["types"] == ""
        assert json.loads(rows[0]["labels"])[0]["labeller"] == "patterns"


def test_a_model_is_trained_measured_and_used_in_a_vote(run, gold, tmp_path, capsys) -> None:
    model = tmp_path / "model"
    words = ["--taxonomy", "socialcd-12"]
    assert run("train", gold, "--out", model, "--folds", "2", *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_folds"] == 2 and report["micro"]["f1"] > 0.9
    card = (model / "README.md").read_text()
    assert "2-fold cross-validation" in card
    assert run("evaluate", gold, "--labeller", model, "--labeller", "patterns", *words) == 0
    shown = capsys.readouterr().out
    assert "trained:linear" in shown and "Table 3" in shown and "McNemar" in shown
    out = tmp_path / "v.jsonl"
    vote = ["--labeller", "patterns", "--labeller", model, "--vote", "all"]
    assert run("label", gold, "--out", out, *vote, *words, "--json") == 0
    labelled = [json.loads(line) for line in out.read_text().splitlines()]
    voters = {label["labeller"] for row in labelled for label in row["labels"]}
    assert voters == {"vote"}
    assert run("train", gold, "--out", model, *words) == 3, "an earlier model is not replaced"


def test_a_model_can_be_trained_to_give_every_text_a_type(run, gold, tmp_path) -> None:
    model = tmp_path / "model"
    words = ["--taxonomy", "socialcd-12", "--folds", "0", "--at-least-one", "yes"]
    assert run("train", gold, "--out", model, *words) == 0
    assert "every text is given at least one" in (model / "README.md").read_text()


def test_a_model_for_another_taxonomy_is_refused(run, gold, questions, tmp_path, capsys) -> None:
    model = tmp_path / "model"
    assert run("train", gold, "--out", model, "--folds", "0", "--taxonomy", "socialcd-12") == 0
    assert run("label", questions, "--labeller", model, "--taxonomy", "c2d2-7") == 4
    shown = capsys.readouterr().err
    assert "trained for the taxonomy socialcd-12, wanted c2d2-7" in shown
    assert "model.json:taxonomy" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1, "question": " "}', "q2.jsonl:1:question: the text is empty"),
        ('{"id": 1, "body": "x"}', "q2.jsonl:1: no column with text"),
        ('{"id": 1, "text": "x"}\n{"id": 1, "text": "y"}', "q2.jsonl:2: the id '1' occurs twice"),
        ("{", "q2.jsonl:1: not JSON"),
    ],
)
def test_bad_input_exits_with_4_and_says_where(run, tmp_path, content, message, capsys) -> None:
    path = tmp_path / "q2.jsonl"
    path.write_text(content)
    assert run("label", path) == 4
    assert message in capsys.readouterr().err


def test_a_label_outside_the_taxonomy_and_a_wrong_encoding_exit_with_4(
    run, tmp_path, capsys
) -> None:
    path = tmp_path / "g.csv"
    path.write_text("text,labels\n甲,懒惰\n")
    assert run("evaluate", path) == 4
    assert "g.csv:2:labels: '懒惰' is not a type" in capsys.readouterr().err
    path.write_bytes("text,labels\n甲,无\n".encode("gbk"))
    assert run("train", path) == 4
    assert "--encoding gb18030" in capsys.readouterr().err


def test_a_language_model_labels_through_the_journal(run, questions, tmp_path, capsys) -> None:
    label = {"id": "labeling", "evidence": "我就是个废物", "confidence": 0.8}
    good = ok(json.dumps({"labels": [label]}, ensure_ascii=False))
    unknown = ok('{"labels": [{"id": "laziness", "evidence": "早睡", "confidence": 1}]}')
    out = tmp_path / "l.jsonl"
    with ScriptedEndpoint(lambda seen: unknown if "早睡" in seen.user_text else good) as server:
        words = ["--labeller", "llm", "--endpoint", server.url, "--model", "m", "--out", out]
        assert run("label", questions, *words, "--json") == 0
        first = json.loads(capsys.readouterr().out)
        n_asked = len(server.requests)
        assert run("label", questions, *words) == 2, "it may have been edited since"
        assert run("label", questions, *words, "--overwrite", "--json") == 0
        assert len(server.requests) == n_asked, "nothing is paid twice"
    assert (first["n_rows"], first["rejected"]) == (1, {"bad_label": 1})
    rejected = json.loads(Path(first["rejects"]).read_text())
    assert first["rejects"] == f"{out}.rejects.jsonl"
    assert (rejected["item_id"], rejected["reason"]) == ("b/0", "bad_label")
    assert "laziness" in rejected["raw"], "the model's own words are kept whole"
    row = json.loads(out.read_text())
    assert row["labels"][0]["labeller"] == "llm:m"


def _answering(seen) -> dict:
    """A model that finds one type, and hopelessness, by the words."""
    kinds = {"废物": "labeling", "不会好": "jumping_to_conclusions", "没意思": "hopelessness"}
    entries = []
    for line in seen.user_text.splitlines():
        number, _, text = line.partition("] ")
        if number.startswith("["):
            entries += [
                {"sentence": int(number[1:]), "id": kind, "evidence": word, "confidence": 0.8}
                for word, kind in kinds.items()
                if word in text
            ]
    return ok(json.dumps({"labels": entries}, ensure_ascii=False))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_a_model_is_asked_once_about_a_document_and_all_its_sentences(
    run, questions, tmp_path, suffix, capsys
) -> None:
    out = tmp_path / f"l.{suffix}"
    with questions.open("a") as more:
        row = {"id": "c", "question": "活着没意思。", "description": "请问怎么办？"}
        more.write("\n" + json.dumps(row, ensure_ascii=False))
    with ScriptedEndpoint(_answering) as server:
        words = ["--labeller", "llm", "--endpoint", server.url, "--model", "m", "--out", out]
        assert run("label", questions, *words, "--level", "both", "--json") == 0
        assert len(server.requests) == 3
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert (summary["n_rows"], summary["n_hopeless"]) == (9, 2), "a document and a sentence of it"
    rows = [row for _, row in read_rows(out)]
    got = {}
    for row in rows:
        labels = json.loads(row["labels"]) if isinstance(row["labels"], str) else row["labels"]
        place = row["id"], int(row["part"])
        got[place] = [label["id"] for label in labels], row["hopelessness"] or None
    assert got["a", 0] == (["labeling", "jumping_to_conclusions"], None)
    assert got["a", 1] == (["labeling"], None) and got["a", 2] == ([], None)
    assert got["a", 3] == (["jumping_to_conclusions"], None)
    assert got["c", 0] == got["c", 1] == ([], "没意思") and got["c", 2] == ([], None)


def test_a_document_that_failed_fails_with_every_sentence_of_it(
    run, questions, tmp_path, capsys
) -> None:
    bad = ok('{"labels": [{"sentence": 1, "id": "laziness", "evidence": "早睡", "confidence": 1}]}')
    out = tmp_path / "l.jsonl"
    with ScriptedEndpoint(lambda seen: bad if "早睡" in seen.user_text else _answering(seen)) as s:
        words = ["--labeller", "llm", "--endpoint", s.url, "--model", "m", "--out", out]
        assert run("label", questions, *words, "--level", "both", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_rows"], summary["n_rejected"]) == (4, 2)
    rejected = [json.loads(line) for line in Path(summary["rejects"]).read_text().splitlines()]
    assert [one["item_id"] for one in rejected] == ["b/0", "b/1"]


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "gold.csv"
    rows = ["id,text,labels", "a,我就是个废物,1", "a,活着真没意思,1", "b,今天下雨了,0"]
    path.write_text("\n".join([*rows, "b,我这辈子都不会好了,1", "c,大家都看不起我,1"]))
    return path


def test_a_model_and_a_vote_with_it_are_measured_with_what_they_cost(
    run, sentences, tmp_path, capsys
) -> None:
    out = tmp_path / "e.json"
    with ScriptedEndpoint(_answering) as server:
        asked = ["--endpoint", server.url, "--model", "m", "--price-in", 1000, "--price-out", 1000]
        words = [sentences, "--taxonomy", "binary", "--labeller", "patterns", "--labeller", "llm"]
        words += ["--labeller", "vote", "--vote", "any", *asked, "--out", out]
        assert run("evaluate", *words) == 0
        assert len(server.requests) == 3, "the sentences of a document together"
        assert run("evaluate", *words, "--overwrite", "--convention", "broad") == 3
        assert "name another --out" in capsys.readouterr().err
        again = ["--overwrite", "--json", "--min-confidence", "0.9"]
        assert run("evaluate", *words, *again) == 0
        assert len(server.requests) == 3, "another threshold costs nothing"
    report = json.loads(capsys.readouterr().out)
    assert report["systems"]["llm:m"]["binary"]["n_given"] == 0, "all are less sure"
    assert report["asked"]["cost"]["amount"] > 0 and report["asked"]["n_requests"] == 3


@pytest.mark.parametrize(("convention", "recall"), [("strict", 0.5), ("broad", 0.75)])
def test_hopelessness_counts_as_distorted_in_the_broad_convention_alone(
    run, sentences, tmp_path, capsys, convention, recall
) -> None:
    with ScriptedEndpoint(_answering) as server:
        asked = ["--labeller", "llm", "--endpoint", server.url, "--model", "m"]
        asked += ["--convention", convention, "--out", tmp_path / "e.json", "--json"]
        words = [sentences, "--taxonomy", "binary", "--labeller", "patterns", "--labeller", "vote"]
        assert run("evaluate", *words, "--vote", "any", *asked) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["systems"]["llm:m"]["binary"]["recall"] == recall
    assert report["systems"]["vote:any"]["binary"]["recall"] >= recall + 0.25
    assert report["asked"]["convention"] == convention


def test_labellers_that_cannot_be_measured_are_refused_with_a_hint(
    run, sentences, tmp_path, capsys
) -> None:
    binary = [sentences, "--taxonomy", "binary"]
    asked = ["--labeller", "llm", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]
    assert run("evaluate", *binary, *asked) == 2
    assert "--out" in capsys.readouterr().err
    assert run("evaluate", *binary, "--labeller", "patterns", "--labeller", "vote") == 2
    assert "two or more" in capsys.readouterr().err
    assert run("evaluate", *binary, "--labeller", "patterns", "--labeller", "patterns") == 2
    assert "--name" in capsys.readouterr().err
    assert run("label", sentences, "--labeller", "patterns", "--labeller", "vote") == 2
    assert "--vote any" in capsys.readouterr().err


def test_many_texts_are_labelled_without_being_held(run, tmp_path, capsys) -> None:
    path = tmp_path / "many.jsonl"
    lines = [json.dumps({"id": n, "text": f"{n} 我就是个废物" + "啊" * 900}) for n in range(5_000)]
    path.write_text("\n".join(lines))
    size = path.stat().st_size
    del lines
    tracemalloc.start()
    try:
        assert run("label", path, "--json") == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_rows"], summary["types"], summary["rejects"]) == (
        5_000,
        {"labeling": 5_000},
        None,
    )
    assert peak < size, "a chunk at a time, not the file"
    assert not Path(f"{summary['out']}.rejects.jsonl").exists()


def test_texts_do_not_leave_for_a_hosted_model_without_acknowledgement(
    run, questions, monkeypatch
) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "invented")
    words = ["--labeller", "llm", "--endpoint", "deepseek", "--model", "m"]
    assert run("label", questions, *words) == 7


def test_agree_tells_alpha_for_each_type(run, tmp_path, capsys) -> None:
    for name, kinds in (("anna", ["labeling", "", "should"]), ("ben", ["labeling", "", ""])):
        rows = [f"{n},文{n},{kind}" for n, kind in enumerate(kinds)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,text,labels", *rows]))
    assert run("agree", tmp_path / "anna.csv", tmp_path / "ben.csv", "--json") == 0
    agreement = json.loads(capsys.readouterr().out)
    assert agreement["types"]["labeling"]["value"] == 1
    assert agreement["types"]["should"]["value"] == pytest.approx(0)
    assert run("agree", tmp_path / "anna.csv") == 2


def test_annotate_makes_a_study_of_a_stratified_sample(run, gold, tmp_path, capsys) -> None:
    out = tmp_path / "study"
    assert run("annotate", gold, "--n", "30", "--out", out, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["n"] == 30
    assert sum(entry["drawn"] for entry in made["strata"].values()) == 30
    assert all(entry["drawn"] >= 1 for entry in made["strata"].values())
    assert len(made["strata"]) > 2
    assert made["sheets"] == 2


def test_taxonomies_are_listed_and_explained(run, capsys) -> None:
    assert run("taxonomies") == 0
    assert "cbt-llm-5" in capsys.readouterr().out
    assert run("taxonomies", "burns-10", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["types"]) == 10
    assert run("taxonomies", "beck") == 4


def test_one_text_and_standard_input_are_labelled_and_shown_and_kept_nowhere(
    run, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "所有人都看不起我，我永远都不会成功。"
    assert run("label", text, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["texts"]
    assert row["text"] == text and row["labels"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n今天天气很好。\n"))
    assert run("label", "-") == 0
    printed = capsys.readouterr()
    assert row["labels"][0]["id"] in printed.out and "1 of 2 rows" in printed.err
    assert run("label", "今天很好。明天也好。", "--level", "both") == 0
    assert "3 of 3 rows" in capsys.readouterr().err, "a document and its two sentences"
    assert list(tmp_path.iterdir()) == []
    asked = ("--labeller", "llm", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m")
    assert run("label", text, *asked) == 2
    assert "--out" in capsys.readouterr().err
