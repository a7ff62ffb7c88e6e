import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tool_actors.errors import IrEnvError
from tool_actors.published.aodnet import AODNet
from tool_actors.toolboxes import load_toolbox
from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing, find_weights, load_into, read_state


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_bad_weight_files_are_refused_by_name_and_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = AODNet().state_dict()
    save_file(good, tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:500])
    save_file({**good, "e_conv1.bias": torch.full((3,), torch.nan)}, tmp_path / "nan.safetensors")
    save_file({**good, "e_conv1.bias": torch.zeros(5)}, tmp_path / "shape.safetensors")
    save_file({"other": torch.zeros(5)}, tmp_path / "other.safetensors")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Malicious()))
    for name, words in (("cut", "not a readable"), ("nan", "e_conv1.bias holds NaN"), ("shape", "size mismatch"), ("other", "Missing key")):
        with pytest.raises(UnsupportedCheckpointError, match=rf"{name}\.safetensors.*{words}"):
            load_into(AODNet(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match=r"evil\.pth"):
        read_state(tmp_path / "evil.pth")
    assert not Path("executed").exists()


WRAPPINGS = {
    "flat": lambda state, worse: state,
    "params": lambda state, worse: {"params": state},
    "params_ema before params": lambda state, worse: {"params": worse, "params_ema": state},
    "params-ema": lambda state, worse: {"params-ema": state},
    "state_dict, beside what a trainer keeps": lambda state, worse: {"epoch": 3, "state_dict": state, "callbacks": {}},
    "model_state_dict, beside an optimizer's": lambda state, worse: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "model": lambda state, worse: {"model": state},
    "net": lambda state, worse: {"net": state, "epoch": 3},
    "a single key of any name": lambda state, worse: {"generator": state},
    "state_dict.params": lambda state, worse: {"state_dict": {"params": state}},
    "parallel, flat": lambda state, worse: {f"module.{name}": value for name, value in state.items()},
    "parallel": lambda state, worse: {"params": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_the_state_dict_is_found_where_training_programs_put_it(wrap, tmp_path):
    state = AODNet().state_dict()
    torch.save(wrap(state, {name: torch.zeros_like(value) for name, value in state.items()}), tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth")
    assert set(found) == set(state) and all(torch.equal(found[name], value) for name, value in state.items())


def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "lr": 1e-4}, tmp_path / "log.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"log\.pth.*keys epoch, lr"):
        read_state(tmp_path / "log.pth")


def test_absent_weights_say_what_to_put_where(monkeypatch, tmp_path):
    for variable in ("IR_ENV_WEIGHTS", "IR_ENV_ASSETS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("IR_ENV_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"published/aodnet\.safetensors.*IR_ENV_WEIGHTS"):
        find_weights("published/aodnet.safetensors")
    with pytest.raises(IrEnvError, match=r"none of the 12 tools.*rl_restore/tool01"):
        load_toolbox("rl_restore")
    with pytest.raises(WeightsMissing, match="rl_restore/tool01"):
        load_toolbox(["nlm.light", "rl_restore.tool01"])
    assert load_toolbox(["nlm.light"]).names == ["nlm.light"]
    (tmp_path / "published").mkdir()
    save_file(AODNet().state_dict(), tmp_path / "published" / "aodnet.safetensors")
    assert find_weights("published/aodnet.safetensors").parent.parent == tmp_path
    published = load_toolbox("published")
    assert published.names == ["aodnet.dehaze"] and "imdn.x4" in published.absent
    with pytest.raises(WeightsMissing, match="imdn_x4"):
        published["imdn.x4"]
