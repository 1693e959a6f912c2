"""The report of an experiment: our tables beside the paper's, as one page, Markdown and JSON.

    write_report(ReportSettings(runs=(Path("runs/cbt-llm"),)))

What a run has not come to is said in its place. Nothing in it depends on when or how often the
run was interrupted: no times, no costs, no paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

import cbtqa
from cbtqa.dataset.stats import DatasetStatistics, folder_statistics
from cbtqa.dataset_folder import DatasetFolder
from cbtqa.distortions.taxonomy import shipped_concepts
from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_json, read_rows, write_json, write_text
from cbtqa.judging.report import JudgeReport, report_tables
from cbtqa.judging.run import REPORT_NAME
from cbtqa.manifest import MANIFEST_NAME, package_versions, read_manifest
from cbtqa.metrics.comparison import COMPARISON_NAME, Comparison, pair_tables, tests_made
from cbtqa.metrics.score_folder import SCORES_NAME
from cbtqa.metrics.scoring import ScoreReport
from cbtqa.metrics.tables import beside_paper, label_of, score_table
from cbtqa.papers import PaperTable, paper_table, papers, source_of
from cbtqa.ratings.results import Score, StudyReport
from cbtqa.records import STEP_NAMES
from cbtqa.report.charts import Interval, Line, interval_chart, line_chart
from cbtqa.report.page import Head, Lang, Phrase, load_wording, render_page, same
from cbtqa.report.table import AnyColumn, Cell, Column, Estimate, Table, latex_text
from cbtqa.report.words import count, digits, estimate
from cbtqa.reproduce.pipeline import EXPERIMENT_NAME, Experiment, versions_of
from cbtqa.reproduce.stages import ReportSettings, n_ratings
from cbtqa.safety.notices import help_text, required_notices
from cbtqa.simulation.analysis.group_tables import attributes_table, wins_table
from cbtqa.simulation.analysis.results import AnalysisReport
from cbtqa.simulation.analysis.run import JSON_NAME

N_EXAMPLES = 30
CHARTED = ("bleu_jieba", "meteor_jieba", "chrf2", "bertscore")
"""Metrics of Table 4 that get a chart of intervals."""


@dataclass(frozen=True)
class Example:
    """One question, the dataset's answer by its steps, and each system's."""

    question: str
    description: str
    steps: tuple[tuple[str, str], ...]
    """Step and its text; one without a name where the answer has no steps."""
    evidence: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    """System and its answer."""
    risk: str
    types: tuple[str, ...]
    """Ids of the distortions."""

    @property
    def missing(self) -> list[str]:
        """Steps that the dataset's answer does not have."""
        return [name for name in STEP_NAMES if name not in dict(self.steps)]


@dataclass(frozen=True)
class Part:
    """One section: what it says, its tables, its charts."""

    anchor: str
    title: Phrase
    lede: Phrase = field(default_factory=lambda: same(""))
    tables: tuple[Table, ...] = ()
    charts: tuple[tuple[Markup, Phrase], ...] = ()
    examples: tuple[Example, ...] = ()
    notes: tuple[str | Phrase, ...] = ()

    def notes_in(self, lang: Lang) -> list[str]:
        """The notes in one language, where they have both."""
        return [one if isinstance(one, str) else one.first(lang) for one in self.notes]

    def choices(self, name: Literal["risk", "types", "missing"]) -> list[str]:
        """What the examples have of it, in order; `-` for those that have none."""
        values = [getattr(one, name) for one in self.examples]
        lists = [[one] if isinstance(one, str) else one or ["-"] for one in values]
        return sorted({value for found in lists for value in found})


