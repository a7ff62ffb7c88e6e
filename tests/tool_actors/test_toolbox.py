import pytest

from tool_actors.errors import DuplicateToolError, IrEnvError, UnknownNameError, UnknownToolError
from tool_actors.tasks import TASKS
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox


class Invert(Tool):
    def __init__(self, name="invert.test", task="denoise"):
        self.spec = ToolSpec(name, task, fingerprint="1")

    def __call__(self, images):
        return 1 - images


def test_classical_toolbox_has_at_least_two_tools_for_each_task():
    toolbox = load_toolbox("classical")
    assert all(len(toolbox.for_task(task)) >= 2 for task in TASKS)
    assert len(set(toolbox.names)) == len(toolbox)
    assert len({tool.spec.fingerprint for tool in toolbox}) == len(toolbox)
    assert all(" ms." in tool.spec.description and tool.spec.summary for tool in toolbox), "each states its cost"


def test_names_are_unique_and_unknown_ones_are_named():
    toolbox = Toolbox([Invert()])
    with pytest.raises(DuplicateToolError, match=r"invert\.test"):
        toolbox.add(Invert())
    with pytest.raises(UnknownToolError, match=r"did you mean 'invert\.test'"):
        toolbox["invert.tset"]
    with pytest.raises(UnknownNameError, match="classical"):
        load_toolbox("clasical")
    with pytest.raises(IrEnvError, match="is no tool"):
        toolbox.add(lambda images: images)
    with pytest.raises(UnknownNameError, match="unknown task 'paint'"):
        Invert(task="paint")


@pytest.mark.parametrize("name", ["", "restormer/derain", " restormer.derain", "score:psnr", "pool:a.b"])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(IrEnvError, match="is not usable"):
        Invert(name)


def test_a_list_of_names_is_a_toolbox_in_that_order():
    toolbox = load_toolbox(["dcp.strong", "nlm.light"])
    assert toolbox.names == ["dcp.strong", "nlm.light"]
    with pytest.raises(UnknownToolError):
        load_toolbox(["nlm.lite"])


def test_plugins_come_from_entry_points_and_a_broken_one_is_named(monkeypatch):
    class Entry:
        name, value, group = "mine", "package:tools", "ir_env.tools"

        def load(self):
            return lambda: [Invert()]

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry()])
    assert load_toolbox("plugins").names == ["invert.test"]
    assert load_toolbox(["invert.test", "nlm.light"]).names == ["invert.test", "nlm.light"]

    def broken(self):
        raise ImportError("no such module")

    monkeypatch.setattr(Entry, "load", broken)
    with pytest.raises(IrEnvError, match=r"'mine'.*no such module"):
        load_toolbox("plugins")
