"""Good inputs of every command, small and invented, and the command lines that take them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from cbtqa.cli.main import _run
from cbtqa.dataset_folder import question_of
from cbtqa.files import write_json, write_jsonl, write_text
from cbtqa.hub.publish import prepare_dataset
from cbtqa.hub.settings import DatasetSettings
from cbtqa.ratings.answers import Change
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.store import Event, Store
from cbtqa.ratings.study import open_study
from cbtqa.reproduce.pipeline import EXPERIMENT_NAME, Experiment
from cbtqa.reproduce.recipe import read_recipe
from tests.hub.runs import (
    rows_of,
    write_adapter,
    write_dataset,
    write_psyqa,
    write_ratings,
    write_scores,
)
from tests.support.cli_docs import walk_commands

ASKED = ("--endpoint", "http://127.0.0.1:9/v1", "--model", "m")
MORE: dict[str, tuple[str, ...]] = {
    "generate": (*ASKED, "--dry-run"),
    "judge": (*ASKED, "--dry-run"),
    "chat": ASKED,
    "finetune": ("--backbone", "qwen2.5", "--dry-run"),
    "score": ("--metrics", "chrf2"),
    "compare": ("--metrics", "chrf2"),
    "simulate judge": ("--rules", "--instrument", "tes"),
    "distortions train": ("--folds", "2"),
    "distortions agree": ("{good}/others.jsonl",),
    "rate new": ("--n", "4", "--raters", "2"),
    "rate unblind": ("--by", "Li Hua"),
    "rate export": ("--for", "judge-sft"),
    "reproduce": ("--smoke", "--dry-run"),
    "publish dataset": ("--dry-run",),
    "publish model": ("--dry-run",),
    "publish release": ("lab/none",),
}
"""What a command needs besides paths, so that it does its work, quickly and without a network."""
MORE_AT: dict[str, tuple[str, ...]] = {
    "build-dataset --prompt": (*ASKED, "--dry-run"),
    "distortions label --prompt": ("--labeller", "llm", *ASKED, "--dry-run"),
    "distortions evaluate --prompt": ("--labeller", "llm", *ASKED, "--dry-run"),
    "simulate export --judged": ("--format", "inspect"),
}
"""The same for one place, which is looked at only then."""
NEEDED = {
    *("compare predictions", "judge predictions", "judge --questions", "simulate export sessions"),
    *("simulate judge sessions", "simulate analyse source", "simulate lint path"),
    *("simulate profiles source", "simulate run study", "build-dataset input", "data check file"),
    *("doctor data", "simulate corpus study"),
}
"""Places without which a command does nothing, or something else, though it may go without."""
OUT = {
    "distortions label": "out.jsonl",
    "distortions evaluate": "out.json",
    "simulate profiles": "out.jsonl",
    "simulate lint": "out.jsonl",
    "safety screen": "out.jsonl",
    "safety scrub": "out.jsonl",
    "hub-preview": "out.html",
}
"""What a command writes, where that is a file; the others write a folder."""
GOOD: dict[str, str] = {
    "build-dataset input": "psyqa.json",
    "stats dataset": "dataset",
    "data check file": "psyqa.json",
    "doctor data": "psyqa.json",
    "reproduce recipe": "recipe.yaml",
    "reproduce --data": "psyqa.json",
    "report runs": "experiment",
    "distortions train data": "labelled.csv",
    "distortions evaluate data": "labelled.csv",
    "distortions agree files": "labels.jsonl",
    "safety evaluate gold": "gold.csv",
    "convert source": "adapter",
    "finetune data": "dataset",
    "merge adapter": "adapter",
    "compare predictions": "scores",
    "judge --human": "ratings.jsonl",
    "simulate profiles source": "profiles.yaml",
    "simulate corpus study": "course.yaml",
    "simulate run study": "study.yaml",
    "simulate export sessions": "played",
    "simulate export --serve": "study.yaml",
    "simulate export --judged": "played",
    "simulate lint path": "played",
    "simulate lint --against": "study.yaml",
    "simulate judge sessions": "played",
    "simulate judge --wording": "settings.yaml",
    "simulate analyse source": "sessions.csv",
    "simulate analyse --judged": "played",
    "simulate analyse --human": "ratings.jsonl",
    "simulate analyse --patients": "people.csv",
    "rate unblind --key": "rating.key.json",
    "rate collect sheets": "rating/sheets/R1.xlsx",
    "rate import files": "label-studio.json",
    "rate export study": "rating",
    "rate export --judged": "judged",
    "publish model run": "adapter",
    "join published": "published",
    "join --questions": "psyqa.json",
    "publish dataset --source": "psyqa.json",
    "publish dataset --label-quality": "settings.json",
    "hub-preview run": "dataset",
}
"""The good input of a place, where its name alone does not tell."""
GOOD_BY_NAME: dict[str, str] = {
    "--config": "settings.yaml",
    "--prompt": "prompt.md",
    "--taxonomy": "taxonomy.yaml",
    "--rubric": "rubric.yaml",
    "--instrument": "rubric.yaml",
    "instrument": "rubric.yaml",
    "--wording": "settings.yaml",
    "--preset": "settings.yaml",
    "--notes": "notes.md",
    "--names": "names.txt",
    "--ref": "answers.jsonl",
    "predictions": "answers.jsonl",
    "--predictions": "answers.jsonl",
    "--ratings": "report",
    "--scores": "scores",
    "study": "rating",
    "run": "dataset",
    "--adapter": "adapter",
    "--base": "adapter",
    "--labeller": "adapter",
    "--step-classifier": "dataset",
    "--chat-format": "template.jinja",
    "--permission": "notes.md",
    "--licence-file": "notes.md",
}
OUTPUTS = ("--out", "--gguf", "--key")
NO_PATHS = re.compile(
    "--(?:encoding|.*column|endpoint|(?:bertscore|bleurt).*|model|system|revision|encoder|backbone|base)|name"
)


class Place(NamedTuple):
    """One input path of one command."""

    command: str
    name: str
    """The option, or the name of the argument."""
    is_required: bool


def places() -> list[Place]:
    """Every input path of every command, from the registry: by type, else by the help's words."""
    return [
        Place(name, parameter.opts[0], _is_required(f"{name} {parameter.opts[0]}", parameter))
        for name, command in _leaves()
        for parameter in command.params
        if _is_input(name, parameter)
    ]


