"""All simulated figures, module by module."""

from tests.coverage import intervals

CASES = [case for module in (intervals,) for case in module.CASES]
