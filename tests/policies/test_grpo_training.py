"""Rollouts in groups, the learner, and the whole Algorithm, on the real environment and on one whose actions are token sequences."""

import json
import math
import os
import signal
import sys
from contextlib import contextmanager

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule

from ir_env.vector_env import RestorationVectorEnv
from policies.grpo.algorithm import GRPO
from policies.grpo.config import GRPOConfig
from policies.grpo.env_runner import GroupEnvRunner
from policies.grpo.learner import rollout_minibatches, take
from policies.grpo.rollouts import add_column, check_groups, diversity, rollout_rewards, tool_use, tools_run, valid_share
from policies.grpo.token_policy import TokenPolicy, TrainableStateModule
from policies.simplecall.rl_module import SimpleCallRLModule
from tool_actors.errors import IrEnvError, UnknownNameError

TOOLS = ["tv.denoise", "dcp.strong", "gamma.brighten"]
ENV = {"dataset": {"photos": "builtin", "crop_size": 32, "combos": "A"}, "toolbox": TOOLS, "max_steps": 3}


pytestmark = pytest.mark.usefixtures("ray_cluster")


def settings(**training):
    """A small run in ir_env/Restoration-v0: two groups of four, in this process."""
    return (
        GRPOConfig()
        .environment("ir_env:ir_env/Restoration-v0", env_config=dict(ENV))
        .env_runners(num_envs_per_env_runner=8)
        .training(**{"group_size": 4, "lr": 1e-3, "num_epochs": 2, "num_minibatches": 2, "entropy_coeff": 0.01, **training})
        .rl_module(rl_module_spec=RLModuleSpec(module_class=SimpleCallRLModule, model_config={"hidden": [32]}))
        .debugging(seed=3)
    )


@contextmanager
def running(config, **build):
    algorithm = config.build_algo(**build)
    try:
        yield algorithm
    finally:
        algorithm.stop()


def weights(algorithm):
    return algorithm.learner_group.get_weights()["default_policy"]


def update(result):
    """What an iteration was: its rollouts and its update, without the clocks."""
    learner = result["learners"]["default_policy"]
    names = ("total_loss", "entropy", "clip_fraction", "kl_update", "ratio", "sampling_gap")
    return {"grpo": result["grpo"], **{name: float(learner[name]) for name in names}}


# -- rollouts ----------------------------------------------------------------------------------------------------------------------


def test_ended_sub_environments_wait_for_the_others():
    env = RestorationVectorEnv(num_envs=2, **ENV)
    env.autoreset = False
    env.reset(seed=0)
    stop = env.actions.stop
    _, _, terminated, _, _ = env.step([stop, 0])
    assert terminated.tolist() == [True, False]
    sample = env.episodes[0].sample
    _, rewards, terminated, _, infos = env.step([0, 0])
    assert terminated.tolist() == [True, False] and rewards[0] == 0 and infos["tool"][0] == ""
    assert env.episodes[0].sample == sample and len(env.episodes[0].history) == 1 and len(env.episodes[1].history) == 2


def test_a_round_holds_whole_groups_of_whole_episodes():
    config = settings().copy()
    config.validate()
    runner = GroupEnvRunner(config=config, worker_index=0)
    rounds = [runner.sample_round((3, number))[1] for number in (0, 1, 0)]
    for episodes in rounds:
        assert len(episodes) == 8 and all(episode.is_done for episode in episodes)
        check_groups(episodes, 4)
        starts = [episode.get_infos(0)["sample"] for episode in episodes]
        assert starts[0] != starts[4], "groups differ"
    lengths = [len(episode) for episode in rounds[0]]
    assert len(set(lengths)) > 1, "episodes of several lengths, and none of them favoured"
    assert runner.env.unwrapped._counts.tolist() == [0] * 8, "nobody went on to a second episode"

    def path(episodes):
        return [(episode.get_infos(0)["sample"], episode.get_actions().tolist()) for episode in episodes]

    assert path(rounds[0]) == path(rounds[2]) != path(rounds[1]), "a round follows from its seed"
    assert len(runner.sample(num_episodes=9)) == 16, "whole rounds, also for an evaluation"
    runner.stop()


