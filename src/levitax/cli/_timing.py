import statistics
import time
from collections.abc import Callable
from typing import Any


def median_seconds(call: Callable[[], Any], seconds: float) -> float:
    """The median of the calls in this time, and of at least five."""
    times, stop = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
