"""Invented studies, filled sheets and a running form for the tests of the rating room."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cbtqa.ratings.design import NewStudy, NewStudySettings, create_study
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder
from cbtqa.ratings.web.app import create_app
from tests.support.served import Served

HOSTILE = (
    '<script>document.title="owned"</script><img src=x onerror="document.title=1"> & {{ 7*7 }}'
)
FORMULA = '=HYPERLINK("http://example.invalid","点我")'
CLAUSES = [
    "最近总是睡不踏实，",
    "白天也提不起劲，",
    "朋友约我出去我都推掉了，",
    "我担心大家会觉得我没意思，",
    "其实我也想改变一下。",
]

MakeStudy = Callable[..., NewStudy]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSONL from plain rows."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_inputs(
    folder: Path, n: int = 8, systems: tuple[str, ...] = ("alpha", "beta")
) -> dict[str, Any]:
    """Questions and one file of answers per system, as settings of a new study."""
    chance = random.Random(3)
    questions = [
        {
            "id": f"q{number}",
            "question": f"第{number}个虚构的问题",
            "description": "".join(chance.choices(CLAUSES, k=4)),
            "risk": "explicit" if number % 4 == 0 else "none",
            "distortions": [{"id": "mind_reading"}] if number % 2 else [],
        }
        for number in range(n)
    ]
    paths = []
    for system in systems:
        rows = [
            {
                "question_id": row["id"],
                "text": f"{''.join(chance.choices(CLAUSES, k=6))}（{place}）",
            }
            for place, row in enumerate(questions)
        ]
        for row, text in zip(rows, (HOSTILE, FORMULA), strict=False):
            row["text"] = text
        paths.append(f"{system}={write_rows(folder / f'{system}.jsonl', rows)}")
    source = write_rows(folder / "questions.jsonl", questions)
    return {"predictions": tuple(paths), "questions": source, "n": n, "raters": 3}


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Makes a study; arguments override `NewStudySettings`."""

    def make(**changes: Any) -> NewStudy:
        n = changes.pop("n_available", changes.get("n", 8))
        systems = changes.pop("systems", ("alpha", "beta"))
        values = {**write_inputs(tmp_path, n, systems), "out": tmp_path / "study", **changes}
        return create_study(NewStudySettings(**values))

    return make


@pytest.fixture
def folder(make_study: MakeStudy) -> StudyFolder:
    """A small study of two systems and three raters, with its sheets."""
    made = make_study()
    write_sheets(made.folder)
    return made.folder


@pytest.fixture
def store(folder: StudyFolder) -> Iterator[Store]:
    """The store of `folder`."""
    with Store(folder.store_path, folder.study.id) as opened:
        yield opened


def edit_sheet(
    source: Path, target: Path, edit: Callable[[Any, dict[str, int]], None], tab: str = "评分"
) -> Path:
    """Opens a sheet as a rater would, lets `edit(tab, columns)` change it, saves it elsewhere."""
    import openpyxl

    book = openpyxl.load_workbook(source)
    columns = {cell.value: cell.column for cell in book[tab][1]}
    edit(book[tab], columns)
    book.save(target)
    return target


def rate_rows(rate: Callable[[str, str], Any]) -> Callable[[Any, dict[str, int]], None]:
    """An edit that fills every rating column with `rate(code, column id)`."""

    def edit(tab: Any, columns: dict[str, int]) -> None:
        for row in range(4, tab.max_row + 1):
            code = tab.cell(row, columns["code"]).value
            for name, column in columns.items():
                if name.startswith("value:"):
                    tab.cell(row, column).value = rate(code, name)

    return edit


class RunningForm(Served):
    """The form on a port of its own, in a thread."""

    def __init__(
        self,
        folder: StudyFolder,
        store: Store,
        port: int = 0,
        links: dict[str, str] | None = None,
        read_timeout_s: float = 60.0,
    ) -> None:
        super().__init__(lambda hosts: create_app(folder, store, hosts), port, read_timeout_s)
        self.links = links or {rater: store.issue_link(rater) for rater in folder.study.raters}


@pytest.fixture
def form(folder: StudyFolder, store: Store) -> Iterator[RunningForm]:
    """The running form of `folder`."""
    running = RunningForm(folder, store)
    yield running
    running.stop()