@dataclass(frozen=True)
class Run:
    """One experiment's folder, as far as it has come."""

    root: Path
    experiment: Experiment

    @classmethod
    def open(cls, root: Path) -> Run:
        """The folder of an experiment; raises DataError for any other."""
        path = root / EXPERIMENT_NAME
        if not path.is_file():
            hint = "cbtqa reproduce RECIPE --out FOLDER makes one"
            raise DataError("no experiment here", where=str(root), hint=hint)
        return cls(root, parse_record(Experiment, read_json(path), str(path)))

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def systems(self) -> list[str]:
        return list(self.experiment.recipe.backbones)

    def read(self, name: str, model: type[Any]) -> Any:
        """A record of the folder; None where the run has not come to it."""
        path = self.root / name
        return parse_record(model, read_json(path), str(path)) if path.is_file() else None

    def statistics(self) -> DatasetStatistics | None:
        folder = self.root / "dataset"
        if not (folder / MANIFEST_NAME).is_file():
            return None
        return folder_statistics(DatasetFolder.open(folder))

    def scores(self) -> ScoreReport | None:
        found: ScoreReport | None = self.read(f"scores/{SCORES_NAME}", ScoreReport)
        return found


def write_report(settings: ReportSettings) -> list[Path]:
    """Writes `report.html`, `report.md`, `report.json` and `report.tex`, as asked for."""
    words, lang = load_wording(__package__, "wording.yaml"), settings.lang
    runs = [Run.open(root) for root in settings.runs]
    out = settings.out or settings.runs[0]
    parts = [part for run in runs for part in _parts(run, words, is_one=len(runs) == 1)]
    facts = [fact for run in runs for fact in _facts(run, words, is_one=len(runs) == 1)]
    written = []
    for name in dict.fromkeys(settings.format_):
        path = out / f"report.{'tex' if name == 'latex' else name}"
        if name == "html":
            write_text(path, _page(runs, parts, facts, words, lang))
        elif name == "md":
            write_text(path, _markdown(runs, parts, facts, words, lang))
        elif name == "latex":
            write_text(path, _latex(runs, parts, words, lang))
        else:
            write_json(path, _as_json(runs, parts, facts))
        written.append(path)
    return written


Fact = tuple[str, Phrase, Phrase]
"""A figure, what it is, and what stands beside it."""
Words = dict[str, Phrase]


# --- the first screen ----------------------------------------------------------------------------


def _facts(run: Run, words: Words, *, is_one: bool) -> Iterator[Fact]:
    name = "" if is_one else f"{run.name}: "
    statistics, scores = run.statistics(), run.scores()
    if statistics:
        theirs = paper_table("cbt-llm", "dataset").value("n_entries")
        context = words["facts.paper"].fill(name=name, n=count(theirs))
        yield count(statistics.n_entries), words["facts.entries"], context
    if scores and (best := _best(scores)):
        metric, system, shown = best
        printed = _printed_best(metric)
        label = words["facts.best"].fill(metric=label_of(metric), system=system)
        yield shown, label, Phrase(zh=name + printed.zh, en=name + printed.en)
    found: Comparison | None = run.read(f"compared/{COMPARISON_NAME}", Comparison)
    if found:
        tested = [one for one in found.pairs if one.p_adjusted is not None]
        differ = sum((one.p_adjusted or 0) < 0.05 for one in tested)
        if tested:
            yield f"{differ} / {len(tested)}", words["facts.differ"], same(name.removesuffix(": "))
    analysis: AnalysisReport | None = run.read(f"analysis/{JSON_NAME}", AnalysisReport)
    if analysis:
        yield count(analysis.n_sessions), words["facts.sessions"], same(name.removesuffix(": "))


def _best(scores: ScoreReport) -> tuple[str, str, str] | None:
    """The first metric of Table 4 that has values: metric, best system, value on its scale."""
    anchors = {one.system for one in scores.systems if one.is_anchor}
    for metric in paper_table("cbt-llm", "scores").columns:
        mine = [
            one
            for one in scores.scores
            if one.metric == metric and one.value is not None and one.system not in anchors
        ]
        if mine:
            best = max(mine, key=lambda one: one.value or 0)
            scale = 100 if best.unit == "0-100" else 1  # the paper's figures are from 0 to 1
            value, low, high = (end and end / scale for end in (best.value, best.low, best.high))
            return metric, best.system, estimate(value, low, high, digits(4))
    return None


def _printed_best(metric: str) -> Phrase:
    table = paper_table("cbt-llm", "scores")
    known = {row: cell for row in table.rows if (cell := table.rows[row][metric])}
    if not known:
        source = source_of("cbt-llm", "scores")
        return Phrase(zh=f"{source}：我们不知道", en=f"{source}: not known to us")
    row = max(known, key=lambda one: known[one].value)
    return same(f"{source_of('cbt-llm', 'scores')}: {known[row].printed} ({row})")