def commands_with_output() -> list[str]:
    """Every command that writes to a place that it is given."""
    return [
        name
        for name, command in _leaves()
        if any("--out" in parameter.opts for parameter in command.params)
    ]


def _leaves() -> list[tuple[str, Any]]:
    return [
        (words.removeprefix("cbtqa "), command)
        for words, command in walk_commands()
        if not hasattr(command, "list_commands")
    ]


def _is_required(place: str, parameter: Any) -> bool:
    words = parameter.help or ""
    if parameter.opts[0] == "--adapter":  # the others of the material ask an endpoint
        return False
    return (
        place in NEEDED
        or parameter.required
        or "(required)" in words
        or "(default: the newest" in words
    )


def _is_input(command: str, parameter: Any) -> bool:
    name, annotation = parameter.opts[0], parameter.type_descriptor.annotation
    if name in OUTPUTS and (command, name) != ("rate unblind", "--key"):
        return False
    if annotation is Path or Path in get_args(annotation):
        return True
    is_text = annotation is str or annotation == list[str]
    said = re.search(r"(?i)\b(?:path|files?|folder|prompt|taxonomy)\b", parameter.help or "")
    return bool(is_text and said and not NO_PATHS.fullmatch(name))


def good_input(place: Place) -> str:
    """The name of the good input in the folder of the material."""
    by_place = GOOD.get(f"{place.command} {place.name}")
    return by_place or GOOD_BY_NAME.get(place.name, "questions.jsonl")


def line(good: Path, command: str, inputs: Sequence[tuple[Place, Path]], out: Path) -> list[str]:
    """The words of a command with these inputs."""
    words = command.split()
    for place, path in inputs:
        flag = [place.name] if place.name.startswith("-") else []
        words += [*flag, str(path)]
        words += MORE_AT.get(f"{command} {place.name}", ())
    is_known = command in commands_with_output()
    words += [word.format(good=good) for word in MORE.get(command, ())]
    return [*words, *(["--out", str(out)] if is_known else [])]


def write_material(folder: Path) -> None:
    """Writes every good input."""
    folder.mkdir()
    run = write_dataset(folder / "dataset", 12)
    write_psyqa(run, folder / "psyqa.json")
    rows = rows_of(run)
    write_jsonl(folder / "questions.jsonl", [question_of(row).model_dump() for row in rows])
    answers = [{"question_id": row["id"], "text": row["answer"]} for row in rows]
    write_jsonl(folder / "answers.jsonl", answers)
    write_scores(run, folder / "scores", n_systems=2)
    write_adapter(folder / "adapter")
    for name in ("checkpoint-10", "samples.jsonl", "training_args.bin"):  # no command reads them
        left = folder / "adapter" / name
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    (folder / "published").mkdir()
    shutil.copytree(_published(run), folder / "published", dirs_exist_ok=True)
    shutil.rmtree(run / "publish")
    _write_small_files(folder)
    _write_experiment(folder)
    _write_rating(folder)
    _write_sessions(folder)


def _published(run: Path) -> Path:
    prepare_dataset(DatasetSettings(run=run, to="lab/cbt-qa"))
    return run / "publish" / "files"


