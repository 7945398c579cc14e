"""Heat flows as it always did, to the last bit."""

import pytest
from heat import later, rod, step


@pytest.mark.portable
def test_ten_steps(golden_bits):
    """One record for all machines."""
    heat = rod(9)
    for count in range(1, 11):
        heat = step(heat)
        if count in (1, 10):
            golden_bits.check(heat, name=f"after {count}")
    assert heat.argmax() == 4


@pytest.mark.parametrize("time", [1, 10])
def test_any_time(golden_bits, time):
    """A record for each platform and time."""
    golden_bits.check(later(rod(65), time))
