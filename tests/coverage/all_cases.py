"""All simulated figures, module by module."""

import importlib
from pathlib import Path

NOT_CASES = {"all_cases", "cases", "test_coverage"}
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
CASES = [
    case
    for name in MODULES
    if name not in NOT_CASES
    for case in importlib.import_module(f"tests.coverage.{name}").CASES
]