# --- the sections --------------------------------------------------------------------------------


def _parts(run: Run, words: Words, *, is_one: bool) -> Iterator[Part]:
    sections = [_table_1, _table_3, _table_4, _compared, _table_5, _judged]
    if run.experiment.recipe.kind == "sessions":
        sections = [_study]
    for section in (*sections, _losses, _rejects, _examples, _provenance):
        for part in section(run, words):
            if is_one:
                yield part
                continue
            title = Phrase(zh=f"{run.name}：{part.title.zh}", en=f"{run.name}: {part.title.en}")
            parts = {**vars(part), "title": title, "anchor": f"{run.name}-{part.anchor}"}
            yield Part(**parts)


def _table_1(run: Run, words: Words) -> Iterator[Part]:
    found, paper = run.statistics(), paper_table("cbt-llm", "dataset")
    labels = {one.id: one.share_of_distorted for one in found.labels} if found else {}
    rows: list[tuple[Cell, ...]] = [
        (name, getattr(found, row, None), _printed(paper, row))
        for name, row in (
            (words["table1.entries"], "n_entries"),
            (words["table1.labelled"], "n_distorted"),
        )
    ]
    shares = {"share_distorted": found.share_distorted if found else None}
    shares |= {row: labels.get(row.partition(" ")[2]) for row in paper.rows if "share_of" in row}
    for row, value in shares.items():
        name = row.removeprefix("share_of ") if " " in row else words["table1.share"]
        rows.append((name, None if value is None else digits(3)(value), _printed(paper, row)))
    for column in ("question", "description", "answer"):
        length = found.lengths.get(column) if found else None
        mean = digits(1)(length.mean) if length else None
        printed = _printed(paper, f"length_of {column}")
        rows.append((words["table1.length"].fill(column=column), mean, printed))
    table = Table(["", words["ours"], words["paper"]], rows)
    yield Part("table-1", words["table1.title"], same(paper.note), (table,))


def _printed(table: PaperTable, row: str, column: str = "value") -> str | Phrase:
    cell = table.rows[row][column]
    return cell.printed if cell else Phrase(zh="我们不知道", en="not known to us")


def _table_3(run: Run, words: Words) -> Iterator[Part]:
    yield Part(
        "table-3",
        words["table3.title"],
        words["table3.ours"],
        (_paper_rows(paper_table("cbt-llm", "distortions"), words),),
    )


def _paper_rows(table: PaperTable, words: Words) -> Table:
    rows = [
        (row, *(_printed(table, row, column) for column in table.columns)) for row in table.rows
    ]
    return Table(["", *table.columns.values()], rows, words["printed"].fill(name=table.name))


def _table_4(run: Run, words: Words) -> Iterator[Part]:
    scores = run.scores()
    if scores is None:
        tables: tuple[Table, ...] = (_paper_rows(paper_table("cbt-llm", "scores"), words),)
        yield Part("table-4", words["table4.title"], words["table4.missing"], tables)
        return
    anchors = [one.system for one in scores.systems if one.is_anchor]
    charts = []
    for metric in CHARTED:
        mine = [one for one in scores.scores if one.metric == metric]
        if any(one.value is not None for one in mine):
            rows = [
                Interval(one.system, one.value, one.low, one.high, one.unscored_reason or "")
                for one in mine
            ]
            title = f"{label_of(metric)} ({mine[0].unit})"
            chart = interval_chart(rows, title=title, description=title)
            charts.append((chart, same(title)))
    yield Part(
        "table-4",
        words["table4.title"],
        words["table4.lede"].fill(n=scores.n_references),
        (beside_paper(scores.scores, anchors), score_table(scores.scores)),
        tuple(charts),
        notes=(*scores.warnings, paper_table("cbt-llm", "scores").note),
    )


