"""The vision-language policy under RLlib: its tokens are the actions, and what they mean goes to the environment."""

from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec

from ir_env.actions import MALFORMED, ActionTable
from ir_env.planner import run
from ir_env.vector_env import RestorationVectorEnv
from policies.grpo.config import GRPOConfig
from policies.loading import load_checkpoint
from policies.vlm.engines import ContinuousEngine, make_engine
from policies.vlm.model import VisionLanguageModel
from policies.vlm.planner import PolicySettings, VLMPlanner
from policies.vlm.rl_module import VLMRLModule
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "dcp.strong", "gamma.brighten"]
ENV = {"dataset": {"photos": "builtin", "crop_size": 64, "combos": "A"}, "toolbox": TOOLS, "max_steps": 2}
ACTIONS = [["denoise", "tv.denoise"], ["dehaze", "dcp.strong"], ["brighten", "gamma.brighten"]]
MAX_TOKENS = 16

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a nano model that writes well-formed answers, whichever, most of the time."""
    settings = PolicySettings.of("nano")
    prompter = settings.prompter(ActionTable(load_toolbox(TOOLS)))
    vlm = VisionLanguageModel.load("nano", prompter)
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(vlm.model.parameters(), 2e-3)
    answers = [prompter.answer(action) for action in range(4)]
    for step in range(60):
        sheets = rng.integers(0, 256, (8, 64, 352, 3), np.uint8)
        prompts = vlm.encode([prompter.messages([sheet], (i % 3,) * (i % 2)) for i, sheet in enumerate(sheets)])
        tokens, mask = vlm.encode_answers([answers[(i + step) % 4] for i in range(8)])
        optimiser.zero_grad()
        (-vlm.logprobs(prompts, tokens, mask).sum(1).mean()).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("nano")
    vlm.save(folder)
    settings.after("rain+noise").save(folder)
    return folder


def settings(model, training=None, **model_config):
    model_config = {"model": str(model), "actions": ACTIONS, "max_tokens": MAX_TOKENS, "batch": 5, **model_config}
    return (
        GRPOConfig()
        .environment("ir_env:ir_env/Restoration-v0", env_config=dict(ENV))
        .env_runners(num_envs_per_env_runner=8)
        .training(**{"group_size": 4, "lr": 1e-4, "num_epochs": 2, "micro_batch_size": 4, "format_weight": 0.5, **(training or {})})
        .rl_module(rl_module_spec=RLModuleSpec(module_class=VLMRLModule, model_config=model_config))
        .debugging(seed=3)
    )


@contextmanager
def running(config):
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def module_of(model, view=None, **model_config):
    env = RestorationVectorEnv(num_envs=3, view=view, **ENV)
    config = {"model": str(model), "actions": ACTIONS, "max_tokens": MAX_TOKENS, **model_config}
    module = VLMRLModule(observation_space=env.single_observation_space, action_space=env.single_action_space, model_config=config)
    observations, _ = env.reset(seed=0)
    return module, {Columns.OBS: {name: torch.from_numpy(np.asarray(value)) for name, value in observations.items()}}


def test_answers_are_actions_and_score_as_they_were_sampled(taught):
    module, batch = module_of(taught)
    torch.manual_seed(0)
    output = module.forward_exploration(batch)
    tokens, mask = output[Columns.ACTIONS], output["token_mask"]
    assert tokens.shape == output[Columns.ACTION_LOGP].shape == mask.shape == (3, MAX_TOKENS)
    texts = [module.vlm.tokenizer.decode(row[kept > 0], skip_special_tokens=True) for row, kept in zip(tokens, mask, strict=True)]
    for text, action in zip(texts, output[Columns.ACTIONS_FOR_ENV].tolist(), strict=True):
        assert text == module.prompter.answer(action)
    logp, entropy = module.score_actions({**batch, **output})
    torch.testing.assert_close(logp, output[Columns.ACTION_LOGP], atol=1e-5, rtol=0)
    assert (entropy[mask > 0] > 0).any() and (entropy[mask == 0] == 0).all() and (logp[mask == 0] == 0).all()
    greedy = module.forward_inference(batch)
    assert torch.equal(greedy[Columns.ACTIONS], module.forward_inference(batch)[Columns.ACTIONS]), "no chance in inference"


def test_an_untrained_model_writes_malformed_answers(taught):
    module, batch = module_of("nano")
    assert set(module.forward_exploration(batch)[Columns.ACTIONS_FOR_ENV].tolist()) == {MALFORMED}


def test_the_history_and_the_image_reach_the_model(taught):
    module, batch = module_of(taught)
    answers = module.forward_inference(batch)
    scored = module.score_actions({**batch, **answers})[0]
    observation = batch[Columns.OBS]
    history = observation["history"].clone()
    history[:, 0] = 1
    changes = {"overview": 255 - observation["overview"], "glimpses": 255 - observation["glimpses"], "history": history}
    for name, value in changes.items():
        step = {"step": observation["step"] + 1} if name == "history" else {}
        changed = {Columns.OBS: {**observation, name: value, **step}}
        assert not torch.allclose(module.score_actions({**changed, **answers})[0], scored, atol=1e-4), name
    longer = {Columns.OBS: {**observation, "step": observation["step"] + 1}}
    assert "malformed" in str(module.prompter.messages([np.zeros((64, 352, 3), np.uint8)], [MALFORMED])[1])
    assert not torch.allclose(module.score_actions({**longer, **answers})[0], scored, atol=1e-4), "a malformed step is part of the history"


def test_grpo_trains_it_and_its_checkpoint_is_a_planner(taught, tmp_path):
    with running(settings(taught)) as algorithm:
        before = {name: value.clone() for name, value in algorithm.get_module().state_dict().items()}
        results = [algorithm.train() for _ in range(2)]
        for result in results:
            told, learner = result["grpo"], result["learners"]["default_policy"]
            assert learner["sampling_gap"] < 1e-5 and learner["entropy"] > 0
            assert 0.3 < told["format_rate"] <= 1 and told["diversity"] > 0.25
            assert {"psnr", "ssim_ycbcr", "piqe"} <= set(told["reward"])
        after = algorithm.get_module().state_dict()
        changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
        assert any(".visual." in name for name in changed) and any(".language_model." in name for name in changed)
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
        third = algorithm.train()
        planner = load_checkpoint(tmp_path / "checkpoint")
    assert isinstance(planner, VLMPlanner) and planner.toolbox == TOOLS
    assert planner.trained_combos == ("rain+noise",) and planner.env_config["dataset"]["combos"] == "A", "both stages are told of"
    env = RestorationVectorEnv(num_envs=2, **ENV)
    env.reset(seed=0)
    for _ in run(env.process, planner, env.episodes):
        pass
    assert all(episode.done for episode in env.episodes) and planner.counts["answers"] >= 2

    with running(settings(taught)) as resumed:
        resumed.restore_from_path(str(tmp_path / "checkpoint"))
        again = resumed.train()
    for name in ("reward", "tool_use"):
        assert dict(again["grpo"][name]) == pytest.approx(dict(third["grpo"][name])), "the resumed run samples what the first one did"
    assert again["learners"]["default_policy"]["entropy"] == pytest.approx(third["learners"]["default_policy"]["entropy"], rel=1e-5)


def test_an_adapter_is_all_that_travels_and_off_it_is_the_reference(taught):
    module, batch = module_of(taught, lora={"r": 4, "target_modules": ["q_proj", "v_proj"]})
    assert module.get_state() and all("lora" in name for name in module.get_state())
    answers = module.forward_inference(batch)
    untouched = module.score_actions({**batch, **answers})[0]
    state = {name: np.full_like(value, 0.1) for name, value in module.get_state().items()}
    module.set_state(state)
    assert not torch.allclose(module.score_actions({**batch, **answers})[0], untouched, atol=1e-3)
    with module.reference():
        torch.testing.assert_close(module.score_actions({**batch, **answers})[0], untouched, atol=1e-5, rtol=0)
    config = settings(taught, {"kl_coeff": 0.1}, lora={"r": 4, "target_modules": ["q_proj", "v_proj"]})
    with running(config) as algorithm:
        first, second = (algorithm.train()["learners"]["default_policy"] for _ in range(2))
        assert second["kl_reference"] > 0
        assert first["sampling_gap"] < 1e-5
        weights = algorithm.env_runner_group.local_env_runner.module.get_state()
        assert weights and all("lora" in name for name in weights)


def test_a_copy_is_the_reference_of_a_model_that_is_trained_whole(taught):
    module, batch = module_of(taught, keep_reference=True)
    answers = module.forward_inference(batch)
    untouched = module.score_actions({**batch, **answers})[0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)
    assert not torch.allclose(module.score_actions({**batch, **answers})[0], untouched, atol=1e-3)
    with module.reference():
        torch.testing.assert_close(module.score_actions({**batch, **answers})[0], untouched, atol=1e-5, rtol=0)
    assert len(module.get_state()) == sum(1 for _ in module.model.parameters()), "the copy is neither stored nor sent"
    with pytest.raises(IrEnvError, match="keep_reference"), module_of(taught)[0].reference():
        pass


def test_recomputed_activations_change_no_gradient(taught):
    gradients = []
    for checkpointing in (False, True):
        module, batch = module_of(taught, gradient_checkpointing=checkpointing, train_vision=False)
        module.eval()
        answers = module.forward_inference(batch)
        module.score_actions({**batch, **answers})[0].sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
        assert not module.model.training
    assert gradients[0].keys() == gradients[1].keys() and not any(".visual." in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [2, 64])
def test_continuous_batching_writes_what_generate_does(taught, batch):
    module, batch_of_three = module_of(taught)
    chats, _ = module._chats(batch_of_three[Columns.OBS])
    prompter = module.prompter
    sheet = np.full((64, 352, 3), 90, np.uint8)
    # prompts and answers of several lengths, two of them to one prompt
    chats = [*chats, prompter.messages([sheet], ()), prompter.messages([sheet], (0, 1)), prompter.messages([sheet], (2,))]
    rows = [0, 3, 4, 4, 5, *range(1, len(chats))][:7]
    engines = [make_engine(name, module.vlm, MAX_TOKENS, batch) for name in ("generate", "continuous")]
    one, other = (engine.answer(chats, rows, 0.0) for engine in engines)
    assert one.texts == other.texts and torch.equal(one.tokens, other.tokens) and torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    drawn = engines[1].answer(chats, rows, 1.5)
    assert len(set(drawn.mask.sum(1).tolist())) > 1, "some ended before others"
    scored = module.vlm.logprobs(module.vlm.encode([chats[row] for row in rows]), drawn.tokens, drawn.mask, 1.5)
    torch.testing.assert_close(drawn.logprobs, scored, atol=1e-5, rtol=0)


def test_a_policy_samples_with_the_engine_that_it_names(taught):
    module, batch = module_of(taught, engine="continuous")
    greedy = module.forward_inference(batch)[Columns.ACTIONS]
    assert isinstance(module.engine, ContinuousEngine)
    assert torch.equal(greedy, module_of(taught)[0].forward_inference(batch)[Columns.ACTIONS])


def test_engines_that_are_not_there_are_named(taught):
    with pytest.raises(UnknownNameError, match="did you mean 'continuous'"):
        module_of(taught, engine="continous")
    module, batch = module_of(taught, engine="generate", engine_options={"dtype": "float32"})
    with pytest.raises(IrEnvError, match="engine_options are those of the engine 'vllm'"):
        module.forward_inference(batch)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="it is installed")
def test_without_vllm_its_engine_says_what_to_do(taught):
    module, batch = module_of(taught, engine="vllm")
    with pytest.raises(IrEnvError, match="needs vLLM, which is not installed"):
        module.forward_inference(batch)


def test_bfloat16_travels_bit_by_bit(taught):
    module, _ = module_of(taught, dtype="bfloat16")
    state = module.get_state()
    assert {value.dtype.name for value in state.values()} == {"uint16"}
    other, _ = module_of(taught, dtype="bfloat16")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.set_state(state)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(module.parameters(), other.parameters(), strict=True))


def test_bad_settings_are_named(taught):
    with pytest.raises(IrEnvError, match=r"model_config\['model'\]"):
        module_of("")
    with pytest.raises(IrEnvError, match="names 1 tools, and the environment has 3"):
        module_of(taught, actions=ACTIONS[:1])
    with pytest.raises(IrEnvError, match=r'trained with another view \({"overview": 64, .*Set env_config.view'):
        module_of(taught, view={"glimpses": 2})
