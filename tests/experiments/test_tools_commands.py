"""`ir-env tools` as a user calls it."""

import json
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from experiments.cli import ir_env
from ir_env.env import RestorationEnv
from ir_env.gain_matrix import GainMatrix, measure
from tool_actors.embedded import embedded_entries
from tool_actors.toolbox import Tool, Toolbox, ToolSpec


@pytest.fixture
def nafnet(tmp_path):
    from spandrel.architectures.NAFNet import NAFNet

    torch.save(NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]).state_dict(), tmp_path / "naf.pth")
    return tmp_path / "naf.pth"


@pytest.fixture(autouse=True)
def _nothing_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IR_ENV_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("IR_ENV_ASSETS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def test_a_checkpoint_is_added_listed_shown_and_chosen(nafnet, capsys):
    assert ir_env.main(["tools", "add", "denoise", str(nafnet), "--name", "nafnet.mine", "--note", "MIT"]) == 0
    assert "NAFNet" in capsys.readouterr().out
    assert ir_env.main(["tools", "list", "user"]) == 0
    assert "nafnet.mine" in capsys.readouterr().out
    assert ir_env.main(["tools", "show", "nafnet.mine"]) == 0
    shown = capsys.readouterr().out
    assert "denoise, x1" in shown and "MIT" in shown and "fingerprint" in shown
    assert ir_env.main(["tools", "add", "denoise", str(nafnet), "--name", "nafnet.mine"]) == 2
    assert "already holds" in capsys.readouterr().err
    assert ir_env.main(["tools", "add", "denoize", str(nafnet), "--name", "nafnet.other"]) == 2
    assert "did you mean 'denoise'" in capsys.readouterr().err
    nafnet.write_bytes(nafnet.read_bytes()[:-400])
    assert ir_env.main(["tools", "show", "nafnet.mine"]) == 2
    assert "SHA-256" in capsys.readouterr().err, "a file that has changed since it was added is not loaded"


@pytest.mark.parametrize("key", ["model_state_dict", "params_ema", "params", "state_dict", "model", "net"])
@pytest.mark.parametrize(("channels", "scale"), [(3, 2), (3, 8), (1, 3)])
def test_what_training_programs_save_is_added_chosen_and_scored(key, channels, scale, tmp_path):
    from spandrel.architectures.Compact import Compact

    network = Compact(num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=2, upscale=scale)
    torch.save({key: network.state_dict(), "optimizer_state_dict": {"lr": 1e-4}}, tmp_path / "net.pth")
    assert ir_env.main(["tools", "add", "super_resolve", str(tmp_path / "net.pth"), "--name", "compact.mine"]) == 0
    env = RestorationEnv(toolbox=["compact.mine"])
    env.reset(seed=1, options={"combo": "low_resolution"})
    _, reward, *_ = env.step(env.actions.index("compact.mine"))
    assert env.episode.state.shape == (16 * scale, 16 * scale, 3) and np.isfinite(reward)


def test_absent_tools_are_listed_and_cannot_be_chosen(capsys):
    assert ir_env.main(["tools", "list", "opera"]) == 0
    assert "weights absent" in capsys.readouterr().out
    assert ir_env.main(["tools", "show", "swinir.super_resolution"]) == 2
    assert "ir-env tools fetch swinir.super_resolution" in capsys.readouterr().err
    assert ir_env.main(["tools", "show", "ifan.defocus_deblur"]) == 2
    assert "unsupported" in capsys.readouterr().err


def test_a_toolbox_is_fetched_over_http_and_used(nafnet, tmp_path, capsys):
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        entries = [
            {"name": "nafnet.far", "task": "denoise", "file": "far/naf.pth", "url": f"{address}/naf.pth"},
            {"name": "nafnet.lost", "task": "denoise", "file": "far/lost.pth", "url": f"{address}/lost.pth"},
            {"name": "nafnet.hand", "task": "denoise", "file": "far/hand.pth", "note": "ask its authors"},
        ]
        (tmp_path / "far.yaml").write_text(yaml.safe_dump(entries))
        assert ir_env.main(["tools", "fetch", str(tmp_path / "far.yaml")]) == 2
        server.shutdown()
    printed = capsys.readouterr()
    assert "nafnet.lost" in printed.err and "404" in printed.err and "by hand. ask its authors" in printed.out
    assert (tmp_path / "weights" / "far" / "naf.pth").read_bytes() == nafnet.read_bytes()
    assert ir_env.main(["tools", "show", "nafnet.far", "--toolbox", str(tmp_path / "far.yaml")]) == 0
    assert ir_env.main(["tools", "fetch", "classical"]) == 2
    assert "nothing to fetch" in capsys.readouterr().err


class Constant(Tool):
    """Adds a constant, so its gain is known."""

    def __init__(self, name, shift, scale=1):
        self.shift, self.spec = shift, ToolSpec(name, "super_resolve" if scale > 1 else "denoise", name, scale=scale)

    def __call__(self, images):
        if self.spec.scale > 1:
            return torch.nn.functional.interpolate(images, scale_factor=self.spec.scale, mode="nearest")
        return images + self.shift


def test_the_matrix_is_the_mean_gain_over_doing_nothing(tmp_path):
    toolbox = Toolbox([Constant("same.none", 0.0), Constant("lighter.all", 0.2), Constant("blocks.x4", 0, 4), Constant("blocks.x2", 0, 2)])
    matrix = measure(toolbox, degradations=["low_light", "noise", "low_resolution"], count=4, side=64)
    gain = {tool: dict(zip(matrix.degradations, row, strict=True)) for tool, row in zip(matrix.tools, matrix.gain, strict=True)}
    assert set(gain["same.none"].values()) == {0.0}
    assert gain["lighter.all"]["low_light"] > gain["lighter.all"]["noise"] + 1 and gain["lighter.all"]["noise"] < -1
    assert gain["blocks.x4"]["low_resolution"] < 0 and gain["blocks.x2"]["low_resolution"] < 0, "bicubic is better than blocks"
    assert matrix.harm("lighter.all")[0] < -1 and matrix.best("denoise") == "same.none"
    assert all(value > 0 for value in matrix.ms_per_megapixel)
    matrix.save(tmp_path / "matrix.json")
    assert GainMatrix(**json.loads((tmp_path / "matrix.json").read_text())) == matrix
    matrix.picture(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 5_000


def test_check_prints_writes_and_draws(tmp_path, capsys):
    arguments = ["tools", "check", "tv.denoise", "shift.brighten", "--count", "2", "--side", "64"]
    assert ir_env.main([*arguments, "--json", str(tmp_path / "m.json"), "--picture", str(tmp_path / "m.png")]) == 0
    assert "shift.brighten" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["tools"] == ["tv.denoise", "shift.brighten"]
    assert (tmp_path / "m.png").stat().st_size > 5_000


def test_the_default_toolbox_is_listed_without_torch_and_as_it_is():
    code = "import sys; from experiments.cli.ir_env import main; main(['tools', 'list']); print('torch' in sys.modules)"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    assert listed.endswith("False\n") and "24 tools" in listed
    for entry in embedded_entries()[::6]:
        spec = entry.build().spec
        assert (entry.name, entry.task, entry.scale, entry.summary) == (spec.name, spec.task, spec.scale, spec.summary)
