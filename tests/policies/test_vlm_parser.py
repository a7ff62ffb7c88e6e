import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ir_env.actions import ActionTable
from policies.vlm.parser import MAX_CHARACTERS, REASONS, Answer, parse
from policies.vlm.prompts import Prompter
from tool_actors.toolboxes import load_toolbox

ACTIONS = ActionTable(load_toolbox("classical"))


@pytest.fixture(scope="module")
def actions():
    return ACTIONS


@pytest.fixture(scope="module")
def prompter(actions):
    return Prompter(actions)


def call(name, arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


GOOD = call("denoise", {"tool": "tv.denoise"})


def test_every_action_is_written_and_read_back(actions, prompter):
    assert [parse(prompter.answer(action), actions) for action in range(actions.n)] == [Answer(action) for action in range(actions.n)]


def test_white_space_and_the_order_of_keys_do_not_matter(actions):
    text = '\n <tool_call>\n{"arguments":{"tool":"tv.denoise"} ,\n"name" : "denoise"}</tool_call>\n'
    assert parse(text, actions).action == parse(GOOD, actions).action == actions.index("tv.denoise")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "not text"),
        (b"<tool_call>", "not text"),
        ("", "no tool call"),
        ("stop", "no tool call"),
        ("<tool_call>", "no tool call"),
        ('{"name": "stop", "arguments": {}}', "no tool call"),
        (" " * MAX_CHARACTERS + GOOD, "too long"),
        (GOOD + GOOD, "several tool calls"),
        ("I would denoise. " + GOOD, "text outside the tool call"),
        (GOOD + "<|im_end|>", "text outside the tool call"),
        ("</tool_call>{}<tool_call>", "text outside the tool call"),
        ("<tool_call></tool_call>", "not JSON"),
        ("<tool_call>{'name': 'stop', 'arguments': {}}</tool_call>", "not JSON"),
        ("<tool_call>__import__('os').abort()</tool_call>", "not JSON"),
        ("<tool_call>" + "[" * 1900 + "</tool_call>", "not JSON"),
        ("<tool_call>" + "9" * 1900 + "</tool_call>", "not a name with arguments"),
        ('<tool_call>{"name": "derain", "name": "stop", "arguments": {}}</tool_call>', "not JSON"),
        ('<tool_call>["stop", {}]</tool_call>', "not a name with arguments"),
        ('<tool_call>{"name": "stop"}</tool_call>', "not a name with arguments"),
        ('<tool_call>{"name": "stop", "arguments": {}, "id": 1}</tool_call>', "not a name with arguments"),
        ('<tool_call>{"name": "stop", "arguments": "{}"}</tool_call>', "not a name with arguments"),
        (call("stop", {"tool": "tv.denoise"}), "not a name with arguments"),
        (call(["denoise"], {"tool": "tv.denoise"}), "not a name with arguments"),
        (call("denoise", {"tool": "tv.denoise", "strength": 2}), "not a name with arguments"),
        (call("denoise", {}), "not a name with arguments"),
        (call("Denoise", {"tool": "tv.denoise"}), "unknown task"),
        (call("tv.denoise", {"tool": "tv.denoise"}), "unknown task"),
        (call("denoise", {"tool": "tv.denoize"}), "unknown tool"),
        (call("denoise", {"tool": ["tv.denoise"]}), "unknown tool"),
        (call("denoise", {"tool": None}), "unknown tool"),
        (call("denoise", {"tool": 0}), "unknown tool"),
        ('<tool_call>{"name": "denoise", "arguments": {"tool": NaN}}</tool_call>', "unknown tool"),
        (call("derain", {"tool": "tv.denoise"}), "tool of another task"),
    ],
)
def test_malformed_answers_are_told_apart(actions, text, reason):
    # a number of many digits is valid JSON, which Python itself refuses beyond 4300 digits
    assert parse(text, actions) == Answer(None, reason) and reason in REASONS


PIECES = ["<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', ":", ",", "\\", "\x00", "\ud800", "null", "1e999", "-", "{}", " ", "\n"]
WORDS = ["name", "arguments", "tool", "stop", "denoise", "derain", "tv.denoise", "nlm.strong", "tv.denoise\u200b", "__class__", "ｓtop"]


def adversarial(rng, answers):
    """A text that is near to a well-formed answer, or made of its parts, or of anything."""
    kind = rng.integers(5)
    if kind == 0:
        return "".join(map(chr, rng.integers(0, 0xD7FF, rng.integers(0, 60))))
    if kind == 1:
        return "".join(rng.choice(PIECES + WORDS, rng.integers(0, 30)))
    if kind == 2:
        words = [str(word) for word in rng.choice(WORDS, 5)]
        return f'<tool_call>{{"{words[0]}": "{words[1]}", "{words[2]}": {{"{words[3]}": "{words[4]}"}}}}</tool_call>'
    text = list(answers[rng.integers(len(answers))])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(text)))
        edit = rng.integers(4)
        if edit == 0:
            del text[at : at + int(rng.integers(1, 6))]
            text = text or [" "]
        elif edit == 1:
            text.insert(at, str(rng.choice(PIECES)))
        elif edit == 2:
            text[at] = chr(int(rng.integers(32, 127)))
        else:
            text[at : at + 8] = text[at : at + 8][::-1]
    return "".join(text)


def test_a_hundred_thousand_hostile_answers(actions, prompter):
    rng = np.random.default_rng(0)
    answers = [prompter.answer(action) for action in range(actions.n)]
    meant = {action: json.loads(answer.split("\n")[1]) for action, answer in enumerate(answers)}
    accepted = 0
    for _ in range(100_000):
        text = adversarial(rng, answers)
        answer = parse(text, actions)
        if answer.well_formed:
            accepted += 1
            body = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
            assert json.loads(body) == meant[answer.action], text
        else:
            assert answer.reason in REASONS
    assert 10 < accepted < 20_000, "the texts are near the border, on both sides of it"


@given(st.text() | st.binary() | st.integers() | st.none() | st.recursive(st.none(), st.lists).map(lambda x: f"<tool_call>{x}</tool_call>"))
def test_nothing_but_a_call_is_accepted(text):
    assert not parse(text, ACTIONS).well_formed
