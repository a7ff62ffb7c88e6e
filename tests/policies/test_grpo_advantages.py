import numpy as np
import pytest
import torch

from policies.grpo.advantages import AdvantageEstimator, AdvantageOptions, MARState, group_normalise
from tool_actors.errors import IrEnvError, UnknownNameError


def estimate(rewards, names=("psnr", "ssim"), extra=None, extra_weights=(), **options):
    return AdvantageEstimator(AdvantageOptions(**options), names[: np.shape(rewards)[2]])(rewards, extra, extra_weights)


def test_mar_weights_and_running_means_by_hand():
    state = MARState(clip=0.2, beta=0.1, floor=1e-3)
    first = np.array([20.0, -0.2])
    np.testing.assert_allclose(state.weights(first), [0.5, 0.5], err_msg="the first batch weighs uniformly")
    state.update(first)
    np.testing.assert_allclose(state.mean, [20.0, -0.2])
    second = np.array([19.0, -0.1])
    # psnr fell by 5 %: w̃ = 1 + 0.05. The negative metric rose by half of |m|, clipped to 0.2: w̃ = 1 - 0.2.
    # softmax(1.05, 0.8) = 1 / (1 + e^-0.25), 1 / (1 + e^0.25)
    np.testing.assert_allclose(state.weights(second), [0.56217650, 0.43782350], atol=1e-8)
    state.update(second)
    np.testing.assert_allclose(state.mean, [0.9 * 20 + 0.1 * 19, 0.9 * -0.2 + 0.1 * -0.1])


def test_a_running_mean_of_zero_is_divided_by_the_floor():
    state = MARState(clip=0.2, beta=0.5, floor=0.01)
    state.update(np.zeros(2))
    # deviations 0.001 / 0.01 = 0.1 and -5 / 0.01, clipped: w̃ = 0.9, 1.2
    np.testing.assert_allclose(state.weights(np.array([0.001, -5.0])), np.exp([0.9, 1.2]) / np.exp([0.9, 1.2]).sum())


def test_mar_advantages_by_hand():
    """Two batches of one group of three rollouts and two metrics, equations 5 to 9 without an epsilon."""
    estimator = AdvantageEstimator(AdvantageOptions(std_epsilon=0.0), ("psnr", "gmsd"))
    first = estimator([[[19.0, -0.3], [20.0, -0.2], [21.0, -0.1]]])
    # both are (-1, 0, 1) once normalised, and weigh 0.5
    np.testing.assert_allclose(first.advantages, [[-1.0, 0.0, 1.0]], atol=1e-12)
    second = estimator([[[18.0, -0.1], [20.0, -0.2], [19.0, 0.0]]])
    assert second.batch_mean.tolist() == pytest.approx([19.0, -0.1])
    assert second.weights.tolist() == pytest.approx([0.56217650, 0.43782350])
    assert second.running_mean.tolist() == pytest.approx([19.9, -0.19])
    # psnr is (-1, 1, 0) once normalised, gmsd (0, -1, 1)
    np.testing.assert_allclose(second.advantages, [[-0.56217650, 0.12435300, 0.43782350]], atol=1e-8)


def test_one_metric_always_weighs_one():
    estimator = AdvantageEstimator(AdvantageOptions(std_epsilon=0.0), ("psnr",))
    for rewards in ([[[1.0], [3.0]]], [[[-7.0], [5.0]]]):
        result = estimator(rewards)
        assert result.weights.tolist() == [1.0]
        np.testing.assert_allclose(result.advantages, [[-np.sqrt(0.5), np.sqrt(0.5)]])


@pytest.mark.parametrize("mode", ["grpo", "mar", "gdpo"])
@pytest.mark.parametrize("std_epsilon", [0.0, 1e-4])
def test_a_group_without_spread_gets_exactly_zero(mode, std_epsilon):
    # the mean of three 0.1s is not 0.1 in floating point
    same, spread = [[0.1, 20.0]] * 3, [[0.1, 20.0], [0.2, 20.0], [0.3, 21.0]]
    advantages = estimate([same, spread], mode=mode, std_epsilon=std_epsilon).advantages
    assert np.isfinite(advantages).all() and np.ptp(advantages[1]) > 1
    assert np.abs(advantages[0]).max() < 1e-12
    assert (estimate([same, same], mode=mode, std_epsilon=std_epsilon).advantages == 0).all()
    assert (estimate([[[1.0, 2.0]]], mode=mode, std_epsilon=std_epsilon).advantages == 0).all(), "a group of one"


def trl(rewards, weights, aggregation):
    """TRL 0.29's two ways from rewards (N, K) to advantages, in its own words (`GRPOTrainer._generate_and_score_completions`)."""
    group = rewards.shape[1]
    flat, weights = torch.tensor(rewards).flatten(0, 1), torch.tensor(weights)
    if aggregation == "sum_then_normalize":
        summed = (flat * weights).sum(1)
        mean = summed.view(-1, group).mean(1).repeat_interleave(group)
        return (summed - mean) / (summed.view(-1, group).std(1).repeat_interleave(group) + 1e-4)
    grouped = flat.view(-1, group, flat.shape[1])
    normal = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    summed = (normal.view(-1, flat.shape[1]) * weights).sum(1)
    return (summed - summed.mean()) / (summed.std() + 1e-4)


@pytest.mark.parametrize(("mode", "aggregation"), [("gdpo", "normalize_then_sum"), ("grpo", "sum_then_normalize")])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_trl_on_random_rewards(mode, aggregation, seed):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(4, 6, 3)) * [10.0, 0.1, 0.01] + [20.0, -0.5, 0.0]
    weights = rng.uniform(0.1, 2.0, 3)
    names = ("psnr", "ssim", "gmsd")
    ours = estimate(rewards, names, mode=mode, weights=dict(zip(names, weights, strict=True))).advantages
    np.testing.assert_allclose(ours.reshape(-1), trl(rewards, weights, aggregation).numpy(), atol=1e-6)


