"""What is absent names the extra that brings it."""

import tomllib
from pathlib import Path

import pytest

from experiments.cli.common import guarded
from tool_actors.errors import IrEnvError
from tool_actors.extras import EXTRA_OF, MissingExtraError, missing_extra, need
from tool_actors.make_executor import make_executor

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture
def slim(monkeypatch):
    """As if no extra were installed."""
    monkeypatch.setattr("tool_actors.extras.find_spec", lambda name: None)


def test_every_extra_is_there_and_none_is_in_the_core():
    assert set(EXTRA_OF.values()) <= {*PROJECT["optional-dependencies"], "verl"}
    core = {"".join(letter for letter in line if letter.isalpha() or letter in "-_") for line in PROJECT["dependencies"]}
    assert not core & {*EXTRA_OF, "basicsr"}


def test_what_is_absent_names_its_extra(slim):
    with pytest.raises(MissingExtraError, match=r"needs ray.*pip install 'ir-env\[rllib\]'") as caught:
        make_executor("pool", "default")
    assert isinstance(caught.value, IrEnvError) and isinstance(caught.value, ImportError) and caught.value.name == "ray"
    with pytest.raises(MissingExtraError, match=r"'ir-env\[vlm\]'"):
        need("transformers")


def test_what_is_there_is_no_error():
    need("ray", "transformers")


def test_a_command_names_the_extra_of_what_it_could_not_import(capsys):
    def command() -> int:
        raise ModuleNotFoundError("No module named 'peft'", name="peft.tuners")

    assert guarded(command) == 2 and "pip install 'ir-env[vlm]'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        guarded(lambda: __import__("no_such_module"))
    assert missing_extra(ValueError()) is None
