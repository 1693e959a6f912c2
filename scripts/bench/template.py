"""Measures the template teacher: answers per CPU second, and how varied its answers are.

    python scripts/bench/template.py [PSYQA_FILE] [--repeat 20]

Without a file the bundled sample is used. Speed counts everything the teacher does, the pattern
labeller included, on one core; likeness is Jaccard over character 5-grams of whole answers, each
answer against its nearest neighbour. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

from cbtqa.dataset.template.teacher import TemplateTeacher
from cbtqa.psyqa import SourceItem, bundled_sample_path, read_questions
from cbtqa.records import STEP_NAMES, Question
from cbtqa.safety.screen import screen

GRAM = 5


def read(path: Path) -> list[Question]:
    """The questions of a file; rejected rows are left out."""
    return [item.question for item in read_questions(path) if isinstance(item, SourceItem)]


def nearest_neighbours(texts: list[str]) -> list[float]:
    """For each text the highest Jaccard likeness to any other."""
    grams = [{text[i : i + GRAM] for i in range(len(text) - GRAM + 1)} for text in texts]
    nearest = [0.0] * len(texts)
    for (i, a), (j, b) in itertools.combinations(enumerate(grams), 2):
        shared = len(a & b)
        likeness = shared / (len(a) + len(b) - shared)
        nearest[i], nearest[j] = max(nearest[i], likeness), max(nearest[j], likeness)
    return nearest


def distinct_2(texts: list[str]) -> float:
    """Distinct character pairs over all pairs."""
    pairs = [pair for text in texts for pair in itertools.pairwise(text)]
    return len(set(pairs)) / len(pairs)


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=bundled_sample_path())
    parser.add_argument("--repeat", type=int, default=20, help="passes over the file for speed")
    arguments = parser.parse_args()
    questions = read(arguments.file)
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
        "distinct_2": round(distinct_2(texts), 3),
        "share_quoting": round(sum("“" in text for text in texts) / len(texts), 3),
        "share_with_distortion": round(sum(bool(a.distortions) for a in answers) / len(texts), 3),
        "distinct_openings_of_8": {
            name: round(len({getattr(a.steps, name)[:8] for a in answers}) / len(texts), 3)
            for name in STEP_NAMES
        },
    }
    print(json.dumps(figures, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
