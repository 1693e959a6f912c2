"""The forms of an experiment's report: page, Markdown, LaTeX and JSON.

    write_text(path, as_latex(Content(title, parts, facts, runs), words, "en"))

All show the same tables, to the same digit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

import cbtqa
from cbtqa.records import STEP_NAMES
from cbtqa.report.page import Head, Lang, Phrase, render_page, same, told
from cbtqa.report.table import Table, in_language, latex_text
from cbtqa.safety.notices import help_text, required_notices

Fact = tuple[str, Phrase, str | Phrase]
"""A figure, what it is, and what stands beside it."""
Words = dict[str, Phrase]


class Trait(NamedTuple):
    """Something by which examples are chosen from."""

    kind: str
    """`label`, `risk` or `missing`: a step."""
    value: str
    name: Phrase

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.value}"


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
    traits: tuple[Trait, ...]

    @property
    def is_in_danger(self) -> bool:
        """Whether the question shows a sign of danger: then help lines stand beside it."""
        return any(one.kind == "risk" and one.value != "none" for one in self.traits)


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
        return [told(one).first(lang) for one in self.notes]


@dataclass(frozen=True)
class Content:
    """What a report shows."""

    title: Phrase
    parts: Sequence[Part]
    facts: Sequence[Fact]
    runs: Sequence[Mapping[str, Any]]
    """Name, recipe, data and whether it is a smoke run, of each experiment."""

    @property
    def is_smoke(self) -> bool:
        return any(run["smoke"] for run in self.runs)


def as_page(content: Content, words: Words, lang: Lang) -> str:
    return render_page(
        __package__,
        "experiment.html.j2",
        Head(
            title=content.title,
            kicker=words["kicker"],
            lede=words["lede"],
            footer=words["footer"].fill(version=cbtqa.__version__),
            lang=lang,
            script="finder.js",
        ),
        parts=content.parts,
        facts=content.facts,
        words=words,
        is_smoke=content.is_smoke,
        step_names=STEP_NAMES,
        choices=_choices,
        help=Phrase(zh=help_text("zh"), en=help_text("en")),
        notices=[
            Phrase(zh=zh, en=en)
            for zh, en in zip(required_notices("zh"), required_notices("en"), strict=True)
        ],
    )


def as_markdown(content: Content, words: Words, lang: Lang) -> str:
    lines = [f"# {content.title.first(lang)}\n"]
    if content.is_smoke:
        lines.append(f"**{words['smoke.text'].first(lang)}**\n")
    for shown, what, beside in content.facts:
        context = in_language(beside, lang)
        lines.append(f"- {shown}: {what.first(lang)}" + (f" ({context})" if context else ""))
    for part in content.parts:
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


def as_latex(content: Content, words: Words, lang: Lang) -> str:
    """A document of all tables; a `table` of it can be copied into another one."""
    lines = _LATEX_PREAMBLE.splitlines()
    lines += [rf"\section*{{{latex_text(content.title.first(lang))}}}"]
    if content.is_smoke:
        lines.append(rf"\textbf{{{latex_text(words['smoke.text'].first(lang))}}}")
    for part in content.parts:
        for place, table in enumerate(part.tables, 1):
            title = ": ".join(filter(None, (part.title.first(lang), table.title_in(lang))))
            label = part.anchor + (f"-{place}" if place > 1 else "")
            lines += [r"\begin{table}[htbp]", r"\centering\small"]
            lines += [rf"\caption{{{latex_text(title)}}}\label{{tab:{label}}}"]
            lines += [r"\fitted{%", table.latex(lang) + "}", r"\end{table}", ""]
        if part.tables:
            lines += [*(latex_text(note) + r"\par" for note in part.notes_in(lang)), r"\clearpage"]
    lines += [latex_text(notice) + r"\par" for notice in required_notices(lang)]
    return "\n".join([*lines, r"\end{document}", ""])


_LATEX_PREAMBLE = r"""% For xelatex or lualatex; Chinese needs a font, such as Noto Sans CJK SC.
\documentclass{article}
\usepackage{fontspec}
\IfFontExistsTF{Noto Sans CJK SC}{\setmainfont{Noto Sans CJK SC}}{}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,graphicx}
% a table that is wider than the line is made smaller
\newcommand{\fitted}[1]{\sbox0{#1}\ifdim\wd0>\linewidth
  \resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}
\begin{document}"""


def as_json(content: Content) -> dict[str, Any]:
    return {
        "runs": list(content.runs),
        "facts": [
            {"value": value, "what": what.en, "beside": in_language(beside, "en")}
            for value, what, beside in content.facts
        ],
        "parts": {
            part.anchor: {
                "title": part.title.en,
                "tables": [{"title": t.title_in("en"), "rows": t.records()} for t in part.tables],
                "notes": part.notes_in("en"),
            }
            for part in content.parts
        },
    }


def _choices(examples: Sequence[Example]) -> dict[str, list[tuple[str, str, int]]]:
    """For each kind of trait its keys, names in both languages, and how many examples have them."""
    counts = Counter(trait for one in examples for trait in one.traits)
    found: dict[str, list[tuple[str, str, int]]] = {}
    for trait, n in counts.most_common():
        shown = " ".join(dict.fromkeys((trait.name.zh, trait.name.en)))
        found.setdefault(trait.kind, []).append((trait.key, shown, n))
    return found
