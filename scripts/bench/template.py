"""Measures the template teacher: answers per CPU second, and how varied its answers are.

    python scripts/bench/template.py [PSYQA_FILE] [--repeat 20]

Without a file the bundled sample is used. Speed counts everything the teacher does, the pattern
labeller included, on one core; likeness is Jaccard over character 5-grams of whole answers, each
answer against its nearest neighbour. `people` are the answers that the file itself
holds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

from cbtqa.dataset.template.teacher import TemplateTeacher
from cbtqa.metrics.diversity import distinct_share, repeated_share
from cbtqa.psyqa import SourceItem, bundled_sample_path, read_questions
from cbtqa.records import STEP_NAMES
from cbtqa.safety.screen import screen

GRAM = 5


def read(path: Path) -> list[SourceItem]:
    """The questions of a file with people's answers to them; rejected rows are left out."""
    found = read_questions(path, with_answers=True)
    return [item for item in found if isinstance(item, SourceItem)]


def nearest_neighbours(texts: list[str]) -> list[float]:
    """For each text the highest Jaccard likeness to any other."""
    grams = [{text[i : i + GRAM] for i in range(len(text) - GRAM + 1)} for text in texts]
    nearest = [0.0] * len(texts)
    for (i, a), (j, b) in itertools.combinations(enumerate(grams), 2):
        shared = len(a & b)
        likeness = shared / (len(a) + len(b) - shared)
        nearest[i], nearest[j] = max(nearest[i], likeness), max(nearest[j], likeness)
    return nearest


def likeness(texts: list[str]) -> dict[str, float | None]:
    """How much the texts share, in the figures of `cbtqa stats`."""
    found = {"distinct_2": distinct_share(texts), "repeated_share": repeated_share(texts)}
    return {name: value if value is None else round(value, 3) for name, value in found.items()}


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=bundled_sample_path())
    parser.add_argument("--repeat", type=int, default=20, help="passes over the file for speed")
    arguments = parser.parse_args()
    items = read(arguments.file)
    questions = [item.question for item in items]
    risks = [screen(question.source_text).risk for question in questions]
    teacher = TemplateTeacher()
    answers = [teacher.answer(q, risk) for q, risk in zip(questions, risks, strict=True)]

    started = time.process_time()
    for _ in range(arguments.repeat):
        for question, risk in zip(questions, risks, strict=True):
            teacher.answer(question, risk)
    seconds = time.process_time() - started

    texts = [answer.steps.joined() for answer in answers]
    nearest = nearest_neighbours(texts)
    lengths = [len(text) for text in texts]
    figures = {
        "n": len(texts),
        "answers_per_cpu_s": round(arguments.repeat * len(texts) / seconds),
        "length": [min(lengths), round(statistics.mean(lengths)), max(lengths)],
        "nearest_neighbour": {
            "median": round(statistics.median(nearest), 3),
            "max": round(max(nearest), 3),
        },
        **likeness(texts),
        "repeated_share_by_step": {
            name: likeness([getattr(a.steps, name) for a in answers])["repeated_share"]
            for name in STEP_NAMES
        },
        "share_quoting": round(sum("“" in text for text in texts) / len(texts), 3),
        "share_with_distortion": round(sum(bool(a.distortions) for a in answers) / len(texts), 3),
        "distinct_openings_of_8": {
            name: round(len({getattr(a.steps, name)[:8] for a in answers}) / len(texts), 3)
            for name in STEP_NAMES
        },
    }
    human = [human.text for item in items for human in item.answers]
    figures |= {"people": {"n": len(human), **likeness(human)}} if human else {}
    print(json.dumps(figures, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
