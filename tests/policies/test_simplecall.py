import gymnasium
import numpy as np
import pytest
import torch

from ir_env.datasets import SynthesisedDataset
from ir_env.datasets.base import fixed_samples
from ir_env.env import RestorationEnv
from ir_env.planner import observation_of
from policies.loading import load_policy
from policies.simplecall.encoders import FrozenCLIP, SmallCNN, _Levels, _moments, _quantiles, make_encoder
from policies.simplecall.network import FORBIDDEN, TRUST, SimpleCallNetwork
from policies.simplecall.planner import ModulePlanner, NetworkPlanner
from policies.simplecall.shipped import save_policy
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import DEGRADATIONS


@pytest.fixture(scope="module")
def env():
    return RestorationEnv()


def batch(env, count=3):
    observations = [env.reset(seed=seed)[0] for seed in range(count)]
    return {key: torch.from_numpy(np.stack([observation[key] for observation in observations])) for key in observations[0]}


def test_the_network_reads_every_part_of_the_observation(env):
    torch.manual_seed(0)
    network = SimpleCallNetwork(env.actions.n, 6).eval()
    base = batch(env)
    features = network.features(base)
    logits = network.logits(features, base["action_mask"])
    assert logits.shape == (3, env.actions.n) and network.value(features).shape == (3,)
    changes = {name: 255 - base[name] for name in ("overview", "glimpses")}
    changes |= {"size": base["size"] * 3, "history": base["history"] + 1, "step": base["step"] + 1}
    for key, change in changes.items():
        assert not torch.allclose(network.features({**base, key: change}), features), key


def test_masked_actions_are_never_chosen(env):
    network = SimpleCallNetwork(env.actions.n, 6)
    base = batch(env)
    mask = torch.zeros_like(base["action_mask"])
    mask[:, -1] = 1
    logits = network.logits(network.features(base), mask)
    assert (logits[:, :-1] == FORBIDDEN).all() and logits.softmax(1)[:, -1].tolist() == [1, 1, 1]


def test_logits_begin_with_the_gains_that_the_encoder_foresees(env):
    torch.manual_seed(0)
    names = [action.tool for action in env.actions]
    without, network = SimpleCallNetwork(env.actions.n, 6), SimpleCallNetwork(env.actions.n, 6, tools=names[::-1])
    network.load_state_dict(without.state_dict())
    base = batch(env)
    base["action_mask"] = torch.ones_like(base["action_mask"])
    plain, informed = (each.logits(each.features(base), base["action_mask"]) for each in (without, network))
    gains = dict(zip(network.encoder.tools, network.encode(base)[:, -len(names) :].unbind(1), strict=True))
    expected = torch.stack([TRUST * gains[name] for name in names[::-1]] + [torch.zeros(3)], dim=1)
    torch.testing.assert_close(informed - plain, expected)
    assert SimpleCallNetwork(3, 6, tools=["my.denoise", "my.derain"]).foreseen.sum() == 0, "tools that it has never seen"


def test_the_experiment_tells_the_module_its_tools():
    from experiments.training.experiment_file import load_experiment

    config = load_experiment("experiments/simplecall_ppo.py", ["env_config.toolbox=[tv.denoise, haze.thin]"]).config
    assert config.rl_module_spec.model_config["actions"] == [["denoise", "tv.denoise"], ["dehaze", "haze.thin"]]
    env = RestorationEnv(toolbox=["tv.denoise", "haze.thin"])
    spec = config.get_rl_module_spec(spaces={"default_policy": (env.observation_space, env.action_space)}, inference_only=False)
    network = spec.build().network
    assert network.foreseen.sum(0).tolist() == [1, 1, 0]


def test_statistics_of_pictures_are_those_of_sorted_values():
    images = torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
    ordered = images.flatten(2).sort(dim=2).values
    ranks = torch.linspace(0, ordered.shape[2] - 1, 13).long()
    assert torch.equal(_quantiles(images.flatten(2), 13), ordered[..., ranks])
    mean, deviation = _moments(images)
    torch.testing.assert_close(mean, images.mean((2, 3)))
    torch.testing.assert_close(deviation, images.std((2, 3), correction=0), atol=1e-4, rtol=0)


def test_levels_are_counted_over_all_glimpses():
    glimpses = torch.zeros(1, 2, 2, 2, 3, dtype=torch.uint8)
    glimpses[0, 1] = torch.tensor([200, 100, 50], dtype=torch.uint8)
    counts = _Levels().counts(glimpses)[0]
    bright, dark, saturation = counts.split([256, 256, _Levels.SHADES])
    half = torch.log1p(torch.tensor(128.0))
    assert bright[[0, 200]].tolist() == dark[[0, 50]].tolist() == [half, half]
    assert int((bright > 0).sum()) == int((dark > 0).sum()) == 2
    assert saturation[12] == 0.75 and saturation[0] == 0 and int((saturation > 0).sum()) == 1, "shade 200 * 16 // 256"


