import gc
import itertools
import weakref

import numpy as np
import pytest

from tool_actors.errors import IrEnvError, UnknownToolError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.plans import iter_plans, run_plans
from tool_actors.toolbox import Tool, Toolbox, ToolSpec

LETTERS = "abcd"
ALL = [plan for length in (1, 2, 3, 4) for plan in itertools.product(LETTERS, repeat=length)]


class Mixing(Tool):
    """Changes the image so that no two plans give the same one; counts, and fails on images of the mean `fails_on`."""

    def __init__(self, name, scale=1, deterministic=True, fails_on=None):
        self.spec = ToolSpec(name, "super_resolve" if scale > 1 else "denoise", f"mixing {name}", scale, deterministic)
        self.number, self.fails_on, self.images = ord(name[0]), fails_on, 0

    def __call__(self, images):
        self.images += len(images)
        if self.fails_on is not None and (images.mean() * 255).round() == self.fails_on:
            raise ValueError("not this one")
        images = images.repeat_interleave(self.spec.scale, 2).repeat_interleave(self.spec.scale, 3)
        return (images * 37.77 + self.number * 0.137) % 1


def executor_of(*tools, **settings):
    return LocalExecutor(Toolbox(tools), cache_bytes=0, **settings)


def mixing():
    return [Mixing(letter) for letter in LETTERS]


def start(seed=0, size=(6, 8)):
    return ImageState.from_pixels(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def alone(executor, state, plan):
    """One plan by itself, step by step."""
    results = []
    for tool in plan:
        [result] = executor.run([Request(state, tool)])
        results.append(result)
        if result.state is None:
            break
        state = result.state
    return results


def assert_same(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert (one.state is None) == (other.state is None) and str(one.error) == str(other.error)
        if one.state is not None:
            assert np.array_equal(one.state.pixels, other.state.pixels) and one.state.key == other.state.key


def test_of_all_340_plans_each_prefix_runs_once_and_each_plan_gives_what_it_gives_alone():
    executor, state = executor_of(*mixing()), start()
    results = run_plans(executor, [(state, plan) for plan in ALL])
    assert len(ALL) == 340 and executor.stats.executions == 340
    assert sum(not result.cached for each in results for result in each) == 340, "the others say that they share"
    for plan, each in zip(ALL, results, strict=True):
        assert_same(each, alone(executor, state, plan))
    assert len({each[-1].state.pixels.tobytes() for each in results}) == 340


def test_one_call_of_the_executor_per_level():
    executor, calls = executor_of(*mixing()), []
    run = executor.run
    executor.run = lambda requests: calls.append(len(requests)) or run(requests)
    run_plans(executor, [(start(), plan) for plan in ALL])
    assert calls == [4, 16, 64, 256]
    calls.clear()
    assert len(list(iter_plans(executor, [(start(), plan) for plan in ALL], at_once=100))) == 4 + 2 * 16 + 3 * 64 + 4 * 256
    assert calls == [4, 16, 64, 100, 100, 56]


def test_only_the_last_results_are_kept_where_no_more_are_wanted():
    plans = ["", "a", "ab", "abc", "b"]
    last = run_plans(executor_of(*mixing()), [(start(), plan) for plan in plans], keep="last")
    every = run_plans(executor_of(*mixing()), [(start(), plan) for plan in plans])
    assert [len(each) for each in every] == [0, 1, 2, 3, 1] and [len(each) for each in last] == [0, 1, 1, 1, 1]
    for one, other in zip(last, every, strict=True):
        assert_same(one, other[-1:])
    with pytest.raises(IrEnvError, match="keep"):
        run_plans(executor_of(*mixing()), [], keep="some")


def test_states_that_no_step_needs_any_more_are_freed():
    executor, alive, most = executor_of(*mixing()), set(), 0
    for _, _, result in iter_plans(executor, [(start(), plan) for plan in ALL], at_once=8):
        pixels = result.state.pixels
        if not result.cached:
            alive.add(number := id(pixels))
            weakref.finalize(pixels, alive.discard, number)
        del result, pixels
        most = max(most, len(alive))
    gc.collect()
    # 64 states that the last level starts from, the 16 before them, and 8 results
    assert most <= 64 + 16 + 8
    assert not alive


def test_a_failure_stays_in_its_branch():
    state = start()
    tools = mixing()
    [[first]] = run_plans(executor_of(*tools), [(state, "b")])
    tools[2].fails_on = round(float(first.state.pixels.mean()))
    executor = executor_of(*tools)
    results = dict(zip(ALL, run_plans(executor, [(state, plan) for plan in ALL]), strict=True))
    failed = {plan for plan, each in results.items() if each[-1].error}
    assert {plan for plan in ALL if plan[:2] == ("b", "c")} <= failed, "bc fails, and so does all that begins with it"
    assert all(len(results[plan]) == 2 for plan in failed if plan[:2] == ("b", "c"))
    for plan, each in results.items():
        assert_same(each, alone(executor_of(*tools), state, plan))
    assert executor.stats.executions < 340


def test_scales_anywhere_in_a_plan():
    tools = (Mixing("a"), Mixing("x", scale=2), Mixing("y", scale=3))
    jobs = [(start(), "axa"), (start(), "xay"), (start(1, (5, 9)), "yxa"), (start(), "ax")]
    executor = executor_of(*tools)
    results = run_plans(executor, jobs)
    assert [each[-1].state.shape[:2] for each in results] == [(12, 16), (36, 48), (30, 54), (12, 16)]
    assert executor.stats.executions == 9
    for (state, plan), each in zip(jobs, results, strict=True):
        assert_same(each, alone(executor, state, plan))


def test_what_is_drawn_is_never_shared_nor_what_follows_it():
    tools = (Mixing("a"), Mixing("r", deterministic=False))
    results = run_plans(executor_of(*tools), [(start(), "ara")] * 3)
    assert tools[0].images == 1 + 3 and tools[1].images == 3
    assert len({each[-1].state.key for each in results}) == 3


def test_a_job_may_start_where_another_arrives():
    executor, state = executor_of(*mixing()), start()
    [[reached]] = run_plans(executor, [(state, "a")])
    before = executor.stats.executions
    results = run_plans(executor, [(state, "abcd"), (reached.state, "bcd"), (reached.state, "bc")])
    assert executor.stats.executions - before == 4
    assert_same(results[0][1:], results[1])


def test_unknown_tools_are_refused_before_anything_runs():
    executor = executor_of(*mixing())
    with pytest.raises(UnknownToolError):
        run_plans(executor, [(start(), "ab"), (start(), "az")])
    assert executor.stats.executions == 0