def test_the_ablations_are_the_rows_of_the_papers_table():
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(2, 3, 4, 2)) * [5.0, 0.1] + [20.0, 0.5]

    def second(**options):
        estimator = AdvantageEstimator(AdvantageOptions(std_epsilon=0.0, **options), ("psnr", "ssim"))
        estimator(batches[0])
        return estimator(batches[1])

    full, without_weights, without_decouple, without = (
        second(),
        second(dynamic_weights=False),
        second(decouple=False),
        second(mar=False),
    )
    normal = group_normalise(batches[1].swapaxes(1, 2), 0.0).swapaxes(1, 2)
    assert full.weights[0] != 0.5 and without_weights.weights.tolist() == without.weights.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(full.advantages, normal @ full.weights)
    np.testing.assert_allclose(without_weights.advantages, normal.mean(2))
    np.testing.assert_allclose(without_decouple.weights, full.weights)
    np.testing.assert_allclose(without_decouple.advantages, group_normalise(batches[1] @ full.weights, 0.0))
    np.testing.assert_allclose(without.advantages, estimate(batches[1], mode="grpo", std_epsilon=0.0).advantages)


def test_batch_normalisation_only_rescales():
    rewards = np.random.default_rng(1).normal(size=(5, 4, 2))
    plain, batch = (estimate(rewards, normalise_batch=choice).advantages for choice in (False, True))
    np.testing.assert_allclose(batch * (plain.std(ddof=1) + 1e-4), plain, atol=1e-12)
    np.testing.assert_allclose(estimate(rewards).advantages, plain, err_msg="MAR has none by default")


def test_an_extra_reward_has_its_fixed_weight_and_no_part_in_mar():
    rewards = np.random.default_rng(2).normal(size=(2, 4, 2))
    valid = np.tile([[1.0], [1.0], [0.5], [0.0]], (2, 1, 1))
    plain, extra = estimate(rewards), estimate(rewards, extra=valid, extra_weights=[0.3])
    np.testing.assert_allclose(extra.advantages - plain.advantages, 0.3 * group_normalise(valid[..., 0], 1e-4))
    assert extra.weights.tolist() == plain.weights.tolist() and extra.batch_mean.shape == (2,)


def test_centring_alone():
    np.testing.assert_allclose(estimate([[[1.0], [4.0]]], mode="grpo", scale_rewards="none").advantages, [[-1.5, 1.5]])


def test_the_state_goes_on_where_it_was():
    import json

    rng = np.random.default_rng(3)
    one, other = (AdvantageEstimator(AdvantageOptions(), ("psnr", "ssim")) for _ in range(2))
    one(rng.normal(size=(2, 4, 2)) + 20)
    other.state.set_state(json.loads(json.dumps(one.state.get_state())))
    batch = rng.normal(size=(2, 4, 2)) + 19
    assert (one(batch).advantages == other(batch).advantages).all() and (one.state.mean == other.state.mean).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "marr"}, "did you mean 'mar'"),
        ({"mode": "gdpo", "decouple": False}, "switches of the advantage mode 'mar'"),
        ({"weights": {"psnr": -1.0}}, "at least 0"),
        ({"scale_rewards": "std"}, "scale of rewards"),
        ({"beta": 0.0}, "0 < beta"),
        ({"mode": "gdpo", "weights": {"psrn": 1.0}}, "unknown reward 'psrn'"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises((IrEnvError, UnknownNameError), match=words):
        estimate([[[1.0, 2.0], [2.0, 2.0]]], **options)


def test_bad_rewards_are_named():
    with pytest.raises(IrEnvError, match="'ssim' is not finite"):
        estimate([[[1.0, np.nan], [2.0, 2.0]]])
    with pytest.raises(IrEnvError, match="shape"):
        AdvantageEstimator(AdvantageOptions(), ("psnr",))([[1.0, 2.0]])


def test_by_the_deviation_of_the_batch_groups_count_as_they_vary():
    rewards = np.array([[[1.0], [1.0], [3.0]], [[5.0], [5.0], [5.2]], [[4.0], [4.0], [4.0]]])
    advantages = estimate(rewards, scale_rewards="batch", std_epsilon=0.0).advantages
    np.testing.assert_allclose(advantages[1], advantages[0] / 10)
    np.testing.assert_array_equal(advantages[2], 0.0)
    np.testing.assert_allclose(advantages.var(1, ddof=1).mean(), 1.0)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_each_reward_is_scaled_by_itself(scale):
    rewards = np.random.default_rng(4).normal(size=(5, 4, 2))
    louder = rewards * [1.0, 100.0]
    one, other = (estimate(each, dynamic_weights=False, scale_rewards=scale, std_epsilon=0.0).advantages for each in (rewards, louder))
    np.testing.assert_allclose(one, other)


def test_weights_given_to_mar_multiply_its_own():
    rewards = np.random.default_rng(5).normal(size=(2, 5, 4, 2))
    plain, weighted = (AdvantageEstimator(AdvantageOptions(weights=weights), ("psnr", "ssim")) for weights in ({}, {"ssim": 0.5}))
    for batch in rewards:
        own, ours = plain(batch).weights, weighted(batch).weights
        np.testing.assert_allclose(ours, own * [1.0, 0.5] / (own * [1.0, 0.5]).sum())
    assert own[0] != own[1], "by the second batch they have moved"


def test_weights_that_are_all_zero_are_named():
    with pytest.raises(IrEnvError, match="leave one out"):
        AdvantageEstimator(AdvantageOptions(weights={"psnr": 0.0}), ("psnr",))
