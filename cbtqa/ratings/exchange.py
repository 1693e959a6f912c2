"""Studies for other tools, and their results back: Label Studio (both ways) and Potato (out only).

    export_label_studio(folder, Path("ls"))      # config.xml, and tasks of each rater
    collected = import_label_studio(folder, store, [Path("export.json")])

One project per rater keeps orders apart and ratings out of each other's sight. What comes back is
judged like a sheet: the same checks, the same refusals.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cbtqa.errors import DataError
from cbtqa.files import read_json, write_json, write_jsonl, write_text
from cbtqa.paths import make_folder
from cbtqa.ratings.answers import (
    CANNOT_JUDGE,
    CRISIS,
    NOTE,
    VALUE,
    Answer,
    Change,
    Scalar,
    make_ratings,
)
from cbtqa.ratings.collect import Collected, CollectedSheet, admit, comparable
from cbtqa.ratings.rubric import Criterion
from cbtqa.ratings.sheet_files import MAX_BYTES
from cbtqa.ratings.sheets import column_names, sheet_words
from cbtqa.ratings.store import Event, Store
from cbtqa.ratings.study import Presentation, StudyFolder
from cbtqa.report.page import template_environment

MARKS = "marks"
FLAGS = "flags"
_TEXT_PARTS = ("question", "description", "answer")
_OPTION = " · "
"""Between the number and the words of an option; only the number comes back."""


def export_label_studio(folder: StudyFolder, out: Path) -> list[Path]:
    """Writes `config.xml` and `<rater>.tasks.json`; texts are data, never part of the config."""
    paths = [out / "config.xml"]
    write_text(paths[0], label_studio_config(folder))
    for rater in folder.study.raters:
        path = out / f"{rater}.tasks.json"
        write_json(path, [{"data": _task(folder, shown)} for shown in folder.shown_to(rater)])
        paths.append(path)
    folder.log("exported", to="label-studio", n=len(paths))
    return paths


def _task(folder: StudyFolder, shown: Presentation) -> dict[str, Any]:
    item = folder.item_of(shown)
    data: dict[str, Any] = {"study": folder.study.id, "rubric": folder.study.rubric_sha256}
    data |= {"rater": shown.rater, "code": shown.code}
    data |= {name: item.parts.get(name, " ") for name in _shown_parts(folder)}
    if item.turns:
        data["turns"] = [turn.model_dump() for turn in item.turns]
    return data


def _shown_parts(folder: StudyFolder) -> tuple[str, ...]:
    return _TEXT_PARTS[: 2 if folder.rubric.shows != "answer" else 3]


def label_studio_config(folder: StudyFolder) -> str:
    language = folder.study.language
    template = template_environment("cbtqa.ratings").get_template("label_studio.xml.j2")
    text = template.render(
        parts=_shown_parts(folder),
        words=sheet_words(language),
        rubric=folder.rubric,
        language=language,
        heading=lambda criterion: _heading(criterion, folder),
        option=_OPTION,
    )
    return text + "\n"


def _heading(criterion: Criterion, folder: StudyFolder) -> str:
    language = folder.study.language
    return f"{criterion.name.to(language)}: {criterion.question.to(language)}"


def export_potato(folder: StudyFolder, out: Path) -> list[Path]:
    """Writes a `config.yaml` and the items of each rater for Potato, one folder per rater."""
    paths = []
    for rater in folder.study.raters:
        config, items = out / rater / "config.yaml", out / rater / "items.jsonl"
        write_text(config, _potato_config(folder, rater))
        parts = {shown.code: folder.item_of(shown).parts for shown in folder.shown_to(rater)}
        write_jsonl(items, ({"id": c, "text": "\n\n".join(p.values())} for c, p in parts.items()))
        paths += [config, items]
    folder.log("exported", to="potato", n=len(paths))
    return paths


def _potato_config(folder: StudyFolder, rater: str) -> str:
    rubric, language = folder.rubric, folder.study.language
    schemes: list[dict[str, Any]] = [
        {
            "annotation_type": "radio",
            "name": criterion.id,
            "description": _heading(criterion, folder),
            "labels": [str(point) for point in criterion.points],
            "label_requirement": {"required": criterion.required},
        }
        for criterion in rubric.scales
    ]
    if rubric.marks:
        labels = [mark.id for mark in rubric.marks]
        shown = {"description": rubric.title.to(language), "labels": labels}
        schemes.append({"annotation_type": "multiselect", "name": MARKS, **shown})
    schemes.append({"annotation_type": "text", "name": NOTE, "description": NOTE})
    config = {
        "annotation_task_name": f"{folder.study.id} {rater}",
        "task_dir": ".",
        "data_files": ["items.jsonl"],
        "item_properties": {"id_key": "id", "text_key": "text"},
        "output_annotation_dir": "annotation_output",
        "ui_language": language,
        "assignment_strategy": "fixed_order",
        "host": "127.0.0.1",
        "annotation_schemes": schemes,
    }
    return yaml.safe_dump(config, allow_unicode=True, sort_keys=False)


def export_ratings(folder: StudyFolder, store: Store, out: Path) -> list[Path]:
    """Writes the ratings as JSONL and a copy of the store, made while it may be in use."""
    make_folder(out)
    ratings, copy = out / "ratings.jsonl", out / "ratings.sqlite"
    store.snapshot(copy)
    with Store(copy, folder.study.id) as frozen:
        write_jsonl(ratings, make_ratings(folder, frozen.answers()))
    folder.log("exported", to="ratings", n=2)
    return [ratings, copy]


def import_label_studio(
    folder: StudyFolder, store: Store, paths: Sequence[Path], *, replace: bool = False
) -> Collected:
    """Takes Label Studio's JSON export back into the store.

    A task with two finished annotations is refused, since it is unknown which one counts.
    """
    collected = Collected()
    for path in paths:
        result = CollectedSheet(path.name)
        collected.sheets.append(result)
        try:
            tasks = _read_tasks(path)
        except DataError as error:
            result.refuse(path.name, str(error), path.name)
            continue
        for number, task in enumerate(tasks, 1):
            _take_task(folder, store, task, f"{path.name}:task {number}", result, replace)
        result.count_done(folder, store)
    n_refused = len(collected.rejections)
    folder.log("imported", n_files=len(paths), n_kept=collected.n_kept, n_refused=n_refused)
    return collected


def _read_tasks(path: Path) -> list[dict[str, Any]]:
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES >> 20} MiB", where=path.name)
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError("expected Label Studio's JSON export: a list of tasks", where=path.name)
    return tasks


def _take_task(
    folder: StudyFolder,
    store: Store,
    task: Mapping[str, Any],
    where: str,
    result: CollectedSheet,
    replace: bool,
) -> None:
    code = "?"
    try:
        shown = _presentation_of(folder, task)
        code = shown.code
        finished = _finished(task)
    except ValueError as error:
        result.refuse(code, str(error), where)
        return
    result.rater = result.rater or shown.rater
    if finished is None:
        return
    answer = store.answers(shown.rater).get(code, Answer())
    events, names = [], column_names(folder)
    for name, value in _fields_of(folder, finished):
        stored = answer.get(name)
        try:
            change = admit(folder, shown.rater, Change(code, name, value), answer, replace)
        except ValueError as error:
            result.refuse(code, f"{names.get(name, name)}: {error}", where)
            continue
        if change is None:
            result.n_known += 1
            continue
        key = json.dumps([finished.get("id"), code, name, stored, change.value])
        events.append(Event("ls:" + hashlib.sha256(key.encode()).hexdigest(), change))
    result.n_kept += store.add(shown.rater, "label-studio", events)


def _presentation_of(folder: StudyFolder, task: Mapping[str, Any]) -> Presentation:
    data = task.get("data")
    if not isinstance(data, dict):
        raise ValueError("a task without data")
    for key, expected in (("study", folder.study.id), ("rubric", folder.study.rubric_sha256)):
        if data.get(key) != expected:
            raise ValueError(f"its {key} is {str(data.get(key))[:12]}, expected {expected[:12]}")
    shown = folder.by_code.get(str(data.get("code")))
    if shown is None or shown.rater != data.get("rater"):
        raise ValueError(f"{data.get('code')} is not in the plan of {data.get('rater')}")
    parts = folder.item_of(shown).parts
    for name in _shown_parts(folder):
        if comparable(str(data.get(name, ""))) != comparable(parts.get(name, "")):
            raise ValueError(f"its {name} is not the text of the study")
    return shown


def _finished(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one annotation that counts; None when there is none yet."""
    annotations = task.get("annotations") or []
    if not isinstance(annotations, list):
        raise ValueError("its annotations are not a list")
    kept = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    if len(kept) > 1:
        raise ValueError(f"{len(kept)} finished annotations, expected one")
    return kept[0] if kept else None


def _fields_of(folder: StudyFolder, annotation: Mapping[str, Any]) -> Iterator[tuple[str, Scalar]]:
    """Fields and values of one annotation, as `Change` names them."""
    results = annotation.get("result")
    words = sheet_words(folder.study.language)
    # a version of Label Studio that does not know aliases gives the words of the option back
    flags = {words[flag]: flag for flag in (CANNOT_JUDGE, CRISIS)}
    marks = {_heading(mark, folder): mark.id for mark in folder.rubric.marks}
    for result in results if isinstance(results, list) else ():
        if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
            continue
        name, value = str(result.get("from_name")), result["value"]
        chosen = [str(choice) for choice in value.get("choices") or []]
        if name == FLAGS:
            yield from ((flags.get(flag, flag), True) for flag in chosen)
        elif name == MARKS:
            yield from ((f"{VALUE}:{marks.get(mark, mark)}", 1) for mark in chosen)
        elif name == NOTE:
            yield NOTE, "\n".join(str(text) for text in value.get("text") or [])
        else:
            for choice in chosen:
                number = choice.partition(_OPTION)[0]
                plain = number.isascii() and number.isdigit()
                yield f"{VALUE}:{name}", int(number) if plain else choice
