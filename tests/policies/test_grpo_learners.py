"""Several learners make the update that one would make, replicated or sharded, and a run goes on with another number of them."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from experiments.measurements.learners import learner_group, sample, small_network, tiny_vlm, updates
from experiments.tir_agent.rehearsal import teach
from policies.grpo.algorithm import GRPO
from policies.grpo.learner import even_out, micro_batches, rollout_minibatches
from policies.grpo.loss import token_weights
from policies.grpo.rollouts import share_out
from tool_actors.errors import IrEnvError


class Steps(list):
    """As much of an episode as sharing out asks for."""


def test_rollouts_are_shared_out_whole_and_evenly():
    episodes = [Steps(range(length)) for length in (1, 6, 2, 6, 1, 3, 5, 1)]
    for count in (1, 2, 3, 8):
        shares = share_out(episodes, count)
        assert sorted(id(episode) for share in shares for episode in share) == sorted(map(id, episodes)) and all(shares)
        steps = [sum(map(len, share)) for share in shares]
        assert count == 8 or max(steps) - min(steps) <= 1
    with pytest.raises(IrEnvError, match="9 learners cannot share 8 rollouts"):
        share_out(episodes, 9)


@pytest.mark.parametrize("normalisation", ["grpo", "dr_grpo"])
def test_a_token_counts_the_same_in_a_share_as_in_the_batch(normalisation):
    rollout = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
    whole = token_weights(mask, rollout, normalisation, 9)
    for share in ([0, 3], [1], [2]):
        rows = torch.isin(rollout, torch.tensor(share))
        torch.testing.assert_close(token_weights(mask[rows], rollout[rows], normalisation, 9, rollouts=4), whole[rows])


def test_learners_draw_the_same_minibatches():
    rollout = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4])
    drawn = []
    for share in ([0, 1, 2, 3, 4], [0, 4], [1, 2, 3]):
        torch.manual_seed(7)
        rows = rollout[torch.isin(rollout, torch.tensor(share))]
        drawn.append([(set(rows[chosen].tolist()), members) for chosen, members in rollout_minibatches(rows, 2, 5)])
    for whole, one, other in zip(*drawn, strict=True):
        assert one[0] | other[0] == whole[0] and whole[1] == one[1] == other[1] == len(whole[0])


@pytest.mark.parametrize(("rows", "size", "filled"), [(5, 2, 7), (0, 2, 7), (7, 2, 7), (0, None, 1), (3, None, 3)])
def test_a_learner_without_enough_rows_keeps_step(monkeypatch, rows, size, filled):
    monkeypatch.setattr("policies.grpo.learner.most", lambda number, device: 4 if size else 1)
    index, weights = even_out(torch.arange(rows), torch.ones(rows, 3), size)
    assert len(index) == len(weights) == filled and len(micro_batches(filled, size)) == (4 if size else 1)
    assert weights.sum() == 3 * rows, "what fills up has no weight"


# -- learners in this process --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    teach(folder, lessons=0)
    return folder


@pytest.fixture(scope="module")
def sampled(model):
    return sample(tiny_vlm(model), 3)


@pytest.fixture
def alone(tmp_path):
    """A group of one process, this one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def learner(config, spaces):
    config = config.copy()
    config.validate()
    made = config.get_default_learner_class()(config=config, module_spec=config.get_multi_rl_module_spec(spaces=spaces))
    made.build()
    return made


def test_sharding_changes_no_update_and_no_checkpoint(model, sampled, alone):
    spaces, rounds = sampled
    plain = learner(tiny_vlm(model), spaces)
    sharded = learner(tiny_vlm(model).learners(num_learners=1).training(fully_shard=True), spaces)
    parameters = list(sharded.module["default_policy"].parameters())
    assert all(hasattr(parameter, "device_mesh") for parameter in parameters)
    for seed in (0, 1):
        for each in (plain, sharded):
            each.update(episodes=rounds[seed], timesteps={}, seed=seed)
    sharded.gather_state()
    state = sharded.get_state()
    expected = plain.get_state()
    for name, value in expected["rl_module"]["default_policy"].items():
        np.testing.assert_allclose(state["rl_module"]["default_policy"][name], value, atol=1e-5, err_msg=name)
    mine, theirs = (each["optimizer"]["default_policy_default_optimizer"]["state"]["state"] for each in (state, expected))
    for index, moments in theirs.items():
        np.testing.assert_allclose(mine[index]["exp_avg"], moments["exp_avg"], atol=1e-6)
    # either goes on from the other's
    sharded.set_state(expected)
    plain.set_state(state)
    for each in (plain, sharded):
        each.update(episodes=rounds[2], timesteps={}, seed=2)
    sharded.gather_state()
    after = sharded.get_state()["rl_module"]["default_policy"]
    for name, value in plain.get_state()["rl_module"]["default_policy"].items():
        np.testing.assert_allclose(after[name], value, atol=1e-5, err_msg=name)


def test_learners_train_in_float32_what_samplers_compute_in_bfloat16(model, sampled, alone):
    spaces, rounds = sampled
    config = tiny_vlm(model, dtype="bfloat16", gradient_checkpointing=True)
    config.training(fully_shard=True, old_logprobs="learner").learners(num_learners=1)
    made = learner(config, spaces)
    told = made.update(episodes=rounds[0], timesteps={}, seed=0)["default_policy"]
    assert {parameter.dtype for parameter in made.module["default_policy"].parameters()} == {torch.float32}
    assert told["old_logprobs_recomputed"].peek() == 1
    assert 1e-5 < told["sampling_gap"].peek() < 0.5, "sampled in float32, recomputed in bfloat16"
    made.config.num_learners = 0  # or the weights would go into Ray's object store
    assert {value.dtype.name for value in made.get_state(inference_only=True)["rl_module"]["default_policy"].values()} == {"uint16"}
    assert {value.dtype.name for value in made.get_state()["rl_module"]["default_policy"].values()} == {"float32"}


# -- learners of RLlib ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_and_three_learners_make_the_update_of_one(ray_cluster, model, kind):
    config = small_network() if kind == "replicated" else tiny_vlm(model)
    spaces, rounds = sample(config, 3)
    assert kind == "sharded" or len({len(episode) for episode in rounds[0]}) > 1, "shares differ in their numbers of tokens"
    found = []
    for learners in (1, 2, 3):
        group = learner_group(config, learners, spaces, kind == "sharded" and learners > 1)
        found.append(updates(group, rounds))
        group.shutdown()
    assert found[0].moved > 1e-4
    for several in found[1:]:
        assert max(several.differences(found[0]).values()) < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_two_learners_goes_on_with_one(ray_cluster, tmp_path, model):
    def run(learners):
        config = tiny_vlm(model).env_runners(num_envs_per_env_runner=8)
        return config.learners(num_learners=learners, num_cpus_per_learner=1).training(fully_shard=learners > 1).build_algo()

    two = run(2)
    two.train()
    two.save_to_path(tmp_path / "checkpoint")
    expected = two.train()
    two.stop()
    one = run(0)
    one.restore_from_path(tmp_path / "checkpoint")
    again = one.train()
    one.stop()
    assert again["training_iteration"] == 2 and dict(again["grpo"]["reward"]) == pytest.approx(dict(expected["grpo"]["reward"]))
    for name in ("total_loss", "entropy", "kl_update", "gradients_default_optimizer_global_norm"):
        mine, theirs = (float(told["learners"]["default_policy"][name]) for told in (again, expected))
        assert mine == pytest.approx(theirs, abs=1e-5), name
    assert isinstance(one, GRPO)
