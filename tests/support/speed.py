"""How fast this machine runs Python at the moment, as the measure for tests of a budget in seconds.

A busy CI machine is several times slower than the one on which a budget was set. Both the code under test and this
loop become slower there, so their ratio stays.
"""

import time

__all__ = ["budget"]

_REFERENCE = 0.028  # CPU seconds of the loop on the machine where the budgets were set (AMD EPYC, Python 3.11)


def budget(seconds: float) -> float:
    """CPU seconds that five times a budget of `seconds` takes on this machine at this moment."""
    return 5 * seconds * max(_loop() / _REFERENCE, 1)


def _loop() -> float:
    best = float("inf")
    for _ in range(3):
        begin = time.process_time()
        total = 0
        for number in range(1_000_000):
            total += number
        best = min(best, time.process_time() - begin)
    return best
