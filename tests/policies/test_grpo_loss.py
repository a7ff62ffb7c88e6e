import math

import pytest
import torch

from policies.grpo.loss import LossOptions, grpo_loss, mean_statistics, token_weights
from tool_actors.errors import IrEnvError, UnknownNameError

ROWS, TOKENS = 7, 5
ROLLOUT = torch.tensor([3, 3, 9, 3, 4, 4, 9])


@pytest.fixture
def data():
    torch.manual_seed(0)
    logits = torch.randn(ROWS, TOKENS, 11, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(0, 11, (ROWS, TOKENS))
    mask = (torch.rand(ROWS, TOKENS) < 0.7).float()
    mask[:, 0] = 1
    advantages = torch.randn(10, dtype=torch.float64)[ROLLOUT]
    old, reference = (torch.randn(ROWS, TOKENS, 11, dtype=torch.float64) * 0.5 + logits.detach() for _ in range(2))
    return logits, actions, mask, advantages, old, reference


def chosen_logp(logits, actions):
    return logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]


def entropies(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def reference_loss(data, options, normalisation, max_tokens):
    """The same, token by token."""
    logits, actions, mask, advantages, old, reference = data
    logp, old_logp, reference_logp = (chosen_logp(each, actions) for each in (logits, old, reference))
    total = 0.0
    for rollout in {3, 4, 9}:
        rows = [row for row in range(ROWS) if ROLLOUT[row] == rollout]
        tokens = [(row, t) for row in rows for t in range(TOKENS) if mask[row, t]]
        summed = 0.0
        for row, t in tokens:
            ratio = torch.exp(logp[row, t] - old_logp[row, t])
            clipped = min(max(ratio, torch.tensor(1 - options.clip_low)), torch.tensor(1 + options.clip_high))
            difference = reference_logp[row, t] - logp[row, t]
            summed = summed + min(ratio * advantages[row], clipped * advantages[row])
            summed = summed - options.kl_coeff * (torch.exp(difference) - difference - 1)
            summed = summed + options.entropy_coeff * entropies(logits)[row, t]
        total = total + summed / (len(tokens) if normalisation == "grpo" else max_tokens)
    return -total / 3


def loss_of(data, options, normalisation, max_tokens, rows=slice(None), weights=None):
    logits, actions, mask, advantages, old, reference = data
    if weights is None:
        weights = token_weights(mask, ROLLOUT, normalisation, max_tokens)
    return grpo_loss(
        chosen_logp(logits[rows], actions[rows]),
        chosen_logp(old[rows], actions[rows]),
        advantages[rows],
        weights[rows],
        options,
        entropies(logits[rows]),
        chosen_logp(reference[rows], actions[rows]),
    )


@pytest.mark.parametrize(("normalisation", "max_tokens"), [("grpo", None), ("dr_grpo", 20)])
@pytest.mark.parametrize("options", [LossOptions(), LossOptions(0.1, 0.3, kl_coeff=0.04, entropy_coeff=0.01)])
def test_loss_and_gradient_equal_the_reference(data, options, normalisation, max_tokens):
    expected = reference_loss(data, options, normalisation, max_tokens)
    loss, _ = loss_of(data, options, normalisation, max_tokens)
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    [gradient], [expected_gradient] = (torch.autograd.grad(value, data[0]) for value in (loss, expected))
    assert float(expected_gradient.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_micro_batches_add_up(data, size):
    options, mask = LossOptions(kl_coeff=0.1, entropy_coeff=0.01), data[2]
    weights = token_weights(mask, ROLLOUT)
    whole, statistics = loss_of(data, options, "grpo", None)
    [expected] = torch.autograd.grad(whole, data[0])
    gradient, loss, sums = 0, 0, {}
    for start in range(0, ROWS, size):
        part, part_sums = loss_of(data, options, "grpo", None, slice(start, start + size), weights)
        gradient, loss = gradient + torch.autograd.grad(part, data[0])[0], loss + part.detach()
        sums = {name: sums.get(name, 0) + value for name, value in part_sums.items()}
    torch.testing.assert_close(gradient, expected)
    assert float(loss) == pytest.approx(float(whole))
    assert mean_statistics(sums) == pytest.approx(mean_statistics(statistics))


def test_token_weights_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    rollout = torch.tensor([5, 5, 2])
    third, sixth = 1 / 6, 1 / 6
    expected = torch.tensor([[sixth, sixth, 0], [sixth, 0, 0], [third, third, third]])
    torch.testing.assert_close(token_weights(mask, rollout), expected, msg="two rollouts of three tokens each, over two turns or one")
    torch.testing.assert_close(token_weights(mask, rollout, "dr_grpo", 9), (mask / 18).float())


def test_clipping_and_statistics_by_hand():
    """Ratios 0.5, 1, 1.5 and 2 with advantages that clip the first and the third."""
    logp = torch.tensor([[0.5], [1.0], [1.5], [2.0]]).log().requires_grad_()
    advantages = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    loss, sums = grpo_loss(logp, torch.zeros(4, 1), advantages, torch.full((4, 1), 0.25), LossOptions(0.2, 0.2))
    # objectives: -0.8 (clipped), 1, 1.2 (clipped), -2
    assert float(loss) == pytest.approx(-(-0.8 + 1 + 1.2 - 2) / 4)
    loss.backward()
    assert logp.grad[:, 0].tolist() == pytest.approx([0.0, -0.25, 0.0, 0.5]), "clipped tokens teach nothing"
    statistics = mean_statistics(sums)
    assert statistics["clip_fraction"] == 0.5 and statistics["ratio"] == pytest.approx(1.25)
    assert statistics["kl_update"] == pytest.approx(sum(r - math.log(r) - 1 for r in (0.5, 1, 1.5, 2)) / 4)


def test_the_same_policy_has_ratio_one_and_no_divergence(data):
    logits, actions, mask, advantages, *_ = data
    same = (logits, actions, mask, advantages, logits.detach(), logits.detach())
    _, sums = loss_of(same, LossOptions(kl_coeff=0.1), "grpo", None)
    statistics = mean_statistics(sums)
    assert statistics["ratio"] == 1 and statistics["clip_fraction"] == 0
    assert statistics["kl_update"] == statistics["kl_reference"] == statistics["sampling_gap"] == 0


def test_padding_may_hold_anything(data):
    logits, actions, mask, advantages, old, reference = data
    before, _ = loss_of(data, LossOptions(kl_coeff=0.1, entropy_coeff=0.1), "grpo", None)
    weights = token_weights(mask, ROLLOUT)
    logp, old_logp, reference_logp = (chosen_logp(each, actions).detach() for each in (logits, old, reference))
    for column, rubbish in ((logp, float("-inf")), (old_logp, float("nan")), (reference_logp, float("inf"))):
        column[mask == 0] = rubbish
    logp.requires_grad_()
    entropy = entropies(logits).detach().masked_fill(mask == 0, float("nan"))
    after, sums = grpo_loss(logp, old_logp, advantages, weights, LossOptions(kl_coeff=0.1, entropy_coeff=0.1), entropy, reference_logp)
    after.backward()
    assert float(after) == pytest.approx(float(before)) and torch.isfinite(logp.grad).all()
    assert all(math.isfinite(value) for value in mean_statistics(sums).values())


def test_what_is_missing_is_named():
    arguments = (torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1), torch.ones(1, 1))
    with pytest.raises(IrEnvError, match="reference"):
        grpo_loss(*arguments, LossOptions(kl_coeff=0.1))
    with pytest.raises(IrEnvError, match="entropies"):
        grpo_loss(*arguments, LossOptions(entropy_coeff=0.1))
    with pytest.raises(IrEnvError, match="max_tokens"):
        token_weights(torch.ones(1, 1), torch.zeros(1), "dr_grpo")
    with pytest.raises(UnknownNameError, match="dr_grpo"):
        token_weights(torch.ones(1, 1), torch.zeros(1), "dapo")
