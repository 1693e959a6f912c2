"""All simulated figures, module by module."""

from tests.coverage import intervals, judges

CASES = [case for module in (intervals, judges) for case in module.CASES]
