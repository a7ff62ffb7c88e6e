import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ir_env.actions import ActionTable
from ir_env.plan_answer import MAX_CHARACTERS, PARTS, REASONS, PlanAnswer, parse_plan, plan_space, read_plan, to_indices, write_plan
from tool_actors.tasks import DEGRADATIONS
from tool_actors.toolboxes import load_toolbox

ACTIONS = ActionTable(load_toolbox("classical"))
GOOD = "<think>noisy</think><degradation>['noise']</degradation><answer>['tv.denoise', 'nlm.strong', 'tv.denoise']</answer>"

plans = st.builds(
    PlanAnswer,
    st.lists(st.integers(0, ACTIONS.stop - 1), min_size=1, max_size=6).map(tuple),
    st.lists(st.sampled_from(DEGRADATIONS), unique=True).map(tuple),
    st.text(st.characters(exclude_characters="<>"), max_size=40).map(str.strip),
)


@given(plans)
def test_every_plan_is_written_and_read_back(answer):
    assert parse_plan(write_plan(answer, ACTIONS), ACTIONS, 6) == answer


@given(plans)
def test_the_index_form_says_the_same(answer):
    indices = to_indices(answer, ACTIONS, 6)
    assert plan_space(ACTIONS, 6).contains(indices)
    read = read_plan(indices, ACTIONS, 6)
    assert (read.plan, set(read.degradations), read.think) == (answer.plan, set(answer.degradations), None)


def test_repeats_out_of_scope_tools_quotes_and_space_are_fine():
    text = '\n<think>it\nis so</think> <degradation>[]</degradation>\n<answer>[ "tv.denoise" ,\'nlm.strong\',"tv.denoise"]</answer>\n'
    assert parse_plan(text, ACTIONS, 6) == PlanAnswer(
        tuple(map(ACTIONS.index, ("tv.denoise", "nlm.strong", "tv.denoise"))), (), "it\nis so"
    )


def answer_of(degradation="['noise']", answer="['tv.denoise']"):
    return f"<think>a</think><degradation>{degradation}</degradation><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "not text"),
        (GOOD.encode(), "not text"),
        ("", "not one think, degradation and answer, in this order"),
        (GOOD + GOOD, "not one think, degradation and answer, in this order"),
        (
            "<answer>['tv.denoise']</answer><think></think><degradation>[]</degradation>",
            "not one think, degradation and answer, in this order",
        ),
        (
            "<think><degradation>[]</degradation></think><answer>['tv.denoise']</answer>",
            "not one think, degradation and answer, in this order",
        ),
        (" " * MAX_CHARACTERS + GOOD, "too long"),
        ("Here: " + GOOD, "text outside the parts"),
        (GOOD.replace("<answer>", "so <answer>"), "text outside the parts"),
        (answer_of(answer="__import__('os').abort()"), "not a list of quoted names"),
        (answer_of(answer="[__import__('os')]"), "not a list of quoted names"),
        (answer_of(answer="['tv.denoise'"), "not a list of quoted names"),
        (answer_of(answer="['tv.denoise',,'tv.denoise']"), "not a list of quoted names"),
        (answer_of(answer="['tv.denoise\"]"), "not a list of quoted names"),
        (answer_of(answer="tv.denoise"), "not a list of quoted names"),
        (answer_of(answer="[" * 2000), "not a list of quoted names"),
        (answer_of(answer="[" + "'a'," * 3000), "not a list of quoted names"),
        (answer_of(degradation="['fog']"), "unknown degradation"),
        (answer_of(degradation="['noise', 'noise']"), "degradation named twice"),
        (answer_of(answer="[]"), "empty plan"),
        (answer_of(answer=str(["tv.denoise"] * 7)), "plan too long"),
        (answer_of(answer="['stop']"), "unknown tool"),
        (answer_of(answer="['restormer.derain']"), "unknown tool"),
    ],
)
def test_malformed_texts_say_why(text, reason):
    assert reason in REASONS
    found = parse_plan(text, ACTIONS, 6)
    assert found == PlanAnswer(reason=reason) and not found.well_formed


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([0] * 8 + [ACTIONS.stop] * 6, "empty plan"),
        ([0] * 8 + [ACTIONS.stop, 0, 0, 0, 0, 0], "empty plan"),
        ([2] + [0] * 13, "not indices"),
        ([0] * 13 + [-1], "not indices"),
        ([0] * 13 + [99], "not indices"),
        ([0] * 12, "not indices"),
        (np.zeros(14), "not indices"),
        ([[0], [1, 2]], "not indices"),
        (object(), "not indices"),
        (7, "not indices"),
    ],
)
def test_malformed_indices_say_why(action, reason):
    assert read_plan(action, ACTIONS, 6) == PlanAnswer(reason=reason)


def test_a_hundred_thousand_adversarial_texts_never_raise_and_are_counted():
    rng = random.Random(0)
    pieces = [f"<{slash}{part}>" for part in PARTS for slash in ("", "/")]
    pieces += [
        "[",
        "]",
        "'",
        '"',
        ",",
        "'tv.denoise'",
        "['noise']",
        "['tv.denoise']",
        "[]",
        "\\",
        "\0",
        "é",
        "\ud800",
        "{{",
        " ",
        "\n",
        "0",
    ]
    counts = dict.fromkeys((*REASONS, ""), 0)
    for _ in range(100_000):
        kind = rng.random()
        if kind < 0.4:
            text = "".join(rng.choices(pieces, k=rng.randrange(30)))
        elif kind < 0.9:  # a good one with a slip: something lost, doubled or put in
            at, to = sorted((rng.randrange(len(GOOD)), rng.randrange(len(GOOD))))
            text = rng.choice([GOOD[:at] + GOOD[to:], GOOD[:to] + GOOD[at:], GOOD[:at] + rng.choice(pieces) + GOOD[at:]])
        else:
            text = answer_of(answer=str([rng.choice(["tv.denoise", "nlm.strong", "tv", "x" * 50]) for _ in range(rng.randrange(9))]))
        counts[parse_plan(text, ACTIONS, 6).reason] += 1
    assert sum(counts.values()) == 100_000
    # all but what such texts cannot be, and some are well-formed
    assert {reason for reason, count in counts.items() if count} >= set(REASONS) - {
        "not text",
        "too long",
        "not indices",
        "degradation named twice",
    }
    assert counts[""] > 1000
