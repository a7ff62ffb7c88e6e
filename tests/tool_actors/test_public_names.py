import importlib
import pkgutil
import subprocess
import sys

import pytest

import tool_actors

MODULES = ["tool_actors", *(f"tool_actors.{module.name}" for module in pkgutil.iter_modules(tool_actors.__path__))]


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_say_what_is_public(name):
    module = importlib.import_module(name)
    assert module.__all__ and all(hasattr(module, each) for each in module.__all__)
    assert not any(each.startswith("_") for each in module.__all__)


def test_the_package_has_what_users_need_and_loads_it_when_it_is_used():
    code = (
        "import sys, tool_actors\n"
        "assert not {name for name in sys.modules if name.startswith('tool_actors.')}\n"
        "from tool_actors import *\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
        "assert ToolSpec('a.b', 'derain', '1').scale == 1 and set(tool_actors.__all__) <= set(dir(tool_actors))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="Tol"):
        tool_actors.Tol  # noqa: B018