def test_a_frozen_encoder_stays_as_it_was_trained():
    torch.manual_seed(0)
    network = SimpleCallNetwork(5, 6).train()
    pictures = torch.randint(0, 256, (8, 5, 64, 64, 3), dtype=torch.uint8)
    images = {"overview": pictures[:, 0], "glimpses": pictures[:, 1:], "size": torch.full((8, 2), 64.0)}
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    first, second = network.encode(images), network.encode({name: each[:2] for name, each in images.items()})
    torch.testing.assert_close(first[:2], second, msg="a picture's features do not depend on the batch")
    assert not first.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    learning = SimpleCallNetwork(5, 6, train_encoder=True).train()
    told = learning.encode(images)
    assert told.requires_grad and torch.equal(told, learning.encode(images)), "no dropout, no statistics of the batch"


def test_what_a_frozen_encoder_made_is_remembered_until_it_is_another(env):
    network = SimpleCallNetwork(env.actions.n, 6)
    base = batch(env, 4)
    first = network.encode(base)
    calls = []
    network.encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    swapped = {name: each[[2, 0]] for name, each in base.items()}
    assert torch.equal(network.encode(swapped), first[[2, 0]]) and not calls
    mixed = {**base, "overview": torch.cat([base["overview"][:3], 255 - base["overview"][3:]])}
    assert torch.equal(network.encode(mixed)[:3], first[:3]) and calls == [1], "the new picture alone"
    network.load_state_dict(network.state_dict())
    network.encode(base)
    state = network.state_dict()
    network.load_state_dict({**state, "encoder.present.bias": state["encoder.present.bias"] + 1})
    assert not torch.equal(network.encode(base), first)


def test_encoding_once_changes_nothing(env):
    from ray.rllib.core.columns import Columns

    from policies.simplecall.learner import EncodeOnce

    class Module:
        network = SimpleCallNetwork(env.actions.n, 6).eval()

    base = batch(env)
    columns = EncodeOnce()(rl_module={"default": Module}, batch={"default": {Columns.OBS: base}})["default"]
    assert not columns[Columns.OBS].keys() & {"overview", "glimpses"} and "overview" in base
    torch.testing.assert_close(Module.network.features(columns[Columns.OBS]), Module.network.features(base))


def recognised(encoder):
    """Share of crops with one degradation, of photographs that the encoder never saw, that it finds likeliest."""
    dataset = SynthesisedDataset(split="all", combos="single", crop_size=128)
    samples = fixed_samples(dataset, 160, 0)
    seen = [encoder.view.look([dataset.load(sample).degraded]) for sample in samples]
    with torch.no_grad():
        present, _ = encoder.told(encoder({name: torch.from_numpy(np.stack([each[name] for each in seen])) for name in seen[0]}))
    return np.mean([DEGRADATIONS[best] == sample.combo[0] for best, sample in zip(present.argmax(1).tolist(), samples, strict=True)])


def test_the_shipped_encoder_knows_degradations_on_photographs_it_never_saw():
    torch.manual_seed(0)
    assert recognised(SmallCNN(None, ["some.tool"] * 24).eval()) < 0.3
    assert recognised(SmallCNN().eval()) > 0.5  # chance is 0.125, and some crops are too flat to tell
    assert SmallCNN.WEIGHTS.stat().st_size < 2 << 20


def test_a_module_and_an_encoder_of_different_views_do_not_go_together():
    from experiments.training.experiment_file import load_experiment

    config = load_experiment("experiments/simplecall_ppo.py", ["env_config.toolbox=[tv.denoise]"]).config
    env = RestorationEnv(toolbox=["tv.denoise"], view={"overview": 32})
    spec = config.get_rl_module_spec(spaces={"default_policy": (env.observation_space, env.action_space)}, inference_only=False)
    with pytest.raises(IrEnvError, match=r"overview=32.*overview=64.*env_config.view"):
        spec.build()


@pytest.fixture(scope="module")
def module(env):
    from ray.rllib.core.rl_module import RLModuleSpec

    from policies.simplecall.rl_module import SimpleCallRLModule

    torch.manual_seed(0)
    settings = {"actions": [[action.task, action.tool] for action in env.actions]}
    return RLModuleSpec(SimpleCallRLModule, env.observation_space, env.action_space, model_config=settings).build()


