"""Writes a dataset folder as a build leaves it, from invented text: splits, rejects, manifest.

folder = write_dataset_folder(tmp_path / "dataset", n_entries=40)
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from cbtqa.dataset_folder import FORMAT_VERSION, answer_features, answer_row, arrow_schema
from cbtqa.distortions.taxonomy import load_taxonomy
from cbtqa.files import ParquetRows, write_jsonl, write_text
from cbtqa.manifest import FileEntry, Manifest, SettingValue, describe_file, write_manifest
from cbtqa.records import (
    CbtAnswer,
    CbtSteps,
    DistortionLabel,
    Provenance,
    Question,
    Reason,
    Rejection,
    Usage,
)

PEOPLE = ("室友", "妈妈", "男朋友", "带我的师傅", "前同事", "表姐", "班主任", "邻桌的同学")
EVENTS = (
    "已经三天没有回我的消息",
    "当着大家的面说我做事太慢",
    "把我们约好的旅行取消了",
    "说我的想法太天真",
    "最近吃饭都不叫我",
    "把我讲的秘密告诉了别人",
)
FEELINGS = ("委屈", "慌", "难受", "生气又自责", "空落落的", "睡不着")
KEYWORDS = ("人际", "情绪", "家庭", "恋爱", "职场", "学业", "自我", "亲子")
THOUGHTS = (
    ("mind_reading", "她心里一定觉得我很烦"),
    ("overgeneralization", "我跟谁都处不好，从来都是这样"),
    ("all_or_nothing", "做不到最好就等于什么都没做"),
    ("fortune_telling", "以后肯定不会有人愿意理我了"),
    ("should", "我应该让每个人都满意才对"),
    ("labeling", "说到底我就是个失败的人"),
)
OPENINGS = (
    "读到你写的这些，",
    "谢谢你愿意讲出来，",
    "这段日子真不容易，",
    "我能想到那一刻，",
    "换作谁遇到",
)
MIDDLES = ("也许可以先停一停，", "换个角度看看，", "不妨试着想一想，", "这里有一个小小的缝隙，")
RISKS = ("none",) * 9 + ("concern",)


def make_question(index: int, seed: int = 0) -> tuple[Question, tuple[str, str] | None]:
    """One invented question, and the distortion that its account was written with, if any."""
    chance = random.Random(f"{seed}-{index}")
    person, event, feeling = chance.choice(PEOPLE), chance.choice(EVENTS), chance.choice(FEELINGS)
    thought = chance.choice(THOUGHTS) if chance.random() < 0.55 else None
    middle = f"我反复想，{thought[1]}。" if thought else "我说不清到底哪里出了问题。"
    extra = f"这件事过去{chance.randint(2, 40)}天了，我还是{chance.choice(FEELINGS)}。"
    return (
        Question(
            id=str(9000 + index),
            question=f"{person}{event}，我很{feeling}，怎么办？",
            description=f"事情是这样的：{person}{event}。{middle}"
            + extra * chance.randint(0, 4)
            + f"第{index}次打开这个页面，才敢写下来。",
            keywords=tuple(chance.sample(KEYWORDS, 2)),
        ),
        thought,
    )


def make_answer(
    question: Question,
    thought: tuple[str, str] | None,
    index: int,
    *,
    is_fused: bool = False,
    is_template: bool = False,
    risk: str = "none",
    ended: str = "stop",
    tail: str = "",
) -> CbtAnswer:
    """A five-step answer in the teacher's manner and a `tail`; a fused one has no steps."""
    chance = random.Random(f"answer-{index}")
    quoted = f"你写到“{thought[1]}”，" if thought else "你没有急着给自己下结论，"
    steps = CbtSteps(
        validation_and_empathy=chance.choice(OPENINGS)
        + f"心里{chance.choice(FEELINGS)}是可以理解的，这说明你在乎这段关系。",
        key_thought=quoted
        + chance.choice(MIDDLES)
        + "这句话听上去像一个已经定下来的事实，其实它更像难过的时候冒出来的一种判断。"
        * chance.randint(1, 3),
        challenge_or_reflection=f"{chance.choice(MIDDLES)}过去的{chance.randint(2, 9)}个月里，"
        "有没有一件小事和这个判断不一样？",
        strategy_or_insight=f"这周可以挑一个晚上，用{chance.randint(5, 20)}分钟写下发生了什么、"
        "当时想到什么、还有哪些可能，再挑一个最小的行动去试。",
        encouragement_and_foresight="改变从来不是一次完成的，"
        + chance.choice(
            ("愿意写下来就是第一步。", "慢慢来也没有关系。", "需要的时候也可以找人陪你。")
        )
        + tail,
    )
    labels = (
        [DistortionLabel(id=thought[0], evidence=thought[1], labeller="answer", confidence=0.8)]
        if thought
        else []
    )
    if thought and index % 7 == 0:
        labels.append(DistortionLabel(id="emotional_reasoning", labeller="answer"))
    return CbtAnswer(
        question_id=question.id,
        system="template" if is_template else "teacher",
        text=steps.joined(),
        steps=None if is_fused else steps,
        distortions=tuple(labels),
        risk=risk,
        provenance=Provenance(
            model="template" if is_template else "invented-chat-14b",
            endpoint_host=None if is_template else "127.0.0.1",
            prompt_id=None if is_template else "cbt_answer.v1",
            prompt_sha256=None if is_template else "5d" * 32,
            sampling={} if is_template else {"temperature": 0.7},
            seed=0,
            usage=None if is_template else Usage(prompt_tokens=610, completion_tokens=402),
            finish_reason=None if is_template else ended,
            is_training_source=not is_template,
            version="0.1.0",
            created_at=None if is_template else "2026-11-21T02:10:00+00:00",
        ),
    )