def test_broken_groups_are_noticed():
    config = settings().copy()
    config.validate()
    runner = GroupEnvRunner(config=config, worker_index=0)
    episodes = runner.sample_round((0, 0))[1]
    runner.stop()
    with pytest.raises(IrEnvError, match="begin from 2 samples"):
        check_groups([*episodes[1:], episodes[0]], 4)
    with pytest.raises(IrEnvError, match="no whole groups"):
        check_groups(episodes[:7], 4)
    with pytest.raises(IrEnvError, match="cut before its end"):
        check_groups([*episodes[:3], max(episodes[4:], key=len).slice(slice(0, 1))], 4)


def test_what_is_read_from_rollouts():
    config = settings().copy()
    config.env_config["invalid_reward"] = -0.1
    config.validate()
    runner = GroupEnvRunner(config=config, worker_index=0)
    episodes = runner.sample_round((1, 0))[1]
    runner.stop()
    names, gains = rollout_rewards(episodes, "gain")
    assert names == ["psnr", "psnry", "ssim_ycbcr", "piqe"]
    for episode, row in zip(episodes, gains, strict=True):
        first, last = episode.get_infos(0)["metrics"], episode.get_infos(-1)["metrics"]
        expected = [(1 if name != "piqe" else -1) * (last[name] - first[name]) for name in names]
        assert row.tolist() == pytest.approx(expected), "a lower piqe is better"
    _, finals = rollout_rewards(episodes, "final")
    assert finals[0].tolist() == pytest.approx([float(v) * s for v, s in zip(episodes[0].get_infos(-1)["metrics"].values(), (1, 1, 1, -1))])
    assert rollout_rewards(episodes, "return")[1][:, 0].tolist() == pytest.approx([episode.get_return() for episode in episodes])
    assert valid_share(episodes).tolist() == [1.0] * 8
    episodes[0].get_infos(-1)["invalid"] = True
    assert valid_share(episodes)[0] == pytest.approx(1 - 1 / len(episodes[0]))
    stops = [episode.get_infos(-1)["tool"] == "stop" for episode in episodes]
    assert tools_run(episodes)[1:].tolist() == [len(episode) - stop for episode, stop in zip(episodes, stops, strict=True)][1:]
    assert tools_run(episodes)[0] == len(episodes[0]) - 1, "a forbidden call runs nothing"
    assert sum(tool_use(episodes).values()) == pytest.approx(np.mean([len(episode) for episode in episodes]))
    assert diversity([episodes[0]] * 4 + [episodes[1]] * 4, 4) == 0.25


# -- the learner -------------------------------------------------------------------------------------------------------------------


def test_minibatches_are_whole_rollouts_and_leave_no_row_out():
    torch.manual_seed(0)
    rollout = torch.tensor([0] * 3 + [1] + [2] * 6 + [3] * 2 + [4])
    for count in (1, 2, 3, 9):
        minibatches = list(rollout_minibatches(rollout, count, 5))
        parts = [rows for rows, _ in minibatches]
        assert len(parts) == min(count, 5) and sum(members for _, members in minibatches) == 5
        assert sorted(torch.cat(parts).tolist()) == list(range(13)), "RLlib's would fill the last one up from the start"
        owners = [set(rollout[part].tolist()) for part in parts]
        assert sum(map(len, owners)) == 5, "no rollout is cut"


def test_columns_belong_to_their_rows():
    """Advantages, actions and observations of the train batch are of one step each, for rollouts of several lengths."""
    with running(settings()) as algorithm:
        episodes = algorithm.env_runner.sample_round((5, 0))[1]
        add_column(episodes, "advantages", np.arange(8) * 10.0)
        add_column(episodes, "rollout", np.arange(8))
        learner = algorithm.learner_group._learner
        module = learner.module["default_policy"]
        batch = learner._learner_connector(rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics)
        columns = batch["default_policy"]
        assert "encoded" in columns["obs"] and "overview" not in columns["obs"], "pictures are encoded once"
        assert len(columns["advantages"]) == sum(map(len, episodes))
        for index, episode in enumerate(episodes):
            rows = take(columns, (columns["rollout"] == index).nonzero()[:, 0])
            assert (rows["advantages"] == 10.0 * index).all()
            assert rows["actions"].tolist() == episode.get_actions().tolist()
            assert rows["obs"]["step"][:, 0].tolist() == list(range(len(episode)))
            assert rows["obs"]["history"].tolist() == [list(each) for each in episode.get_observations()["history"][:-1]]
            seen = {name: torch.from_numpy(np.array(each[:-1])) for name, each in episode.get_observations().items()}
            torch.testing.assert_close(rows["obs"]["encoded"], module.network.encode(seen), atol=1e-4, rtol=1e-4)
            with torch.no_grad():
                logp, _ = module.score_actions(rows)
            np.testing.assert_allclose(logp, episode.extra_model_outputs["action_logp"].data, atol=1e-5)


