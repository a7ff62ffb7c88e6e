"""How many threads one process uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["limit_threads", "torch_threads"]


def limit_threads(count: int) -> None:
    """Let OpenCV and torch use ``count`` threads in this process.

    Both take every core by default; two such processes on two cores slow one another down several times.
    """
    import cv2
    import torch

    cv2.setNumThreads(count)
    torch.set_num_threads(count)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with ``count`` threads inside, where it is called from this thread, and with as many as before after it."""
    import torch

    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
