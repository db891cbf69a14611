from __future__ import annotations

import pytest

from brushbench.selftest import HEADER, MUTATIONS, selftest


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_damage_is_refused_and_nothing_else() -> None:
    """An identical run passes, another seed does not fail; seven kinds of damage and three mutations are refused."""
    lines, healthy = selftest(print)
    assert healthy, lines
    assert len(lines) == 9 + len(MUTATIONS)
    assert all(len(line) == len(HEADER) for line in lines)
