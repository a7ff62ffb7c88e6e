import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ir_env.degradations import degrade
from ir_env.images import load_image
from ir_env.planner import run
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from tool_actors.errors import IrEnvError
from tool_actors.learned import LearnedTool
from tool_actors.published.aodnet import AODNet
from tool_actors.published.dncnn import DnCNN
from tool_actors.published.ffdnet import FFDNet
from tool_actors.published.imdn import IMDN
from tool_actors.published.prenet import PReNet, PRNr
from tool_actors.published.rl_restore import DeepTool, SmallTool
from tool_actors.toolboxes import load_toolbox
from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing, find_weights, load_into, read_state

ASSETS = os.environ.get("IR_ENV_ASSETS")
needs_assets = pytest.mark.skipif(not ASSETS, reason="IR_ENV_ASSETS names no folder with the published weights")
NETWORKS = [
    (lambda: SmallTool(), 1, 21_827),
    (lambda: DeepTool(), 1, 50_851),
    (lambda: DnCNN(3), 1, None),
    (lambda: DnCNN(1), 1, None),
    (lambda: FFDNet(25), 1, None),
    (lambda: AODNet(), 1, 1_761),
    (lambda: PReNet(), 1, None),
    (lambda: PRNr(), 1, None),
    (lambda: IMDN(4), 4, None),
]


@pytest.mark.parametrize(("make", "scale", "parameters"), NETWORKS)
def test_random_networks_keep_shapes_and_pass_gradients(make, scale, parameters, tmp_path):
    torch.manual_seed(0)
    network = make()
    assert parameters is None or sum(value.numel() for value in network.parameters()) == parameters
    tool = LearnedTool("some.tool", "denoise", network, scale=scale, multiple=2)
    images = torch.rand(2, 3, 17, 22, requires_grad=True)
    output = tool(images)
    assert output.shape == (2, 3, 17 * scale, 22 * scale)
    output.mean().backward()
    assert images.grad.abs().sum() > 0
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    again = LearnedTool("some.tool", "denoise", load_into(make(), tmp_path / "w.safetensors"), scale=scale, multiple=2)
    assert again.spec.fingerprint == tool.spec.fingerprint and torch.equal(again(images), output)
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    assert LearnedTool("some.tool", "denoise", network, scale=scale, multiple=2).spec.fingerprint != tool.spec.fingerprint


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
    torch.save({"params": good}, tmp_path / "wrapped.pth")
    for name, words in (("cut", "not a readable"), ("nan", "e_conv1.bias holds NaN"), ("shape", "size mismatch"), ("other", "Missing key")):
        with pytest.raises(UnsupportedCheckpointError, match=rf"{name}\.safetensors.*{words}"):
            load_into(AODNet(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match=r"evil\.pth"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()
    assert set(read_state(tmp_path / "wrapped.pth")) == set(good)


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


@needs_assets
@pytest.mark.parametrize(("level", "before", "after"), [("mild", 20.03, 24.71), ("moderate", 20.10, 24.76), ("severe", 19.92, 23.42)])
def test_rl_restores_agent_reproduces_its_published_conversion(level, before, after):
    process = RestorationProcess(toolbox="rl_restore", metrics=["psnr"], reward="delta_psnr", max_steps=3, quantize="none")
    folder = Path(ASSETS) / "rl_restore" / "test"
    pairs = [[load_image(folder / f"{level}_{kind}" / f"{number}.png") for kind in ("in", "gt")] for number in (1, 2, 3, 4)]
    episodes = [process.start_image(degraded, clean) for degraded, clean in pairs]
    for _ in run(process, load_policy("rl_restore"), episodes):
        pass
    assert np.mean([episode.scores[0][0] for episode in episodes]) == pytest.approx(before, abs=0.01)
    assert np.mean([episode.scores[-1][0] for episode in episodes]) == pytest.approx(after, abs=0.05)


@needs_assets
@pytest.mark.parametrize(
    ("tool", "degradation", "severity", "gain"),
    [
        ("ffdnet.sigma25", "noise", {"kind": "gaussian", "sigma": 25}, 9.5),
        ("ffdnet.sigma50", "noise", {"kind": "gaussian", "sigma": 50}, 11),
        ("dncnn.blind", "noise", {"kind": "gaussian", "sigma": 25}, 9.5),
        ("dncnn.jpeg", "jpeg", {"quality": 20}, 0.6),
        ("prenet.rain100l", "rain", {}, 8),
        ("prn_r.rain100l", "rain", {}, 8),
        ("aodnet.dehaze", "haze", {}, 3),
    ],
)
def test_published_tools_gain_on_their_own_degradation(tool, degradation, severity, gain, photo):
    toolbox = load_toolbox("published")
    clean = np.ascontiguousarray(photo[60:188, 120:248])
    degraded = degrade(clean, degradation, 3, severity={degradation: severity}).image
    with torch.inference_mode():
        output = toolbox[tool](torch.from_numpy(degraded / np.float32(255)).permute(2, 0, 1)[None]).clamp(0, 1)
    restored = output[0].permute(1, 2, 0).numpy() * 255
    before, after = (10 * np.log10(255**2 / np.mean((image.astype(float) - clean) ** 2)) for image in (degraded, restored))
    assert after - before > gain
