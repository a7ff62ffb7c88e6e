"""What holds for every environment that is registered."""

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import ir_env  # noqa: F401  registers the environments

IDS = [name for name in gymnasium.registry if name.startswith("ir_env/")]


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*display.*")
        yield


def test_there_are_some():
    assert "ir_env/Restoration-v0" in IDS


def rollout(env, seed, steps=10):
    """All but times that a seeded random agent sees, over more than one episode; Gymnasium's passive checker looks on."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    seen = [(observation, info)]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        seen.append((observation, reward, terminated, truncated, info))
        if isinstance(env, gymnasium.Env) and (terminated or truncated):
            seen.append(env.reset())
    for *_, info in seen:
        info.pop("tool_seconds", None)
    return seen


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def make_vec(env_id):
    return gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point")


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_accepts_it(env_id):
    check_env(gymnasium.make(env_id).unwrapped)


@pytest.mark.parametrize("make", [gymnasium.make, make_vec])
@pytest.mark.parametrize("env_id", IDS)
def test_the_same_seed_gives_the_same_episodes_in_two_instances(env_id, make):
    first = rollout(make(env_id), 3)
    assert same(first, rollout(make(env_id), 3)) and not same(first, rollout(make(env_id), 4))


@pytest.mark.parametrize("make", [gymnasium.make, make_vec])
@pytest.mark.parametrize("env_id", IDS)
def test_a_pickled_one_is_the_same_environment(env_id, make):
    env = make(env_id)
    env.reset(seed=0)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.observation_space == env.observation_space and copy.action_space == env.action_space
    assert same(rollout(copy, 5), rollout(env, 5))


@pytest.mark.parametrize("env_id", IDS)
def test_the_vector_form_has_the_spaces_and_info_of_the_single_one(env_id):
    single, vector = gymnasium.make(env_id), make_vec(env_id)
    assert vector.single_observation_space == single.observation_space and vector.single_action_space == single.action_space
    (observation, info), (observations, infos) = single.reset(seed=0), vector.reset(seed=0)
    assert observations in vector.observation_space and observation in single.observation_space
    assert info.keys() == infos.keys() and all(len(value) == 2 for value in infos.values() if not isinstance(value, dict))
    for key, value in infos.items():
        if isinstance(value, dict):
            assert info[key].keys() == value.keys() and all(len(each) == 2 for each in value.values())


@pytest.mark.parametrize("env_id", IDS)
def test_masks_are_there_for_maskable_ppo(env_id):
    """sb3-contrib asks ``has_attr`` and ``env_method`` of SB3's vector environment, and takes an array of bools."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: gymnasium.make(env_id)])
    envs.seed(0)
    observation = envs.reset()
    assert envs.has_attr("action_masks")
    [mask] = envs.env_method("action_masks")
    discrete = isinstance(envs.action_space, gymnasium.spaces.Discrete)
    # of several choices, those of one after those of another
    length = envs.action_space.n if discrete else envs.action_space.nvec.sum()
    assert mask.dtype == bool and mask.shape == (length,)
    if discrete:
        assert np.array_equal(mask, observation["action_mask"][0])
    vector = make_vec(env_id).unwrapped
    vector.reset(seed=0)
    masks = vector.action_masks()
    assert masks.dtype == bool and masks.shape == (2, length)


@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines_checker_and_ppo_accept_it(env_id):
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env as sb3_check

    warnings.simplefilter("default")
    env = gymnasium.make(env_id)
    sb3_check(env.unwrapped)
    model = PPO("MultiInputPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action if action.shape else int(action))
