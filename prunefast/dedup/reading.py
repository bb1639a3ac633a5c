"""Going through a data set in threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prunefast.data.table import worker_count
from prunefast.distributed import is_main
from prunefast.progress import progress as show_progress

_CHUNK = 64  # images a task: at some hundred microseconds each, handing a task over costs nothing


def for_each(take: Callable[[int, int], None], count: int, title: str, progress: bool) -> None:
    """Call take(start, stop) for chunks that cover 0 .. count - 1, in threads; the first error, in order, is raised."""
    progress = progress and is_main()
    starts = range(0, count, _CHUNK)
    with show_progress(title, count, "img", silent=not progress) as bar, ThreadPoolExecutor(worker_count(None)) as pool:
        try:
            for start, _ in zip(starts, pool.map(lambda s: take(s, min(s + _CHUNK, count)), starts), strict=True):
                bar.advance(min(_CHUNK, count - start))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