@pytest.mark.parametrize("loss_normalisation", ["grpo", "dr_grpo"])
def test_micro_batches_change_no_update(loss_normalisation):
    after = []
    for size in (None, 3):
        config = settings(micro_batch_size=size, loss_normalisation=loss_normalisation, max_rollout_tokens=3, lr=1e-2)
        with running(config) as algorithm:
            before = weights(algorithm)
            algorithm.train()
            after.append(weights(algorithm))
    assert max(np.abs(after[0][name] - before[name]).max() for name in before) > 1e-3
    for name in before:
        np.testing.assert_allclose(after[0][name], after[1][name], atol=1e-5, err_msg=name)


# -- the algorithm -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted():
    """The updates of six iterations, and the weights after them."""
    with running(settings()) as algorithm:
        updates = [update(algorithm.train()) for _ in range(6)]
        return updates, weights(algorithm)


def test_what_is_reported(uninterrupted):
    first, last = uninterrupted[0][0], uninterrupted[0][-1]
    metrics = {"psnr", "psnry", "ssim_ycbcr", "piqe"}
    assert set(first["grpo"]) == {"format_rate", "diversity", "zero_spread", "reward", "weight", "ema", "tool_use"}
    for name in ("reward", "weight", "ema"):
        assert set(first["grpo"][name]) == metrics
    weights = [set(told["grpo"]["weight"].values()) for told in uninterrupted[0]]
    assert weights[0] == {1 / 4} and any(len(later) > 1 for later in weights[1:])
    assert first["grpo"]["reward"] == first["grpo"]["ema"]
    assert set(last["grpo"]["tool_use"]) <= {*TOOLS, "stop"} and first["grpo"]["format_rate"] == 1
    assert all(0.25 <= each["grpo"]["diversity"] <= 1 for each in uninterrupted[0])
    for each in uninterrupted[0]:
        assert each["sampling_gap"] < 1e-5, "sampling and scoring give the same probabilities"
        assert 0 < each["entropy"] < math.log(4) and 0 <= each["clip_fraction"] <= 1 and each["kl_update"] > 0


def test_a_checkpoint_resumes_to_the_same_next_updates(uninterrupted, tmp_path):
    with running(settings()) as algorithm:
        for _ in range(3):
            algorithm.train()
        algorithm.save_to_path(tmp_path / "checkpoint")
    torch.manual_seed(99)
    resumed = GRPO.from_checkpoint(tmp_path / "checkpoint")
    try:
        assert [update(resumed.train()) for _ in range(3)] == uninterrupted[0][3:]
        for name, value in uninterrupted[1].items():
            np.testing.assert_array_equal(weights(resumed)[name], value, err_msg=name)
        assert resumed.iteration == 6
    finally:
        resumed.stop()


def train_until_killed(config, checkpoint: str) -> None:
    """In a process of its own: three iterations, each with a checkpoint; and death in the middle of the fourth."""
    algorithm = config.build_algo()
    for _ in range(3):
        algorithm.train()
        algorithm.save_to_path(checkpoint)
    check = algorithm._add_advantages

    def die(episodes):
        check(episodes)
        os.kill(os.getpid(), signal.SIGKILL)

    algorithm._add_advantages = die  # after MAR has seen its batch
    algorithm.train()


def test_killed_in_the_middle_of_an_iteration_the_run_goes_on_without_a_jump(uninterrupted, tmp_path, ray_cluster):
    ray_cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker cannot import a test
    checkpoint = str(tmp_path / "checkpoint")
    task = ray_cluster.remote(num_cpus=1, max_retries=0)(train_until_killed)
    with pytest.raises(ray_cluster.exceptions.WorkerCrashedError):
        ray_cluster.get(task.remote(settings(), checkpoint))
    resumed = GRPO.from_checkpoint(checkpoint)
    try:
        assert [update(resumed.train()) for _ in range(3)] == uninterrupted[0][3:]
    finally:
        resumed.stop()


def test_remote_runners_get_the_weights_and_resume_too(tmp_path):
    config = settings(rounds_per_iteration=2).env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
    with running(config) as algorithm:
        first = algorithm.train()
        assert first["env_runners"]["num_episodes"] == 16, "two rounds of eight"
        [remote] = algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.module.get_state(), local_env_runner=False)
        for name, value in weights(algorithm).items():
            np.testing.assert_array_equal(remote[name], value, err_msg=name)
        algorithm.save_to_path(tmp_path / "checkpoint")
        expected = update(algorithm.train())
        # at once: RLlib would drop the weights, since those of the update are still on their way
        algorithm.restore_from_path(tmp_path / "checkpoint")
        assert update(algorithm.train()) == expected


