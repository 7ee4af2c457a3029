"""A function over many items by a few threads, its results in the order of the items.

The order makes sums of the results the same bits whoever was faster.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice


def in_order[T, R](function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """The result for each item, in order; at most `threads` items are in work at any time.

    Up to two results a thread wait for their turn. What the function raises comes out in its turn;
    what has not begun by then is dropped. With one thread, the caller's does it.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}: give at least 1")
    if threads == 1:
        yield from map(function, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="rntk_dist") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            waiting.extend(pool.submit(function, item) for item in islice(left, 2 * threads))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(left, 1))
        finally:
            for future in waiting:
                future.cancel()


def one_ahead[T, R](function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The result for each item, in order, the next in work while the caller has one.

    Two results are in memory at most, that of the caller included.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="rntk_dist") as pool:
        following: Future[R] | None = None
        for item in items:
            coming = pool.submit(function, item)
            if following is not None:
                yield following.result()
            following = coming
        if following is not None:
            yield following.result()


def usual_threads() -> int:
    """Threads that read and multiply tiles where nothing else is said: one a core, at most 4.

    More would only hold more tiles: four read and multiply as fast as a drive or memory gives.
    """
    return min(os.cpu_count() or 1, 4)
