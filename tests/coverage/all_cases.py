"""All simulated figures, module by module."""

from tests.coverage import intervals, scores

CASES = [case for module in (intervals, scores) for case in module.CASES]
