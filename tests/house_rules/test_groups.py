"""Tests of one group are run by one process: their fixtures are made once."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("groups")
def test_the_process_that_hands_out_tests_sees_their_groups(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", False):
        pytest.skip("not run by several processes in groups")
    assert request.node.nodeid.endswith("@groups")
