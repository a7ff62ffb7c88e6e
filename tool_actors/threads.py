"""How many threads one process uses."""

from __future__ import annotations

__all__ = ["limit_threads"]


def limit_threads(count: int) -> None:
    """Let OpenCV and torch use ``count`` threads in this process.

    Both take every core by default; two such processes on two cores slow one another down several times.
    """
    import cv2
    import torch

    cv2.setNumThreads(count)
    torch.set_num_threads(count)
