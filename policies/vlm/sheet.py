"""What is seen of an image as one picture, for small models, which see one picture at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from policies.vlm.spectrum import spectrum


def sheet(seen: Mapping[str, np.ndarray], with_spectrum: bool) -> np.ndarray:
    """The overview, the glimpses and their spectrum, those that there are, from left to right.

    Args:
        seen: what a view shows (:meth:`ir_env.view.View.look`): ``overview``, uint8 (S, S, 3), and ``glimpses``, uint8 (K, S, S, 3), or
            one of them.
        with_spectrum: add :func:`policies.vlm.spectrum.spectrum` of the glimpses.

    Returns:
        uint8 (S, W, 3); W is S + K * S + S / 2.
    """
    pictures = [seen["overview"]] if "overview" in seen else []
    if "glimpses" in seen:
        pictures += [*seen["glimpses"], *([spectrum(seen["glimpses"])] if with_spectrum else [])]
    return np.concatenate(pictures, axis=1)
