import pytest
import torch
from safetensors.torch import save_file

from tool_actors.published.airnet import AirNet
from tool_actors.published.promptir import PromptIR
from tool_actors.tasks import ALL_IN_ONE
from tool_actors.toolboxes import entries, load_toolbox
from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing, load_into

SMALL = {"width": 8, "blocks": (1, 1, 1, 1), "refinement": 1, "heads": (1, 2, 2, 4), "prompts": (8, 8, 16), "sizes": (8, 4, 2)}


def small_promptir():
    return PromptIR(**SMALL)


def small_airnet():
    network = AirNet(width=4, groups=1, blocks=2)
    # offsets begin at 0, and would hide whether they are used
    torch.nn.init.normal_(network.R.body[0].body[0].dgm1.dcn.conv_offset_mask.weight, std=0.1)
    return network


def test_random_networks_are_tools(check_network):
    check_network(small_promptir, multiple=8)
    check_network(small_airnet)


@pytest.mark.parametrize(
    ("make", "millions", "shapes"),
    [
        (
            PromptIR,
            35.376_967,  # and 215,296 of convolutions that nothing uses: the published 35.59 million
            {
                "patch_embed.proj.weight": (48, 3, 3, 3),
                "prompt1.prompt_param": (1, 5, 64, 64, 64),
                "prompt3.linear_layer.weight": (5, 384),
                "encoder_level1.3.attn.temperature": (1, 1, 1),
                "latent.7.ffn.project_in.weight": (2042, 384, 1, 1),
                "noise_level3.attn.qkv.weight": (2112, 704, 1, 1),
                "reduce_noise_level2.weight": (192, 320, 1, 1),
                "reduce_chan_level3.weight": (192, 288, 1, 1),
                "up4_3.body.0.weight": (384, 192, 3, 3),
                "decoder_level1.0.norm1.body.bias": (96,),
                "refinement.3.ffn.dwconv.weight": (510, 1, 3, 3),
                "output.weight": (3, 96, 3, 3),
            },
        ),
        (
            AirNet,
            7.610_377,  # and 1.32 million of the second encoder: the published 8.93 million
            {
                "R.head.0.weight": (64, 3, 3, 3),
                "R.body.4.body.4.dgm2.dcn.conv_offset_mask.weight": (27, 128, 3, 3),
                "R.body.0.body.0.dgm1.dcn.weight": (64, 64, 3, 3),
                "R.body.0.body.0.dgm1.sft.conv_gamma.2.weight": (64, 64, 1, 1),
                "R.body.0.body.5.bias": (64,),
                "R.body.5.weight": (64, 64, 3, 3),
                "R.tail.0.bias": (3,),
                "E.E.encoder_q.E_pre.backbone.1.running_mean": (64,),
                "E.E.encoder_q.E.1.shortcut.0.weight": (256, 128, 1, 1),
                "E.E.encoder_q.mlp.2.weight": (256, 256),
            },
        ),
    ],
)
def test_names_and_shapes_are_the_published_ones(make, millions, shapes):
    with torch.device("meta"):
        network = make()
    state = network.state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert sum(value.numel() for value in network.parameters()) / 1e6 == pytest.approx(millions, abs=1e-6)


def test_published_states_load_without_what_only_training_needs(tmp_path):
    torch.manual_seed(0)
    promptir, airnet = small_promptir(), small_airnet()
    lightning = {f"net.{name}": value for name, value in promptir.state_dict().items()}
    unused = {"net.chnl_reduce1.weight": torch.zeros(8, 8, 1, 1), "net.reduce_noise_channel_1.weight": torch.zeros(8, 16, 1, 1)}
    state = airnet.state_dict()
    keys = {name.replace("encoder_q", "encoder_k"): value.clone() for name, value in state.items() if "encoder_q" in name}
    save_file({**lightning, **unused}, tmp_path / "promptir.safetensors")
    save_file({**state, **keys, "E.E.queue": torch.zeros(16, 8), "E.E.queue_ptr": torch.zeros(1)}, tmp_path / "airnet.safetensors")
    for network, make in ((promptir, small_promptir), (airnet, small_airnet)):
        name = type(network).__name__.lower()
        loaded = load_into(make(), tmp_path / f"{name}.safetensors").state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in network.state_dict().items())
    with pytest.raises(UnsupportedCheckpointError, match=r"is not a AirNet: .*Missing key"):
        load_into(small_airnet(), tmp_path / "promptir.safetensors")


def test_a_prompt_is_the_mixture_that_the_features_choose():
    prompt = small_promptir().prompt3
    torch.nn.init.dirac_(prompt.conv3x3.weight)
    torch.nn.init.zeros_(prompt.linear_layer.weight)
    prompt.linear_layer.bias.data = torch.tensor([0.0, 0.0, 80.0, 0.0, 0.0])
    features = torch.rand(2, 64, 2, 2)
    mixed = prompt(features)
    assert torch.equal(mixed[:, :64], features)
    assert torch.allclose(mixed[:, 64:], prompt.prompt_param[0, 2].expand(2, -1, -1, -1), atol=1e-6)


def test_the_toolbox_says_of_each_what_is_missing(monkeypatch, tmp_path):
    for variable in ("IR_ENV_WEIGHTS", "IR_ENV_ASSETS"):
        monkeypatch.setenv(variable, str(tmp_path))
    toolbox = load_toolbox("all_in_one")
    assert toolbox.names == ["allinone.small"] and {entry.task for entry in entries("all_in_one")} == {ALL_IN_ONE}
    absent = {name: (type(error), str(error)) for name, error in toolbox.absent.items()}
    assert list(absent) == ["promptir.three", "airnet.three", "mioir.restormer", "daclip.universal", "instructir.seven", "autodir.step"]
    assert all(absent[name][0] is WeightsMissing for name in ("promptir.three", "airnet.three"))
    for name, words in (("mioir", "prompts"), ("daclip", "CLIP"), ("instructir", "instruction"), ("autodir", "Stable Diffusion")):
        kind, told = next(value for key, value in absent.items() if key.startswith(name))
        assert kind is UnsupportedCheckpointError and "unsupported: " in told and words in told
