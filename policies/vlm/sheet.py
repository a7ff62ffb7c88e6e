"""What is seen of an image as one picture, for small models, which see one picture at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.vlm.spectrum import spectrum

SHORTEST, LONGEST = 32, 2048
"""Sides of an image, in pixels, whose ruler would be empty and full."""
ALIKE = 480
"""From this side on all images have the same ruler: it is there to tell small ones, and policies should not have to meet every size."""
RULER = 4
"""Width of the ruler in pixels."""


def sheet(seen: Mapping[str, np.ndarray], with_spectrum: bool) -> np.ndarray:
    """The overview, the glimpses and their spectrum, those that there are, from left to right.

    Args:
        seen: what a view shows (:meth:`ir_env.view.View.look`): ``overview``, uint8 (S, S, 3), and ``glimpses``, uint8 (K, S, S, 3), or
            one of them.
        with_spectrum: add :func:`policies.vlm.spectrum.spectrum` of the glimpses, and over its last columns, which hold next to nothing,
            the :func:`ruler` of ``size``.

    Returns:
        uint8 (S, W, 3); W is S + K * S + S / 2.
    """
    pictures = [seen["overview"]] if "overview" in seen else []
    if "glimpses" in seen:
        pictures += list(seen["glimpses"])
        if with_spectrum:
            told = spectrum(seen["glimpses"])
            told[:, -RULER:] = ruler(seen["size"], len(told))
            pictures.append(told)
    return np.concatenate(pictures, axis=1)


def ruler(size: np.ndarray, side: int) -> np.ndarray:
    """How large the whole image is, which overview and glimpses do not tell, as the height of a white bar: its longer side, by octaves.

    Args:
        size: (2,), height and width in pixels.
        side: of the picture, in pixels.

    Returns:
        uint8 (side, 1, 1).
    """
    share = np.log(min(float(np.max(size)), ALIKE) / SHORTEST) / np.log(LONGEST / SHORTEST)
    bar = np.zeros((side, 1, 1), np.uint8)
    bar[side - round(float(np.clip(share, 0.0, 1.0)) * side) :] = 255
    return bar
