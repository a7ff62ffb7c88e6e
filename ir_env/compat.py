"""The one shim: basicsr 1.4.2 imports ``torchvision.transforms.functional_tensor``, which torchvision removed in 0.17."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
import warnings

__all__ = ["import_basicsr"]


@functools.cache  # the filter of warnings is the whole process's: it is touched once
def import_basicsr():
    """``basicsr``, after putting back the one function that it looks for in the removed module."""
    name = "torchvision.transforms.functional_tensor"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        from torchvision.transforms.functional import rgb_to_grayscale

        module = types.ModuleType(name)
        vars(module).update(rgb_to_grayscale=rgb_to_grayscale)
        sys.modules[name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses names that SciPy has moved
        import basicsr

    return basicsr
