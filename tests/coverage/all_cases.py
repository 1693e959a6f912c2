"""All simulated figures, module by module."""

from tests.coverage import intervals, sessions

CASES = [case for module in (intervals, sessions) for case in module.CASES]