def _compared(run: Run, words: Words) -> Iterator[Part]:
    found: Comparison | None = run.read(f"compared/{COMPARISON_NAME}", Comparison)
    if found is not None:
        notes = (tests_made(found), *found.warnings)
        tables = tuple(pair_tables(found))
        yield Part("compared", words["compared.title"], tables=tables, notes=notes)


def _table_5(run: Run, words: Words) -> Iterator[Part]:
    study, printed = run.root / "rate" / "study", paper_table("cbt-llm", "ratings")
    tables = [_paper_rows(printed, words)]
    found: StudyReport | None = run.read("rate/study/report/report.json", StudyReport)
    if found is not None:
        means = {(one.system, one.criterion): one for one in found.scores}
        rows: list[tuple[Cell, ...]] = [
            (name, *(_mean(means.get((name, one))) for one in found.criteria))
            for name in found.systems
        ]
        tables.insert(0, Table(["", *found.criteria], rows, words["ours"]))
        lede = words["table5.blind"] if found.is_blind else same("")
    elif study.is_dir():
        lede = words["table5.waiting"].fill(n=n_ratings(study))
    else:
        lede = words["table5.missing"]
    yield Part("table-5", words["table5.title"], lede, tuple(tables))


def _mean(score: Score | None) -> Estimate:
    if score is None:
        return Estimate(None)
    return Estimate(score.mean, score.low, score.high, score.reason)


def _judged(run: Run, words: Words) -> Iterator[Part]:
    found: JudgeReport | None = run.read(f"judged/{REPORT_NAME}", JudgeReport)
    if found is not None:
        tables = tuple(report_tables(found))
        # ratings of an earlier cbtqa have their alarms in English alone
        both = zip(found.alarms_zh or found.alarms, found.alarms, strict=True)
        notes = tuple(Phrase(zh=zh, en=en) for zh, en in both)
        yield Part("judged", words["judged.title"], words["judged.lede"], tables, notes=notes)


def _study(run: Run, words: Words) -> Iterator[Part]:
    """The arms of a study of sessions, and those that the paper prints."""
    found: AnalysisReport | None = run.read(f"analysis/{JSON_NAME}", AnalysisReport)
    tables: list[Table] = []
    for result in found.instruments if found else ():
        for outcome in result.outcomes:
            rows = [
                (one.arm, one.n, Estimate(one.mean, one.low, one.high), one.sd)
                for one in outcome.arms
            ]
            heads: list[AnyColumn] = ["", "n", words["study.mean"], Column("SD", digits(2))]
            tables.append(Table(heads, rows, f"{result.title}: {outcome.name}"))
        if result.exploration is not None:
            tables.append(wins_table(result))
            tables += [attributes_table(result)] if result.exploration.groups else []
    name = run.experiment.recipe.paper
    for table in papers()[name].tables.values() if name else ():
        tables.append(_paper_rows(table, words))
    notes = tuple(alarm.text for alarm in found.alarms) if found else ()
    lede = same("") if found else words["study.missing"]
    yield Part("study", words["study.title"], lede, tuple(tables), notes=notes)


def _losses(run: Run, words: Words) -> Iterator[Part]:
    lines, rows = [], []
    for name in run.systems:
        path = run.root / "tuned" / name / "log.jsonl"
        if not (path.parent / MANIFEST_NAME).is_file():
            continue
        losses: dict[str, dict[float, float]] = {"loss": {}, "eval_loss": {}}
        for _, row in read_rows(path):
            for kind, found in losses.items():
                if row.get(kind) is not None:
                    found[float(row["step"])] = float(row[kind])
        train, held_out = (tuple(sorted(found.items())) for found in losses.values())
        lines.append(Line(name, train))
        ends = [train[0][1], train[-1][1]] if train else [None, None]
        best = min((loss for _, loss in held_out), default=None)
        rows.append((name, len(train), *ends, best))
    if lines:
        title = words["losses.title"]
        chart = line_chart(lines, title=title.en, description=title.en, x_name="step")
        heads = [words[f"losses.{name}"] for name in ("logged", "first", "last", "validation")]
        shown = [Column(head, digits(3)) for head in heads]
        yield Part("losses", title, tables=(Table(["", *shown], rows),), charts=((chart, title),))


