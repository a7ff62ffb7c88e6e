"""Random small networks stand for real checkpoints: they load through the same path."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from spandrel import ModelLoader

from tool_actors.errors import IrEnvError, UnknownToolError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.published.xrestormer import XRestormer
from tool_actors.spandrel_tools import recognise
from tool_actors.toolbox import Toolbox
from tool_actors.toolboxes import load_toolbox
from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing, file_sha256


def _swinir(scale):
    from spandrel.architectures.SwinIR import SwinIR

    tail = {"upsampler": "pixelshuffle"} if scale > 1 else {"upsampler": ""}
    return SwinIR(img_size=16, window_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 2], upscale=scale, **tail)


def _nafnet():
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])


def _hat():
    from spandrel.architectures.HAT import HAT

    return HAT(
        img_size=16,
        window_size=4,
        embed_dim=12,
        depths=[2],
        num_heads=[2],
        upscale=4,
        upsampler="pixelshuffle",
        compress_ratio=3,
        squeeze_factor=4,
    )


def _restormer():
    Restormer = pytest.importorskip("spandrel_extra_arches").architectures.Restormer.Restormer

    return Restormer(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 2, 2])


def _compact(scale, channels=(3, 3)):
    from spandrel.architectures.Compact import Compact

    return Compact(num_in_ch=channels[0], num_out_ch=channels[1], num_feat=8, num_conv=2, upscale=scale)


NETWORKS = {
    "swinir": (lambda: _swinir(1), 1),
    "swinir_x4": (lambda: _swinir(4), 4),
    "swinir_x2": (lambda: _swinir(2), 2),
    "swinir_x3": (lambda: _swinir(3), 3),
    "compact_x8": (lambda: _compact(8), 8),
    "nafnet": (_nafnet, 1),
    "hat": (_hat, 4),
    "restormer": (_restormer, 1),
}


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("wrapping", ["safetensors", "pth", "params"])
def test_a_random_network_becomes_a_tool(family, wrapping, tmp_path):
    make, scale = NETWORKS[family]
    torch.manual_seed(0)
    network = make().eval()
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    path = tmp_path / f"net.{'safetensors' if wrapping == 'safetensors' else 'pth'}"
    save_file(state, path) if wrapping == "safetensors" else torch.save({"params": state} if wrapping == "params" else state, path)
    tool = recognise(path, f"{family}.test", "super_resolve" if scale > 1 else "denoise")
    assert tool.spec.scale == scale and tool.spec.name == f"{family}.test"
    images = torch.rand(2, 3, 32, 48, requires_grad=True)
    output = tool(images)
    assert output.shape == (2, 3, 32 * scale, 48 * scale)
    with torch.no_grad():
        torch.testing.assert_close(output.detach(), network(images), atol=1e-5, rtol=0)
    output.mean().backward()
    assert images.grad.abs().sum() > 0, "co-training needs the gradient"
    assert tool(torch.rand(1, 3, 13, 7)).shape == (1, 3, 13 * scale, 7 * scale)
    assert tool.spec.fingerprint == recognise(path, "other.name", tool.spec.task).spec.fingerprint


CASES = {
    "params_ema": lambda state, worse: {"params": worse, "params_ema": state},
    "model_state_dict": lambda state, worse: {"model_state_dict": state, "optimizer_state_dict": {}},
    "params": lambda state, worse: {"params": state},
    "model": lambda state, worse: {"model": state, "epoch": 3},
    "net": lambda state, worse: {"net": state},
    "state_dict.params": lambda state, worse: {"state_dict": {"params": state}},
    "module": lambda state, worse: {f"module.{name}": value for name, value in state.items()},
}


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("wrap", CASES.values(), ids=CASES)
def test_what_spandrel_loads_becomes_a_tool_of_any_scale_that_runs(wrap, scale, tmp_path):
    torch.manual_seed(0)
    state = _compact(scale).state_dict()
    torch.save(wrap(state, _compact(scale).state_dict()), tmp_path / "net.pth")
    tool = recognise(tmp_path / "net.pth", "compact.test", "super_resolve")
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    [result] = LocalExecutor(Toolbox([tool])).run([Request(ImageState.from_pixels(image), "compact.test")])
    assert result.state.shape == (21 * scale, 30 * scale, 3)
    with torch.inference_mode():
        images = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        expected = ModelLoader().load_from_file(tmp_path / "net.pth")(images)
    assert np.abs(result.state.pixels / 255 - expected.clamp(0, 1)[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize("scale", [1, 2, 8])
def test_a_grey_network_takes_each_channel_by_itself(scale, tmp_path):
    torch.manual_seed(0)
    network = _compact(scale, channels=(1, 1)).eval()
    torch.save({"params": network.state_dict()}, tmp_path / "grey.pth")
    tool = recognise(tmp_path / "grey.pth", "grey.test", "super_resolve" if scale > 1 else "denoise")
    assert tool.spec.scale == scale
    images = torch.rand(2, 3, 12, 16)
    with torch.inference_mode():
        expected = torch.cat([network(images[:, channel : channel + 1]) for channel in range(3)], dim=1)
        torch.testing.assert_close(tool(images), expected, atol=1e-5, rtol=0)


def test_a_network_of_other_channels_is_refused_by_name(tmp_path):
    torch.save(_compact(2, channels=(4, 4)).state_dict(), tmp_path / "alpha.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"alpha\.pth: maps 4 channels to 4"):
        recognise(tmp_path / "alpha.pth", "some.tool", "super_resolve")


def test_a_prefixed_xrestormer_is_recognised(tmp_path):
    golden = json.loads((Path(__file__).parent / "published" / "xrestormer_golden.json").read_text())
    network = XRestormer(**golden["small"][0]["arguments"])
    torch.save({"params": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "x.pth")
    assert recognise(tmp_path / "x.pth", "xrestormer.test", "denoise").spec.summary.startswith("X-Restormer")


def test_the_fingerprint_follows_the_weights(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(_nafnet().state_dict(), tmp_path / f"{seed}.pth")
    first, second = (recognise(tmp_path / f"{seed}.pth", "nafnet.test", "denoise") for seed in (0, 1))
    assert first.spec.fingerprint != second.spec.fingerprint


class _Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICE"],)


def test_bad_checkpoints_are_refused_with_their_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MALICE", str(tmp_path / "ran"))
    state = _nafnet().state_dict()
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "truncated.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    torch.save({**state, "intro.weight": torch.full_like(state["intro.weight"], torch.nan)}, tmp_path / "nan.pth")
    torch.save({**state, "ending.weight": torch.zeros(3, 5, 3, 3)}, tmp_path / "misshaped.pth")
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
    with (tmp_path / "malicious.pth").open("wb") as file:
        pickle.dump({"params": _Malicious()}, file)
    for name in ("truncated", "nan", "misshaped", "unknown", "malicious"):
        with pytest.raises(UnsupportedCheckpointError, match=name):
            recognise(tmp_path / f"{name}.pth", "some.tool", "denoise")
    assert not (tmp_path / "ran").exists()


def test_a_toolbox_file_holds_names_and_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_ENV_WEIGHTS", str(tmp_path / "weights"))
    torch.save(_nafnet().state_dict(), tmp_path / "naf.pth")
    mine = {"name": "nafnet.mine", "task": "denoise", "file": "naf.pth", "sha256": file_sha256(tmp_path / "naf.pth")}
    far = {"name": "swinir.far", "task": "denoise", "file": "swinir/far.pth", "url": "https://example.org/far.pth"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(["nlm.light", mine, far]))
    toolbox = load_toolbox(tmp_path / "mine.yaml")
    assert toolbox.names == ["nlm.light", "nafnet.mine"]
    with pytest.raises(WeightsMissing, match=r"swinir\.far.*swinir/far\.pth.*ir-env tools fetch"):
        toolbox["swinir.far"]
    with pytest.raises(UnknownToolError, match=r"no\.such"):
        toolbox["no.such"]
    assert load_toolbox(toolbox.references).names == toolbox.names, "what an experiment keeps of its toolbox means the same tools"
    inline = load_toolbox(["nlm.light", {**mine, "file": str(tmp_path / "naf.pth")}])
    assert inline["nafnet.mine"].spec.fingerprint == toolbox["nafnet.mine"].spec.fingerprint
    with pytest.raises(WeightsMissing):
        load_toolbox(["nlm.light", far])
    with pytest.raises(UnsupportedCheckpointError, match="SHA-256"):
        load_toolbox([{**mine, "file": str(tmp_path / "naf.pth"), "sha256": "0" * 64}])
    (tmp_path / "user.yaml").write_text(yaml.safe_dump([{**mine, "file": str(tmp_path / "naf.pth")}]))
    monkeypatch.setenv("IR_ENV_TOOLS", str(tmp_path / "user.yaml"))
    assert load_toolbox(["nafnet.mine", "nlm.light"]).names == ["nafnet.mine", "nlm.light"], "the user's tools are known by name"
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump([{**mine, "tasks": "x"}]))
    with pytest.raises(IrEnvError, match=r"bad\.yaml, entry 1.*tasks"):
        load_toolbox(tmp_path / "bad.yaml")