def test_a_shipped_policy_decides_as_the_module_it_came_from(tmp_path, env, module):
    planner = ModulePlanner(module, "trained", {"toolbox": "default", "max_steps": 6, "dataset": {"photos": "elsewhere"}})
    save_policy(planner, tmp_path / "mine.safetensors", {"trained": {"iterations": 3}})
    shipped = load_policy(tmp_path / "mine.safetensors")
    assert shipped.name == "mine" and shipped.env_config == {"toolbox": "default", "max_steps": 6} and shipped.view == env.view
    observations = batch(env, 6)
    torch.testing.assert_close(shipped.logits(observations), planner.logits(observations), atol=0.05, rtol=0.02)
    episodes = env.process.start(fixed_samples(env.process.dataset, 6, 1))
    told = [observation_of(env.process, episode) for episode in episodes]
    assert shipped.plan_batch(told) == planner.plan_batch(told)
    stop = env.actions.stop
    assert any(action != stop for action in shipped.plan_batch(told))
    shipped.thrift = 1e6
    assert shipped.plan_batch(told) == [stop] * 6, "so thrifty that no tool is worth it"
    shipped.thrift, shipped.repeats = -1e6, 1
    for _ in range(4):
        chosen = shipped.plan_batch([observation_of(env.process, episode) for episode in episodes])
        assert all(action not in episode.applied and action != stop for action, episode in zip(chosen, episodes, strict=True))
        env.process.step(episodes, chosen)
    assert load_policy("simplecall").repeats == load_policy("simplecall_thrifty").repeats == 2
    thrifty = load_policy(f"thrifty:1.5:{tmp_path / 'mine.safetensors'}")
    assert isinstance(thrifty, NetworkPlanner) and (thrifty.name, thrifty.thrift, thrifty.repeats) == ("mine, thrifty 1.5", 1.5, 2)
    for wrong, message in (
        ("thrifty:simplecall", "write thrifty:BIAS"),
        ("thrifty:-1:simplecall", "from 0 on"),
        ("thrifty:1:mair", "no logit"),
    ):
        with pytest.raises(IrEnvError, match=message):
            load_policy(wrong)


def test_a_shipped_policy_and_another_encoder_do_not_go_together(tmp_path, module):
    save_policy(ModulePlanner(module, "trained"), tmp_path / "mine.safetensors", {})
    card = tmp_path / "mine.json"
    card.write_text(card.read_text().replace('"encoder_sha256": "', '"encoder_sha256": "0'))
    with pytest.raises(IrEnvError, match="another encoder"):
        load_policy(tmp_path / "mine.safetensors")


def test_what_is_no_shipped_policy_is_named(tmp_path, module):
    with pytest.raises(IrEnvError, match="no policy with its card"):
        load_policy(_touch(tmp_path / "bare.safetensors"))
    with pytest.raises(IrEnvError, match="SimpleCallRLModule"):
        save_policy(object.__new__(ModulePlanner), tmp_path / "x.safetensors", {})


def _touch(path):
    path.write_bytes(b"")
    return path


def test_a_frozen_clip_tower_from_a_folder(tmp_path, env):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    tower = CLIPVisionModel(config)
    tower.save_pretrained(tmp_path)
    network = SimpleCallNetwork(env.actions.n, 6, encoder="clip", encoder_options={"model": str(tmp_path)})
    assert isinstance(network.encoder, FrozenCLIP)
    assert not list(network.encoder.parameters()), "frozen weights are neither trained nor checkpointed"
    assert not any("tower" in name for name in network.state_dict())
    network.value(network.features(batch(env))).sum().backward()
    pictures = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    told = network.encoder({"overview": pictures[:, 0], "glimpses": pictures[:, 1:], "size": torch.ones(2, 2)})
    normal = (pictures.flatten(0, 1).permute(0, 3, 1, 2) / 255 - network.encoder.mean) / network.encoder.std
    expected = tower.eval()(pixel_values=normal).pooler_output.unflatten(0, (2, 3))
    assert torch.allclose(told, torch.cat([expected[:, 0], expected[:, 1:].mean(1)], dim=1), atol=1e-4)


def test_absent_clip_weights_and_unknown_encoders_are_named(tmp_path):
    with pytest.raises(IrEnvError, match=r"cannot be loaded.*encoder='cnn'"):
        make_encoder("clip", {"model": str(tmp_path / "absent")})
    with pytest.raises(UnknownNameError, match="cnn"):
        make_encoder("cmn")


def test_the_rl_module_refuses_other_environments():
    from ray.rllib.core.rl_module import RLModuleSpec

    from policies.simplecall.rl_module import SimpleCallRLModule

    spec = RLModuleSpec(SimpleCallRLModule, gymnasium.spaces.Box(0, 1, (4,)), gymnasium.spaces.Discrete(2), model_config={"encoder": "cnn"})
    with pytest.raises(IrEnvError, match="Restoration-v0"):
        spec.build()