def _rejects(run: Run, words: Words) -> Iterator[Part]:
    folders = {"dataset": run.root / "dataset"}
    folders |= {name: run.root / "answers" / name for name in run.systems}
    rows: list[tuple[Cell, ...]] = []
    for name, folder in folders.items():
        if (folder / MANIFEST_NAME).is_file():
            counts = read_manifest(folder).counts
            rows.append((name, words["rejects.all"], counts["n_in"], counts["n_out"]))
            rows += [("", reason, n, "") for reason, n in counts["rejected"].items()]
    if rows:
        names = ("reason", "in", "out")
        table = Table(["", *(words[f"rejects.{name}"] for name in names)], rows)
        yield Part("rejects", words["rejects.title"], words["rejects.lede"], (table,))


def _examples(run: Run, words: Words) -> Iterator[Part]:
    answers: dict[str, dict[str, str]] = {}
    for name in run.systems:
        path = run.root / "answers" / name / "answers.jsonl"
        if (path.parent / MANIFEST_NAME).is_file():
            answers[name] = {row["question_id"]: row["text"] for _, row in read_rows(path)}
    if not answers:
        return
    shared = set.union(*map(set, answers.values()))
    folder = DatasetFolder.open(run.root / "dataset")
    found: list[Example] = []
    for row in folder.rows("test"):
        if row["id"] in shared and len(found) < N_EXAMPLES:
            found.append(_example(row, answers))
    lede = words["examples.lede"].fill(n=len(found))
    yield Part("examples", words["examples.title"], lede, examples=tuple(found))


def _example(row: dict[str, Any], answers: dict[str, dict[str, str]]) -> Example:
    steps = tuple((name, str(row[name])) for name in STEP_NAMES if row.get(name))
    return Example(
        question=row["question"],
        description=row["description"] or "",
        steps=steps or (("", row["answer"]),),
        evidence=tuple(one["evidence"] for one in row["distortions"] or () if one["evidence"]),
        answers=tuple(
            (name, texts[row["id"]]) for name, texts in answers.items() if row["id"] in texts
        ),
        risk=row["risk"],
        types=tuple(dict.fromkeys(one["id"] for one in row["distortions"] or ())),
    )


def _provenance(run: Run, words: Words) -> Iterator[Part]:
    experiment = run.experiment
    values = [
        (f"{stage}.{name}", _text_of(one.value), one.mark or "", one.why)
        for stage, name, one in experiment.recipe.choices()
    ]
    heads = [words["made.setting"], words["made.value"], words["made.from"], words["made.why"]]
    now = experiment.cbtqa_version
    others = [(one, f"cbtqa {by}") for one, by in versions_of(run.root).items() if by != now]
    facts = [
        ("cbtqa", now),
        *others,
        (experiment.data, f"SHA-256 {experiment.data_sha256[:16]}"),
        *package_versions().items(),
    ]
    tables = (
        Table(heads, values, words["made.recipe"]),
        Table(["", ""], facts, words["made.with"]),
    )
    notes = experiment.recipe.deviations
    yield Part("made", words["made.title"], words["made.lede"], tables, notes=notes)


