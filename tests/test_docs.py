"""What the pages of docs/ say is run, and what they and the code cite is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.startswith("add_")], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, tmp_path):
    """In a process of its own: what a page adds stays added."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))
    command = [sys.executable, "page.py"]
    result = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert len(blocks) == 2 and result.returncode == 0, result.stderr


def test_the_pages_link_to_what_is_there():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
        for path in re.findall(r"`((?:experiments|policies|ir_env|tool_actors|tests)/[\w/.]+\.\w+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_code_cites_pages_and_headings_that_are_there():
    cited = 0
    for folder in ("experiments", "policies", "ir_env", "tool_actors"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            assert "DESIGN" not in text, f"{file}: cites a page that is not shipped"
            for page, heading in re.findall(r"(docs/\w+\.md)(?:, ([A-Z]\w+))?", text):
                cited += 1
                assert (ROOT / page).is_file(), f"{file}: {page}"
                assert not heading or re.search(rf"^#+ {heading}$", (ROOT / page).read_text(), re.MULTILINE), f"{file}: {heading}"
    assert cited >= 2
