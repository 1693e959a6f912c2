"""All simulated figures, module by module."""

from tests.coverage import intervals, labels

CASES = [case for module in (intervals, labels) for case in module.CASES]
