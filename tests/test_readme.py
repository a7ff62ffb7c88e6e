"""What the README says is run."""

import re
import shlex
from pathlib import Path

from ir_env.images import load_image, save_image

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, photo):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    save_image("photo.jpg", photo)
    names: dict = {"array": photo}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["table"].row("mine").tools == 1 and names["table"].row("nothing").tools == 0
    assert load_image("better.jpg").shape == photo.shape
    assert names["strip"].ndim == 3 and "mine.soften" in names["toolbox"]


def test_the_commands_of_the_readme_exist():
    from experiments.cli import ir_env, rllib

    commands = re.sub(r"\\\n\s*", " ", README)
    for line in re.findall(r"^uv run (rllib|ir-env) (.*?)(?:#.*)?$", commands, re.MULTILINE):
        parser = {"rllib": rllib, "ir-env": ir_env}[line[0]].build_parser()
        parser.parse_args(shlex.split(line[1]))


def test_the_readme_names_no_file_that_is_not_there():
    for path in re.findall(r"`((?:experiments|policies|ir_env|tool_actors|docs)/[\w/.]+\.\w+)`", README) + re.findall(
        r"\]\((docs/[^)]+)\)", README
    ):
        assert (Path(__file__).parents[1] / path).exists(), path
