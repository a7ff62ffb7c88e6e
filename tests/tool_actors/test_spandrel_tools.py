"""Random small networks stand for real checkpoints: they load through the same path."""

import os
import pickle

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tool_actors.errors import IrEnvError, UnknownToolError
from tool_actors.spandrel_tools import recognise
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


NETWORKS = {
    "swinir": (lambda: _swinir(1), 1),
    "swinir_x4": (lambda: _swinir(4), 4),
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