def _text_of(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- the three forms -----------------------------------------------------------------------------


def _title(runs: Sequence[Run], words: Words) -> Phrase:
    if len(runs) == 1:
        return runs[0].experiment.recipe.title
    names = ", ".join(run.name for run in runs)
    return words["several"].fill(names=names)


def _page(
    runs: Sequence[Run], parts: list[Part], facts: list[Fact], words: Words, lang: Lang
) -> str:
    return render_page(
        __package__,
        "experiment.html.j2",
        Head(
            title=_title(runs, words),
            kicker=words["kicker"],
            lede=words["lede"],
            footer=words["footer"].fill(version=cbtqa.__version__),
            lang=lang,
        ),
        parts=parts,
        facts=facts,
        words=words,
        is_smoke=any(run.experiment.is_smoke for run in runs),
        step_names=STEP_NAMES,
        concepts=shipped_concepts(),
        script_name="filter.js",
        help=Phrase(zh=help_text("zh"), en=help_text("en")),
        notices=[
            Phrase(zh=zh, en=en)
            for zh, en in zip(required_notices("zh"), required_notices("en"), strict=True)
        ],
    )


def _markdown(
    runs: Sequence[Run], parts: list[Part], facts: list[Fact], words: Words, lang: Lang
) -> str:
    lines = [f"# {_title(runs, words).first(lang)}\n"]
    if any(run.experiment.is_smoke for run in runs):
        lines.append(f"**{words['smoke.text'].first(lang)}**\n")
    for shown, what, beside in facts:
        lines.append(
            f"- {shown}: {what.first(lang)}"
            + (f" ({context})" if (context := beside.first(lang)) else "")
        )
    for part in parts:
        lines.append(f"\n## {part.title.first(lang)}\n")
        if part.lede.first(lang):
            lines.append(f"{part.lede.first(lang)}\n")
        for table in part.tables:
            title = table.title_in(lang)
            lines += [f"**{title}**\n"] if title else []
            lines.append(table.markdown(lang))
        lines += [f"- {note}" for note in part.notes_in(lang)]
    lines += ["", *(f"> {notice}" for notice in required_notices(lang)), ""]
    return "\n".join(lines)


LATEX_HEAD = r"""\documentclass{article}
\usepackage{iftex}
\ifpdftex\usepackage[T1]{fontenc}\usepackage{textcomp}\else\usepackage{fontspec}\fi
\usepackage{booktabs,adjustbox}
\usepackage[margin=2cm]{geometry}
"""
LATEX_CHINESE = r"\ifxetex\IfFileExists{xeCJK.sty}{\usepackage{xeCJK}}{}\fi % Chinese: use xelatex"


def _latex(runs: Sequence[Run], parts: list[Part], words: Words, lang: Lang) -> str:
    """The tables of every section as a document of booktabs tables; the examples are left out."""
    lines = [rf"\section*{{{latex_text(_title(runs, words).first(lang))}}}"]
    if any(run.experiment.is_smoke for run in runs):
        lines.append(rf"\textbf{{{latex_text(words['smoke.text'].first(lang))}}}")
    for part in parts:
        if not part.tables:
            continue
        lines.append(f"\n\\subsection*{{{latex_text(part.title.first(lang))}}}")
        if part.lede.first(lang):
            lines.append(latex_text(part.lede.first(lang)))
        for table in part.tables:
            title = latex_text(table.title_in(lang) or part.title.first(lang))
            lines.append(rf"\par\medskip\noindent {title}\par\smallskip\noindent")
            fitted = r"\begin{adjustbox}{max width=\linewidth,max totalheight=0.8\textheight}"
            lines.append(f"{fitted}\n{table.latex(lang)}\\end{{adjustbox}}")
    lines += [
        latex_text(note) + r"\par" for part in parts for note in part.notes_in(lang) if part.tables
    ]
    lines += [r"\medskip", *(latex_text(one) + r"\par" for one in required_notices(lang))]
    body = "\n".join(lines)
    chinese = sorted({one for one in body if "\u2e80" <= one <= "\uffef"})
    # pdflatex has no Chinese: it prints a question mark instead of stopping at each character
    marks = [rf"\ifpdftex\DeclareUnicodeCharacter{{{ord(one):04X}}}{{?}}\fi" for one in chinese]
    head = LATEX_HEAD + "".join(
        f"{line}\n" for line in ([LATEX_CHINESE, *marks] if chinese else [])
    )
    return f"{head}\\begin{{document}}\n{body}\n\\end{{document}}\n"


def _as_json(runs: Sequence[Run], parts: list[Part], facts: list[Fact]) -> dict[str, Any]:
    return {
        "runs": [
            {
                "name": run.name,
                "recipe": run.experiment.recipe.id,
                "smoke": run.experiment.is_smoke,
                "data_sha256": run.experiment.data_sha256,
            }
            for run in runs
        ],
        "facts": [
            {"value": value, "what": what.en, "beside": beside.en} for value, what, beside in facts
        ],
        "parts": {
            part.anchor: {
                "title": part.title.en,
                "tables": [{"title": t.title_in("en"), "rows": t.records()} for t in part.tables],
                "notes": part.notes_in("en"),
            }
            for part in parts
        },
    }
