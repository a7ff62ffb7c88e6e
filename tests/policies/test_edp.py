from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chisquare

from policies.vlm.edp import mixed_distribution, perturb, perturb_order, perturb_tools, tool_distribution
from policies.vlm.exploration import diversity
from tool_actors.errors import IrEnvError

TOOLS_OF = {"denoise": ["n1", "n2", "n3", "n4"], "derain": ["r1", "r2"], "dehaze": ["h1"]}
P = {"denoise": [0.7, 0.2, 0.1, 0.0], "derain": [0.5, 0.5]}
DEMONSTRATIONS = [(row, (("denoise", "n1"), ("derain", "r2"), ("dehaze", "h1"))[: row % 4]) for row in range(40)]


def drawn(count, seed=0):
    """Trajectories of two steps whose tools are drawn from P."""
    rng = np.random.default_rng(seed)
    return [(row, tuple((task, str(rng.choice(TOOLS_OF[task], p=P[task]))) for task in P)) for row in range(count)]


def test_alpha_0_is_the_identity():
    assert perturb(DEMONSTRATIONS, TOOLS_OF, 0.0, 0.0) == DEMONSTRATIONS


def test_the_same_seed_gives_the_same_perturbation():
    first = perturb(DEMONSTRATIONS, TOOLS_OF, seed=1)
    assert first == perturb(DEMONSTRATIONS, TOOLS_OF, seed=1) != perturb(DEMONSTRATIONS, TOOLS_OF, seed=2)


def test_order_adds_permuted_copies_of_a_share_and_keeps_all_originals():
    demonstrations = drawn(10_000)
    result = perturb_order(demonstrations, 0.3, np.random.default_rng(1))
    assert result[: len(demonstrations)] == demonstrations
    copies = result[len(demonstrations) :]
    assert abs(len(copies) - 3000) < 3 * np.sqrt(10_000 * 0.3 * 0.7)
    assert len({row for row, _ in copies}) == len(copies), "each is chosen once at most"
    assert all(sorted(trajectory) == sorted(demonstrations[row][1]) for row, trajectory in copies)
    assert perturb_order(demonstrations, 1.0, np.random.default_rng(1))[:2] == demonstrations[:2]


def test_all_orders_are_equally_likely():
    trajectory = DEMONSTRATIONS[3][1]
    copies = perturb_order([(0, trajectory)] * 10_000, 1.0, np.random.default_rng(2))[10_000:]
    counts = Counter(order for _, order in copies)
    assert set(counts) == set(permutations(trajectory)) and chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0])
def test_the_frequencies_of_tools_are_those_of_equation_3(alpha):
    result = perturb_tools(drawn(10_000), TOOLS_OF, alpha, np.random.default_rng(3))
    assert all(tuple(task for task, _ in trajectory) == ("denoise", "derain") for _, trajectory in result)
    for position, (task, shares) in enumerate(P.items()):
        tools = TOOLS_OF[task]
        counts = Counter(trajectory[position][1] for _, trajectory in result)
        expected = (1 - alpha) * np.array(shares) + alpha / len(tools)
        assert chisquare([counts[tool] for tool in tools], 10_000 * expected).pvalue > 0.001
        shares_of_task = dict(zip(tools, shares, strict=True))
        assert mixed_distribution({task: shares_of_task}, TOOLS_OF, alpha)[task] == pytest.approx(dict(zip(tools, expected, strict=True)))


def test_the_empirical_distribution():
    trajectories = [(("denoise", "n1"), ("derain", "r1")), (("denoise", "n1"),), (("denoise", "n3"),), ()]
    assert tool_distribution(trajectories, TOOLS_OF) == {
        "denoise": {"n1": pytest.approx(2 / 3), "n2": 0, "n3": pytest.approx(1 / 3), "n4": 0},
        "derain": {"r1": 1, "r2": 0},
    }


def test_bad_arguments_say_so():
    with pytest.raises(IrEnvError, match="alpha_tool is a probability"):
        perturb(DEMONSTRATIONS, TOOLS_OF, alpha_tool=1.4)
    with pytest.raises(IrEnvError, match="'brighten', for which the toolbox has no tool"):
        perturb([(0, (("brighten", "b"),))], TOOLS_OF, 0, 1.0)


def test_diversity_of_rollouts():
    a, b = ("denoise", "n1"), ("derain", "r1")
    same, order = [(a, b)] * 8, [(a, b)] * 7 + [(b, a)]
    tools, length = [(a, b)] * 6 + [(a, ("derain", "r2"))] * 2, [(a, b)] * 4 + [(a,)] * 4
    assert (diversity([same]).distinct, diversity([same]).order, diversity([same]).tool) == (1 / 8, 0, 0)
    assert (diversity([order]).order, diversity([order]).tool) == (1, 0)
    assert (diversity([tools]).order, diversity([tools]).tool) == (0, 1)
    assert (diversity([length]).order, diversity([length]).tool) == (0, 0), "other tasks are neither"
    assert (diversity([order]).order_pairs, diversity([order]).tool_pairs) == (7 / 28, 0)
    assert (diversity([tools]).order_pairs, diversity([tools]).tool_pairs) == (0, 12 / 28)
    assert diversity([length, tools]).tool_pairs == 12 / (6 + 6 + 28), "only pairs of the same tasks count"
    told = diversity([same, order, tools, length])
    assert told.distinct == pytest.approx((1 + 2 + 2 + 2) / 32) and told.order == told.tool == 1 / 4
    assert told.images_by_distinct == {1: 1, 2: 3}
    assert told.order_by_distinct == {1: 0, 2: pytest.approx(1 / 3)} == told.tool_by_distinct
    share = 2 / 28
    assert told.entropy == {"denoise": 0, "derain": pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share))}
    assert told.mean_entropy == pytest.approx(told.entropy["derain"] / 2)
    assert diversity([[()] * 8]).mean_entropy == 0


def test_perturbation_raises_the_entropy():
    before = [trajectory for _, trajectory in drawn(2000)]
    after = [trajectory for _, trajectory in perturb(drawn(2000), TOOLS_OF)]
    assert diversity([after]).entropy["denoise"] > diversity([before]).entropy["denoise"] + 0.2