# -- token sequences ---------------------------------------------------------------------------------------------------------------

LENGTH, VOCABULARY, END = 5, 6, 0


class TokenEnv(gymnasium.vector.VectorEnv):
    """Two turns; in each, write the prompt's token as often as you like, then END. ``psnr`` counts right tokens, ``lpips`` wrong ones."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Dict({"prompt": gymnasium.spaces.MultiDiscrete([VOCABULARY])})
        self.single_action_space = gymnasium.spaces.MultiDiscrete([VOCABULARY] * LENGTH)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        self.prompts = np.array([np.random.default_rng(each).integers(1, VOCABULARY) for each in seed])
        self.right, self.wrong, self.turn = np.zeros(self.num_envs), np.zeros(self.num_envs), 0
        return self._observation(), self._infos()

    def step(self, actions):
        assert actions.shape == (self.num_envs, LENGTH)
        for i, tokens in enumerate(actions):
            written = tokens[: list(tokens).index(END)] if END in tokens else tokens
            self.right[i] += (written == self.prompts[i]).sum()
            self.wrong[i] += (written != self.prompts[i]).sum()
        self.turn += 1
        ends = np.full(self.num_envs, self.turn == 2)
        return self._observation(), np.zeros(self.num_envs), ends, np.zeros(self.num_envs, bool), self._infos()

    def _observation(self):
        return {"prompt": self.prompts[:, None].astype(np.int64)}

    def _infos(self):
        return {"metrics": {"psnr": self.right.copy(), "lpips": self.wrong.copy()}, "sample": self.prompts.astype(str).astype(object)}


class TokenModule(TrainableStateModule, TokenPolicy):
    """A small language model: a frozen base with dropout, the same wherever it is built, and a low-rank adapter."""

    def setup(self):
        generator = torch.Generator().manual_seed(0)
        self.prompt, self.token = (torch.nn.Embedding(VOCABULARY, 16) for _ in range(2))
        self.dropout, self.out = torch.nn.Dropout(0.5), torch.nn.Linear(32, VOCABULARY)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.requires_grad_(False)
        self.out.weight.data /= 4
        self.lora_a = torch.nn.Parameter(torch.randn(32, 8, generator=generator))
        self.lora_b = torch.nn.Parameter(torch.zeros(8, VOCABULARY))
        self.adapted = True

    def logits(self, prompt, previous):
        hidden = self.dropout(torch.cat([self.prompt(prompt).expand(*previous.shape, 16), self.token(previous)], -1))
        return self.out(hidden) + (hidden @ self.lora_a @ self.lora_b if self.adapted else 0)

    def _forward(self, batch, **kwargs):
        prompt = batch[Columns.OBS]["prompt"].long()
        tokens, logps, masks = [torch.full((len(prompt), 1), END)], [], []
        for position in range(LENGTH):
            distribution = torch.distributions.Categorical(logits=self.logits(prompt, tokens[-1])[:, 0])
            drawn = distribution.sample()
            masks.append((tokens[-1][:, 0] != END).float() * masks[-1] if position else torch.ones(len(prompt)))
            logps.append(distribution.log_prob(drawn))
            tokens.append(drawn[:, None])
        columns = {Columns.ACTIONS: torch.cat(tokens[1:], 1), Columns.ACTION_LOGP: torch.stack(logps, 1)}
        return {**columns, "token_mask": torch.stack(masks, 1)}

    def score_actions(self, batch):
        actions = batch[Columns.ACTIONS].long()
        previous = torch.cat([torch.full((len(actions), 1), END), actions[:, :-1]], 1)
        distribution = torch.distributions.Categorical(logits=self.logits(batch[Columns.OBS]["prompt"].long(), previous))
        return distribution.log_prob(actions), distribution.entropy()

    @contextmanager
    def reference(self):
        self.adapted = False
        try:
            yield
        finally:
            self.adapted = True


def token_settings(**training):
    from ray import tune

    tune.register_env("tokens", lambda arguments: TokenEnv(**arguments))
    return (
        GRPOConfig()
        .environment("tokens")
        .env_runners(num_envs_per_env_runner=32)
        .training(**{"group_size": 8, "lr": 0.03, "num_epochs": 2, "micro_batch_size": 10, "kl_coeff": 0.01, **training})
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TokenModule))
        .debugging(seed=0)
    )


def test_token_sequences_are_learned(tmp_path):
    with running(token_settings()) as algorithm:
        before = {name: value.clone() for name, value in algorithm.get_module().state_dict().items()}
        updates = [algorithm.train() for _ in range(25)]
        right = [each["grpo"]["reward"]["psnr"] for each in updates]
        assert np.mean(right[-3:]) > 2 * np.mean(right[:3]) > 0, right
        for each in updates:
            learner = each["learners"]["default_policy"]
            assert learner["sampling_gap"] < 1e-5, "no dropout in the ratio, in spite of a dropout of one half"
        divergences = [float(each["learners"]["default_policy"]["kl_reference"]) for each in updates]
        assert 0 <= divergences[0] < 0.1 < divergences[-1]

        state = algorithm.learner_group.get_weights()["default_policy"]
        assert set(state) == {"lora_a", "lora_b"}, "only these are sent and saved"
        after = algorithm.get_module().state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("lora"))
        np.testing.assert_array_equal(after["lora_b"], state["lora_b"])
        assert state["lora_b"].any()
        algorithm.save_to_path(tmp_path)
        module = RLModule.from_checkpoint(tmp_path / "learner_group/learner/rl_module/default_policy")
        assert all(torch.equal(module.state_dict()[name], after[name]) for name in after)
        with pytest.raises(IrEnvError, match="missing \\['lora_b'\\]"):
            module.set_state({"lora_a": state["lora_a"]})


@pytest.mark.parametrize("options", [{"advantage": "gdpo"}, {"advantage": "grpo", "metric_weights": {"psnr": 1.0, "lpips": 0.5}}])
def test_the_other_advantages_train_as_well(options):
    with running(token_settings(**options, format_weight=0.1, economy_weight=0.1, num_epochs=1)) as algorithm:
        result = algorithm.train()
        assert result["grpo"]["weight"] == {"psnr": 1.0, "lpips": options.get("metric_weights", {}).get("lpips", 1.0)}
        assert "ema" not in result["grpo"] and result["learners"]["default_policy"]["total_loss"] != 0


# -- mistakes ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"group_size": 3}, "whole groups"),
        ({"group_size": 1}, "at least 2"),
        ({"loss_normalisation": "dr_grpo"}, "max_rollout_tokens"),
        ({"loss_normalisation": "dr_grop"}, "did you mean 'dr_grpo'"),
        ({"advantage": "dgpo"}, "unknown advantage mode 'dgpo'"),
        ({"rewards": "gains"}, "did you mean 'gain'"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"old_logprobs": "learned"}, "did you mean 'learner'"),
    ],
)
def test_bad_settings_are_named(training, words):
    with pytest.raises((IrEnvError, UnknownNameError), match=words):
        settings(**training).validate()


def test_bad_combinations_are_named():
    with pytest.raises(IrEnvError, match="9 learners cannot share 8 rollouts"):
        settings().learners(num_learners=9).validate()
    with pytest.raises(IrEnvError, match="processes of their own"):
        settings(fully_shard=True).validate()
    config = settings()
    config.env_config["group_size"] = 2
    with pytest.raises(IrEnvError, match="differ in group_size, 2 and 4"):
        config.validate()


def test_a_module_without_what_grpo_needs_is_named():
    with running(settings(kl_coeff=0.1)) as algorithm, pytest.raises(IrEnvError, match="no reference policy"):
        algorithm.train()
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule

    config = GRPOConfig().environment("CartPole-v1").env_runners(num_envs_per_env_runner=8, gym_env_vectorize_mode="sync")
    with pytest.raises(IrEnvError, match="TokenPolicy"):
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=DefaultPPOTorchRLModule)).build_algo()


def test_a_failure_in_the_environment_is_named(monkeypatch):
    with running(settings()) as algorithm:
        monkeypatch.setattr(algorithm.env_runner.env.unwrapped, "step", lambda actions: 1 / 0)
        with pytest.raises(IrEnvError, match=r"(?s)env runner 0 failed in a round:.*ZeroDivisionError"):
            algorithm.train()


def test_the_result_is_what_tensorboard_can_show(uninterrupted):
    flat = json.loads(json.dumps(uninterrupted[0][-1], default=float))
    assert all(math.isfinite(value) for value in flat["grpo"]["reward"].values())
