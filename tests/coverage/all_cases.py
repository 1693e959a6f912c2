"""All simulated figures, module by module."""

from tests.coverage import agreement, intervals

CASES = [case for module in (agreement, intervals) for case in module.CASES]