def make_rejections() -> list[Rejection]:
    """Four items turned away, one of them with markup in its text."""
    cut = "读到你写的这些，能感到你已经很努力了。" * 40
    return [
        Rejection(item_id="8001", stage="generate", reason=Reason.CUT, detail="2048", raw=cut),
        Rejection(item_id="8002", stage="generate", reason=Reason.CUT, detail="2048", raw=cut[9:]),
        Rejection(
            item_id="8003",
            stage="check",
            reason=Reason.NOT_JSON,
            detail="expected an object",
            raw='<script>alert("x")</script> 抱歉，我换一种方式回答。',
        ),
        Rejection(
            item_id="row 17",
            stage="input",
            reason=Reason.BAD_ROW,
            detail="question is empty",
            where="questions.json:item 17:question",
            raw='{"question": "", "questionID": 8004}',
        ),
    ]


def make_rows(n_entries: int, **kind: Any) -> list[tuple[str, dict[str, Any]]]:
    """`(split, row)` pairs as a build would write them."""
    rows = []
    for index in range(n_entries):
        question, thought = make_question(index)
        risk = "explicit" if index % 25 == 24 else RISKS[index % len(RISKS)]
        split = "train" if risk == "none" else "crisis"
        if split == "train" and index % 10 in (3, 7):
            split = "validation" if index % 10 == 3 else "test"
        answer = make_answer(question, thought, index, risk=risk, **kind)
        rows.append((split, answer_row(question, answer)))
    return rows


def write_dataset_folder(
    folder: Path,
    n_entries: int = 40,
    *,
    is_fused: bool = False,
    is_template: bool = False,
    with_manifest: bool = True,
    **answers: str,
) -> Path:
    """Writes the folder and returns it; `answers`: finish reason and tail as in `make_answer`."""
    rows = make_rows(n_entries, is_fused=is_fused, is_template=is_template, **answers)
    splits = Counter(split for split, _ in rows)
    schema = arrow_schema(answer_features(load_taxonomy("socialcd-12").ids))
    for split in splits:
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        with ParquetRows(path, schema) as parquet:
            for of_split, row in rows:
                if of_split == split:
                    parquet.add(row)
    rejections = make_rejections()
    write_jsonl(folder / "rejects.jsonl", rejections)
    write_text(folder / "journal.sqlite", "")
    if with_manifest:
        write_manifest(folder, _manifest(folder, rows, splits, rejections, is_template))
    return folder


def finish(folder: Path) -> Path:
    """Gives a folder with Parquet files under `data` the manifest of a finished dataset."""
    times = {"started_at": "2026-11-21T02:00:00+00:00", "finished_at": "2026-11-21T02:00:01+00:00"}
    write_manifest(folder, Manifest(kind="dataset", **times))
    return folder


def _manifest(
    folder: Path,
    rows: list[tuple[str, dict[str, Any]]],
    splits: Counter[str],
    rejections: list[Rejection],
    is_template: bool,
) -> Manifest:
    rejected = Counter(str(rejection.reason) for rejection in rejections)
    settings: dict[str, object] = {
        "input": "questions.json",
        "taxonomy": "socialcd-12",
        "crisis": "split",
        "seed": 0,
        "near_cosine": 0.4,
    }
    if not is_template:
        settings |= {"endpoint": "vllm", "model": "invented-chat-14b", "temperature": 0.7}
    return Manifest(
        kind="dataset",
        format_version=FORMAT_VERSION,
        settings={
            name: SettingValue(value=value, origin="default") for name, value in settings.items()
        },
        packages={"pyarrow": "26.0.1"},
        inputs=(FileEntry(name="questions.json", n_bytes=48_211, sha256="ab" * 32),),
        prompts={} if is_template else {"cbt_answer.v1": "5d" * 32},
        counts={
            "n_in": len(rows) + len(rejections),
            "n_out": len(rows),
            "n_rejected": len(rejections),
            "rejected": dict(rejected),
            "splits": dict(splits),
            "risk": dict(Counter(row["risk"] for _, row in rows)),
            "n_near_duplicates": 2,
        },
        usage=None
        if is_template
        else Usage(prompt_tokens=610 * len(rows), completion_tokens=402 * len(rows)),
        cost=None
        if is_template
        else {
            "amount": 0.41,
            "input": 0.5,
            "output": 1.8,
            "currency": "USD",
            "as_of": "2026-11-20",
        },
        files=tuple(
            describe_file(path, folder)
            for path in (*sorted(folder.glob("data/*.parquet")), folder / "rejects.jsonl")
        ),
        started_at="2026-11-21T02:00:00+00:00",
        finished_at="2026-11-21T02:12:30+00:00",
    )
