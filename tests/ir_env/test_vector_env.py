import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

import ir_env  # noqa: F401  registers the environments
from ir_env.env import RestorationEnv
from ir_env.vector_env import RestorationVectorEnv
from tool_actors.errors import IrEnvError


def make(**arguments):
    return gymnasium.make_vec("ir_env/Restoration-v0", vectorization_mode="vector_entry_point", **arguments).unwrapped


def test_spaces_and_autoreset_mode_are_what_rllib_assumes():
    env = make(num_envs=4)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert env.observation_space == batch_space(env.single_observation_space, 4)
    observation, infos = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert set(infos) == {"metrics", "sample", "combo", "group", "tool", "tool_seconds", "invalid", "error", "undefined"}
    assert all(len(value) == 4 for key, value in infos.items() if key != "metrics")


def test_it_equals_single_environments_step_by_step():
    vector, single = make(num_envs=3), RestorationEnv()
    observations, infos = vector.reset(seed=4)
    rng = np.random.default_rng(0)
    plans = [[int(rng.integers(vector.actions.n - 4)) for _ in range(3)] for _ in range(3)]
    stepped = [vector.step([plan[t] for plan in plans]) for t in range(3)]
    for i, plan in enumerate(plans):
        observation, info = single.reset(options={"sample": infos["sample"][i]})
        assert np.array_equal(observation["overview"], observations["overview"][i])
        for t, action in enumerate(plan):
            observation, reward, terminated, truncated, info = single.step(action)
            their_observation, rewards, their_terminated, their_truncated, their_infos = stepped[t]
            for key in observation:
                assert np.array_equal(observation[key], their_observation[key][i])
            assert reward == pytest.approx(rewards[i], abs=1e-6)
            assert (terminated, truncated) == (their_terminated[i], their_truncated[i])
            assert info["metrics"]["ssim_ycbcr"] == pytest.approx(their_infos["metrics"]["ssim_ycbcr"][i], abs=1e-6)
            assert info["tool"] == their_infos["tool"][i]


def test_next_step_autoreset_runs_no_tool_and_starts_the_next_sample():
    env = make(num_envs=2)
    _, first = env.reset(seed=0)
    _, _, terminated, _, last = env.step([env.actions.stop, 0])
    assert terminated.tolist() == [True, False]
    assert last["sample"][0] == first["sample"][0], "the terminal info belongs to the episode that ended"
    executed = env.process.executor.stats.requests
    observation, rewards, terminated, truncated, infos = env.step([3, env.actions.stop])
    assert env.process.executor.stats.requests == executed, "the action of the dead step is ignored"
    assert rewards[0] == 0 and not terminated[0] and not truncated[0]
    assert infos["sample"][0] != first["sample"][0] and infos["tool"][0] == "" and observation["step"][0] == 0
    assert terminated[1]


def test_one_call_per_distinct_tool_and_shape():
    env = make(num_envs=8, dataset={"combos": ["noise", "low_resolution"]})
    env.reset(seed=0)
    shapes = [episode.state.shape for episode in env.episodes]
    assert len(set(shapes)) == 2
    tools = [env.actions.index(name) for name in ("nlm.strong", "tv.denoise")]
    actions = [tools[i % 2] for i in range(8)]
    calls = env.process.executor.stats.calls
    scored = []
    score = env.process.suite.score
    env.process.suite.score = lambda *arguments: scored.append(1) or score(*arguments)
    env.step(actions)
    assert env.process.executor.stats.calls - calls == len(set(zip(actions, shapes)))
    assert len(scored) == 1, "one metric call per vector step"


def test_groups_start_from_the_same_sample_however_their_episodes_drift():
    env = make(num_envs=4, group_size=2)
    _, infos = env.reset(seed=0)
    starts = {i: [(infos["group"][i], infos["sample"][i])] for i in range(4)}
    assert infos["sample"][0] == infos["sample"][1] != infos["sample"][2] == infos["sample"][3]
    rng = np.random.default_rng(0)
    done = np.zeros(4, bool)
    for _ in range(30):
        actions = np.where(rng.random(4) < 0.5, env.actions.stop, 9)
        _, _, terminated, truncated, infos = env.step(actions)
        for i in np.flatnonzero(done):
            starts[i].append((infos["group"][i], infos["sample"][i]))
        done = terminated | truncated
    samples = {}
    for i in range(4):
        assert len(starts[i]) > 4
        for group, sample in starts[i]:
            assert samples.setdefault(group, sample) == sample
    assert len(set(samples.values())) == len(samples)
    assert {group for group, _ in starts[0][:4]} == {group for group, _ in starts[1][:4]}
    _, infos = env.reset()
    assert infos["group"][0] == infos["group"][1] and infos["sample"][0] == infos["sample"][1] not in samples.values()


def test_seeds():
    env = make(num_envs=4)
    assert (env.reset(seed=3)[1]["sample"] == env.reset(seed=3)[1]["sample"]).all()
    assert (env.reset(seed=3)[1]["sample"] != env.reset(seed=4)[1]["sample"]).any()
    fresh = env.reset()[1]["sample"]
    assert (fresh != env.reset()[1]["sample"]).any()
    assert env.reset(seed=[5, 5, 6, None])[1]["sample"][0] == env.reset(seed=[5, 9, 9, 9])[1]["sample"][0]
    with pytest.raises(IrEnvError, match="2 seeds for 4"):
        env.reset(seed=[1, 2])


def test_bad_sizes_are_refused():
    with pytest.raises(IrEnvError, match="multiple of group_size"):
        RestorationVectorEnv(num_envs=3, group_size=2)
    with pytest.raises(IrEnvError, match="reset"):
        RestorationVectorEnv(num_envs=1).step([0])
