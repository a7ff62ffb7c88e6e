import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tool_actors.manifest import FOLDER, Checkpoint, read_manifest
from tool_actors.packages import parse
from tool_actors.published.maxim import MAXIM, MULTIPLE, from_state
from tool_actors.published.maxim_weights import read_package
from tool_actors.spandrel_tools import recognise
from tool_actors.toolboxes import load_toolbox
from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing

GOLDEN = json.loads((Path(__file__).parent / "maxim_golden.json").read_text())
"""What the packages' graphs compute on :func:`picture`, executed node by node, by tool: each sixteenth row and column."""
SMALL = {"width": 8, "stages": 2, "groups": 1, "bottlenecks": 1}


def picture(height, width):
    """Smooth, coloured, without symmetry, float32 (height, width, 3) in [0, 1]."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return (0.5 + 0.3 * np.sin(0.13 * x * (c + 1) + 0.21 * y) + 0.15 * np.cos(0.37 * y * (3 - c) - 0.05 * x)).astype(np.float32)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return MAXIM(**SMALL).eval()


def package(state, path, damage=lambda model: None):
    """An archive as npm has it, with a graph of the nodes that take a parameter."""
    nodes, weights, values = [], [], b""
    for name, value in {**state, "stages.0.input_conv_0.epsilon": torch.tensor(1e-6)}.items():
        module, kind = name.rsplit(".", 1)
        start, *rest = module.removeprefix("stages.").split(".")
        module = "/".join([f"stage_{start}_{rest[0]}", *rest[1:]])
        if rest[0].startswith("UpSampleRatio_"):
            module = "/".join([f"UpSampleRatio_{18 * int(start) + int(rest[0].split('_')[1])}", *rest[1:]])
        if kind == "weight" and value.ndim == 4:
            operation, value = "conv2d_transpose" if "Transpose" in name else "Conv2D", value.permute(2, 3, 1, 0)
        elif kind == "weight" and value.ndim == 2:
            operation, value = "einsum/Einsum", value.T
        else:
            operation = {"weight": "jit_fn_/Mul_4", "bias": "jit_fn_/AddV2", "epsilon": "jit_fn_/AddV2"}[kind]
        nodes.append({"name": f"apply_/Wrapper/backbone/{module}/{operation}", "input": ["features", f"c{len(weights)}"]})
        weights.append({"name": f"c{len(weights)}", "shape": list(value.shape), "dtype": "float32"})
        values += value.contiguous().numpy().tobytes()
        if len(weights) == 5:
            weights.append({"name": "axis", "shape": [2], "dtype": "int32"})
            values += np.array([1, 2], np.int32).tobytes()
    shards = {"b.bin": values[: len(values) // 3], "a.bin": values[len(values) // 3 :]}
    model = {"modelTopology": {"node": nodes}, "weightsManifest": [{"paths": list(shards), "weights": weights}]}
    damage(model)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, body in {"model.json": json.dumps(model).encode(), **shards}.items():
            member = tarfile.TarInfo(f"package/models/{name}")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def test_a_random_network_is_a_tool(check_network):
    check_network(lambda: MAXIM(**SMALL), multiple=MULTIPLE)


@pytest.mark.parametrize(("stages", "parameters"), [(2, 14_170_988), (3, 22_207_605)])
def test_names_and_shapes_are_the_published_ones(stages, parameters):
    with torch.device("meta"):
        state = MAXIM(stages=stages).state_dict()
    assert sum(value.numel() for value in state.values()) == parameters
    shapes = {
        "stages.0.encoder_block_1.SplitHeadMultiAxisGmlpLayer_1.GridGmlpLayer.GridGatingUnit.Dense_0.weight": (256, 256),
        "stages.0.UpSampleRatio_0.Conv_0.weight": (128, 32, 1, 1),
        "stages.0.supervised_attention_module_2.Conv_2.weight": (128, 3, 3, 3),
        "stages.1.input_fuse_sam_2.SplitHeadMultiAxisGating_x.Dense_1.bias": (64,),
        "stages.1.global_block_1.channel_attention_block_1_0.channel_mixing.Dense_1.weight": (128, 128),
        f"stages.{stages - 1}.output_conv_0.weight": (3, 32, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_every_weight_is_used(small):
    small(torch.rand(1, 3, 64, 128)).square().mean().backward()
    assert not [name for name, value in small.named_parameters() if value.grad is None]


def test_a_package_becomes_a_tool(small, tmp_path):
    path = package(small.state_dict(), tmp_path / "maxim.tgz")
    state = read_package(path)
    assert state.keys() == small.state_dict().keys()
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in state.items())
    tool = recognise(path, "maxim.test", "denoise", note="MIT")
    assert tool.spec.scale == 1 and tool.spec.summary.startswith("MAXIM, ") and "MIT" in tool.spec.description
    images = torch.rand(1, 3, 70, 50)
    save_file(state, tmp_path / "maxim.safetensors")
    with torch.inference_mode():
        output = tool(images)
        assert output.shape == images.shape and torch.isfinite(output).all()
        assert torch.equal(output, recognise(tmp_path / "maxim.safetensors", "maxim.test", "denoise")(images))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda model: model["weightsManifest"][0]["weights"].pop(), "bytes of weights instead of"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(quantization={"dtype": "uint8"}), "quantised"),
        (lambda model: model["weightsManifest"][0]["paths"].append("c.bin"), "c.bin"),
        (lambda model: model.pop("modelTopology"), "modelTopology"),
        (lambda model: model["modelTopology"]["node"].clear(), "not a MAXIM's"),
        (lambda model: model["modelTopology"]["node"].pop(0), "no architecture that spandrel knows"),
    ],
)
def test_damaged_packages_are_refused_by_name(damage, complaint, small, tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=rf"(?s)maxim\.tgz.*{complaint}"):
        recognise(package(small.state_dict(), tmp_path / "maxim.tgz", damage), "maxim.test", "denoise")


def test_truncated_archives_and_other_states_are_refused(small, tmp_path):
    path = package(small.state_dict(), tmp_path / "maxim.tgz")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UnsupportedCheckpointError, match=r"maxim\.tgz: holds no readable"):
        read_package(path)
    state = small.state_dict()
    state.pop("stages.1.output_conv_0.bias")
    with pytest.raises(UnsupportedCheckpointError, match=r"not a MAXIM's.*output_conv_0\.bias"):
        from_state(state)


def test_the_manifest_names_packages_and_agrees_with_agenticirs():
    entries = read_manifest(FOLDER / "maxim.yaml")
    assert len(entries) == 6 and all(isinstance(entry, Checkpoint) and parse(entry.url).registry == "npm" for entry in entries)
    known = {entry.name: entry for entry in entries}
    shared = [entry for entry in read_manifest(FOLDER / "agenticir.yaml") if isinstance(entry, Checkpoint) and entry.name in known]
    assert len(shared) == 3 and all(entry == known[entry.name] for entry in shared)


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_are_those_of_the_packages(name):
    try:
        tool = load_toolbox([name])[name]
    except WeightsMissing:
        pytest.skip(f"the weights of {name} are not there: ir-env tools fetch {name}")
    height, width = GOLDEN[name]["size"]
    with torch.inference_mode():
        output = tool(torch.from_numpy(picture(height, width)).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(output[::16, ::16].numpy(), GOLDEN[name]["output"], atol=5e-5)