def _write_small_files(folder: Path) -> None:
    texts = [f"我什么都做不好，第{number}次了。" for number in range(12)]
    lines = [f"{n},{text},{('labeling', 'none')[n % 2]}" for n, text in enumerate(texts)]
    write_text(folder / "labelled.csv", "\n".join(["id,text,labels", *lines]) + "\n")
    lines = [f"{n},{text},{('none', 'concern')[n % 2]}" for n, text in enumerate(texts)]
    write_text(folder / "gold.csv", "\n".join(["id,text,risk", *lines]) + "\n")
    rows = [{"id": str(n), "text": text, "labels": []} for n, text in enumerate(texts)]
    write_jsonl(folder / "labels.jsonl", rows)
    write_jsonl(folder / "others.jsonl", rows)
    write_text(folder / "settings.yaml", "seed: 3\n")
    write_text(folder / "settings.json", '{"n": 3, "macro_f1": {"value": 0.5}}\n')
    write_text(folder / "notes.md", "Ethics approval: invented.\n")
    write_text(folder / "names.txt", "王小明\n李小红\n")
    write_text(folder / "template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}")
    write_text(
        folder / "prompt.md",
        "---\nid: own\nversion: 1\nlanguage: zh\nvariables: [question]\noutput: text\n"
        "source: invented\n---\n# system\n你好。\n# user\n$question\n",
    )
    write_text(
        folder / "taxonomy.yaml",
        "id: own\ntitle: Own\ncitation: none\ntypes:\n"
        "  - {id: labeling, zh: 贴标签, en: Labelling, definition: 定义, definition_en: it}\n",
    )
    write_text(
        folder / "rubric.yaml",
        "id: own\nversion: 1\ntitle: {zh: 量表}\nsource: invented\nguidelines: {zh: 说明}\n"
        "criteria:\n  - {id: one, name: {zh: 一}, question: {zh: 问}, low: 1, high: 5}\n",
    )


def _write_experiment(folder: Path) -> None:
    write_text(
        folder / "recipe.yaml",
        "id: own\ntitle: {en: Own, zh: 自己的}\nbackbones: {qwen: null}\nfinetune: {rank: 8}\n",
    )
    experiment = Experiment(
        cbtqa_version="0",
        is_smoke=True,
        data="psyqa.json",
        data_sha256="0" * 64,
        recipe=read_recipe(str(folder / "recipe.yaml")),
    )
    (folder / "experiment").mkdir()
    write_json(folder / "experiment" / EXPERIMENT_NAME, experiment)


def _write_rating(folder: Path) -> None:
    shutil.copytree(write_ratings(folder / "dataset", folder / "rated"), folder / "report")
    shutil.move(folder / "rated" / "study", folder / "rating")
    write_sheets(open_study(folder / "rating"))
    study = open_study(folder / "rating")
    with Store(study.store_path, study.study.id) as store:
        for shown in study.plan:
            for criterion in study.rubric.scales:
                change = Change(shown.code, f"value:{criterion.id}", criterion.low)
                store.add(shown.rater, "test", [Event(f"{shown.code}:{criterion.id}", change)])
    shutil.copy(folder / "report" / "ratings.jsonl", folder)
    shutil.move(next((folder / "rated").glob("*key.json")), folder / "rating.key.json")
    quoted = {"question_id": "q1", "system": "a", "criterion": "relevance", "repeat": 0}
    quoted |= {"value": 1, "evidence": "先照顾好自己", "judge": "m"}
    (folder / "judged").mkdir()
    write_jsonl(folder / "judged" / "judge_ratings.jsonl", [quoted])
    write_text(folder / "label-studio.json", '[{"id": 1, "data": {}, "annotations": []}]')


def _write_sessions(folder: Path) -> None:
    write_text(
        folder / "study.yaml",
        "id: s\napproach: act\nturns: {min: 1, max: 2}\npatients: {ready: test, n: 2}\n"
        "arms:\n  - name: a\n    therapist: {scripted: present}\n"
        "  - name: b\n    therapist: {scripted: present}\n",
    )
    write_text(
        folder / "course.yaml",
        "id: c\napproach: cbt\nwritten: true\nsessions: 2\npatients: {draw: cbt, n: 1}\n"
        "arms:\n  - {name: a, therapist: {scripted: attentive}}\n"
        "pairs: {rejected: {scripted: plain}}\n",
    )
    write_text(
        folder / "profiles.yaml",
        "profiles:\n  - {id: p1, name: Ann, narrative: I cannot sleep and I worry.}\n",
    )
    people = [f"p{n},{('shy', 'bold')[n % 2]}" for n in range(3)]
    write_text(folder / "people.csv", "\n".join(["id,kind", *people]) + "\n")
    items = [f"tes_item_{k}" for k in range(1, 10)]
    lines = [
        ",".join(
            [f"p{n % 3}", "ab"[n % 2], str(n % 4), *(str(1 + n * k % 7) for k in range(1, 10))]
        )
        for n in range(24)
    ]
    head = ",".join(["patient", "arm", "session", *items])
    write_text(folder / "sessions.csv", "\n".join([head, *lines]) + "\n")
    assert (
        _run(["simulate", "run", f"{folder}/study.yaml", "--out", f"{folder}/played"], False) == 0
    )
