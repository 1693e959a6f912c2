"""All simulated figures, module by module."""

import importlib
from dataclasses import replace
from pathlib import Path

NOT_CASES = {"all_cases", "cases", "test_coverage"}
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
SLOW = {
    "distortions evaluate": (
        "F1 of a type in 3 %, 100 texts",
        "F1 of a type in 30 % of texts, 100 texts",
        "F1 of a type in 30 % of texts, 30 texts",
    ),
    "judge": (
        "kappa with people, noise judge, 5 raters",
        "corrected mean, 5 answers rated",
        "corrected mean, 5 raters of severity SD .4",
        "corrected mean, 4 raters, three of whom stopped after a third",
        "corrected mean, 30 answers rated near the ceiling",
        "alarm, one point, a share of .9",
    ),
    "compare": ("chrF2 difference on 5 questions",),
    "rate": (
        "no difference, 2 of 5 raters each question",
        "no difference, 10 raters, 5 questions, SD .2",
        "mean, 10 raters near the ceiling",
        "mean, 2 of 5 raters each question",
    ),
    "stats": ("true share by a labeller as in the paper, evaluated on 100 texts",),
    "simulate": (
        "contrast: 10 patients, one arm of three times the spread",
        "contrast: 5 patients, a quarter missing",
        "test of arms: 3 patients, no patient by arm",
        "test of arms: 20 patients, patient by arm 1",
        "test of arms: 10 patients, one arm of three times the spread",
        "test of arms: 3 patients, patient by arm 1",
    ),
    "score": (
        "BLEU zh of 10 answers",
        "chrF2 of 3 answers",
        "chrF2 of 10 answers",
    ),
    "agreement": (
        "AC, 5 raters, 30 questions, 2 systems, severity SD 0.4, near the ceiling",
        "alpha, 10 raters, 30 questions, 3 systems, severity SD 0.4",
        "alpha, 3 raters, 30 questions, 3 systems, severity SD 0.4",
    ),
}
"""By room: figures of 0.5 to 11 CPU seconds whose siblings, by the same code, stay in the suite."""
CASES = [
    replace(case, tier="bench") if case.name in SLOW.get(case.room, ()) else case
    for name in MODULES
    if name not in NOT_CASES
    for case in importlib.import_module(f"tests.coverage.{name}").CASES
]
