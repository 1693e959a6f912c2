"""What the house rules share: the parsed package, let go of after the last of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.sources import nodes_of, text_of, tree_of


@pytest.fixture(scope="package", autouse=True)
def _trees() -> Iterator[None]:
    yield
    for read in (text_of, tree_of, nodes_of):
        read.cache_clear()  # hundreds of thousands of objects
