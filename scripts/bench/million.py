#!/usr/bin/env python3
"""Builds a dataset of N invented questions with the template teacher: speed, memory, resume.

    python scripts/bench/million.py 100000            # smaller; figures scale
    python scripts/bench/million.py 1000000

Prints answers per second (wall and CPU), peak memory of the process, and how long a second run
takes from start to its first unanswered question when the journal holds N replies. The questions
are put together from parts, so they are short-lived text without meaning beyond their length.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WHO = [
    "我妈",
    "我爸",
    "男朋友",
    "女朋友",
    "室友",
    "领导",
    "同事",
    "老师",
    "婆婆",
    "弟弟",
    "闺蜜",
    "前任",
]
DID = [
    "总是说我不够努力",
    "昨天没有回我消息",
    "当着大家的面批评了我",
    "突然不理我了",
    "又和我吵了一架",
    "拿我和别人比较",
    "把我做的事全盘否定",
    "说我想太多",
    "答应的事又没做到",
    "一声不响就走了",
]
FELT = [
    "我觉得特别委屈",
    "我整夜睡不着",
    "我心里堵得慌",
    "我越想越生气",
    "我一下子就哭了",
    "我很害怕",
    "我感觉很累",
    "我不知道该怎么面对",
    "我开始怀疑自己",
    "我什么都不想做",
]
THOUGHT = [
    "我肯定做什么都不行",
    "他一定是讨厌我了",
    "我应该做得更好才对",
    "都是我的错",
    "以后肯定也是这样",
    "别人都比我强",
    "我就是个没用的人",
    "要么做到最好要么就别做",
    "没有人真的在乎我",
    "这辈子大概就这样了",
]
ASK = ["我该怎么办", "这样正常吗", "怎么才能走出来", "要不要和对方谈谈", "我是不是太敏感了"]
TOPICS = [
    "恋爱,恋爱经营",
    "人际,人际边界",
    "家庭,亲子关系",
    "职场,工作压力",
    "成长,自我接纳",
    "情绪,焦虑情绪",
]


def write_questions(path: Path, n: int) -> None:
    """N questions as JSONL, the same for the same N."""
    draw = random.Random(7)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(n):
            who, did, felt = draw.choice(WHO), draw.choice(DID), draw.choice(FELT)
            parts = [f"{who}{did}，{felt}。我今年{draw.randrange(15, 60)}岁，编号{number}。"]
            for _ in range(draw.randrange(2, 6)):
                parts.append(
                    f"{draw.choice(WHO)}{draw.choice(DID)}，{draw.choice(FELT)}，"
                    f"{draw.choice(THOUGHT)}。"
                )
            row = {
                "question": f"{who}{did}，{draw.choice(ASK)}？",
                "questionID": number,
                "description": "".join(parts),
                "keywords": draw.choice(TOPICS),
                "answers": [],
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def run(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with status {status}")
    wall = time.perf_counter() - start
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int)
    parser.add_argument("--program", default=str(Path(sys.executable).parent / "cbtqa"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cbtqa-million-"))
    try:
        questions = folder / "questions.jsonl"
        write_questions(questions, options.n)
        out = folder / "out"
        build = [options.program, "build-dataset", str(questions), "--out", str(out)]
        wall, cpu, peak = run(build)
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        print(
            f"{counts['n_in']:,} in = {counts['n_out']:,} out + {counts['n_rejected']:,} rejected"
        )
        print(
            f"build: {wall:.1f} s wall, {cpu:.1f} s CPU, {options.n / wall:,.0f} answers/s wall, "
            f"{options.n / cpu:,.0f} per CPU s, peak {peak:,.0f} MB"
        )
        with questions.open("a", encoding="utf-8") as stream:
            row = {
                "question": "多出来的一个问题该怎么办？",
                "questionID": "last",
                "description": "",
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        (out / "manifest.json").unlink()
        code = (
            "import sys, time; start = time.perf_counter()\n"
            "from cbtqa.dataset import run\n"
            "from cbtqa.dataset.template import teacher as template\n"
            "from cbtqa.settings import resolve\n"
            "from cbtqa.dataset.settings import BuildSettings\n"
            "answer = template.TemplateTeacher.answer\n"
            "def stop(*words): print(time.perf_counter() - start); sys.stdout.flush(); sys.exit()\n"
            "template.TemplateTeacher.answer = stop\n"
            "from pathlib import Path\n"
            "run.build_dataset(resolve(BuildSettings, flags={'input': Path(sys.argv[1]), "
            "'out': Path(sys.argv[2])}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(questions), str(out)], capture_output=True, text=True
        )
        print(
            f"resume: {float(done.stdout):.1f} s to the first unanswered question "
            f"(journal of {(out / 'journal.sqlite').stat().st_size / 1e9:.2f} GB)"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
