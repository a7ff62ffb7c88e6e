"""Models behind an OpenAI-compatible endpoint: the client, the planners that ask at every step or once, and judges."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from ir_env.planner import Tried, observation_of, run
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from policies.planners.agenticir import LEVELS
from policies.planners.remote_vlm import RemotePlanVLM, RemoteVLM
from policies.planners.vlm_judge import VLMJudge, parse_choice
from policies.remote import BudgetSpent, ChatEndpoint
from tool_actors.errors import IrEnvError

TOOLS = ["tv.denoise", "gamma.brighten", "bicubic.x4"]
CHAT = [{"role": "user", "content": "hello"}]


@contextmanager
def serving(say):
    """A server whose answers ``say(number, body)`` tells: text, or a status with headers; yields its address and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            said = say(len(asked), body)
            status, headers = said if isinstance(said, tuple) else (200, {})
            answer = json.dumps({"choices": [{"message": {"content": said}}]}).encode() if status == 200 else b"{}"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *arguments: None  # of a client that did not wait
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def call(task, **arguments):
    return f"<tool_call>\n{json.dumps({'name': task, 'arguments': arguments})}\n</tool_call>"


def endpoint(url, **options):
    return ChatEndpoint(url, "model", **{"wait": 0.01, **options})


def words(body):
    """All text of a request."""
    parts = [
        part
        for message in body["messages"]
        for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
    ]
    return " ".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def pictures(body):
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


def picture(body):
    [shown] = pictures(body)
    return shown


@pytest.fixture
def process():
    return RestorationProcess(toolbox=TOOLS, metrics=["piqe"], reward_weights={"piqe": 1.0}, low_resolution_below=32)


# -- the client ----------------------------------------------------------------------------------------------------------------------


def test_what_does_not_come_is_asked_again(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(lambda number, body: (503, {}) if number < 3 else "yes") as (url, asked):
        client = endpoint(url, key_variable="MY_KEY")
        assert client.ask(CHAT) == "yes" and client.requests == 3
    path, key, body = asked[-1]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret") and body["temperature"] == 0.0 and body["messages"] == CHAT


def test_in_the_end_there_is_no_answer(caplog):
    with serving(lambda number, body: (503, {})) as (url, asked):
        assert endpoint(url, retries=1).ask(CHAT) is None and len(asked) == 2 and "did not answer 2 times" in caplog.text
    with serving(lambda number, body: None) as (url, asked):
        assert endpoint(url, retries=1).ask(CHAT) is None and len(asked) == 2, "null is no text"


def test_a_server_that_hangs_is_left_after_the_time_out():
    with serving(lambda number, body: time.sleep(3) or "late") as (url, _):
        start = time.perf_counter()
        assert endpoint(url, timeout=0.1, retries=1).ask(CHAT) is None and time.perf_counter() - start < 3
    assert endpoint("http://127.0.0.1:9/v1", retries=0).ask(CHAT) is None


def test_a_refusal_is_an_error_and_a_redirection_is_not_followed():
    with serving(lambda number, body: (401, {})) as (url, asked):
        with pytest.raises(IrEnvError, match=r"refuses: .*401"):
            endpoint(url).ask(CHAT)
        assert len(asked) == 1, "not asked again"
    with serving(lambda number, body: "stolen") as (other, got), serving(lambda *_: (302, {"Location": f"{other}/x"})) as (url, _):
        assert endpoint(url, retries=0).ask(CHAT) is None and not got
    with pytest.raises(IrEnvError, match="is no address"):
        ChatEndpoint("file:///etc/passwd", "model")


def test_a_server_says_how_long_to_wait():
    with serving(lambda number, body: (429, {"Retry-After": "1"}) if number == 1 else "yes") as (url, _):
        start = time.perf_counter()
        assert endpoint(url).ask(CHAT) == "yes" and time.perf_counter() - start >= 1


def test_the_budget_counts_every_request(caplog):
    with serving(lambda number, body: (503, {}) if number == 1 else str(number)) as (url, asked):
        client = endpoint(url, budget=3)
        assert client.ask_all([CHAT] * 4) == ["2", "3", None, None] and len(asked) == 3
        assert caplog.text.count("budget of 3") == 1
        with pytest.raises(BudgetSpent, match="raise it"):
            client.ask(CHAT)


def test_answers_stand_in_the_order_of_the_chats():
    def slow_first(number, body):
        time.sleep(0.2 if body["messages"][0]["content"] == "0" else 0)
        return body["messages"][0]["content"]

    with serving(slow_first) as (url, _):
        assert endpoint(url, workers=4).ask_all([[{"role": "user", "content": str(i)}] for i in range(6)]) == list("012345")


# -- step by step --------------------------------------------------------------------------------------------------------------------


def test_a_remote_model_is_asked_at_every_step(process, crop):
    def say(number, body):
        return call("stop") if "denoise tv.denoise" in words(body) else call("denoise", tool="tv.denoise")

    with serving(say) as (url, asked):
        planner = load_policy(f"remote:{url}#some/model")
        assert isinstance(planner, RemoteVLM) and planner.endpoint.budget and not planner.needs_reference
        episodes = [process.start_image(crop), process.start_image(crop[::-1].copy()), process.start_image(crop)]
        for _ in run(process, planner, episodes):
            pass
    assert all([process.actions.name(index) for index in each.history] == ["tv.denoise", "stop"] for each in episodes)
    assert len(asked) == 4, "the same question is asked once"
    assert asked[0][2]["model"] == "some/model" and "gamma.brighten" in words(asked[0][2])
    shown = [picture(body) for _, _, body in asked]
    assert any(np.array_equal(each, crop) for each in shown) and any(np.array_equal(each, episodes[0].states[1].pixels) for each in shown)


@pytest.mark.parametrize(
    ("said", "count"),
    [("denoise it", "malformed"), (call("denoise", tool="rm -rf"), "malformed"), (call("super_resolve", tool="bicubic.x4"), "forbidden")],
)
def test_what_names_no_allowed_action_ends_the_restoration(process, crop, said, count):
    with serving(lambda number, body: said) as (url, _):
        planner = RemoteVLM(endpoint(url))
        assert planner.plan(observation_of(process, process.start_image(crop))) == process.actions.stop
        assert planner.counts[count] == planner.counts["answers"] == 1


def test_a_spent_budget_ends_the_restoration(process, crop):
    with serving(lambda number, body: call("denoise", tool="tv.denoise")) as (url, asked):
        episodes = [process.start_image(crop), process.start_image(crop[::-1].copy())]
        for _ in run(process, RemoteVLM(endpoint(url, budget=3)), episodes):
            pass
    assert len(asked) == 3 and sum(len(each.applied) for each in episodes) == 3 and not any(each.error for each in episodes)


# -- as one plan ---------------------------------------------------------------------------------------------------------------------


def test_a_remote_model_writes_a_plan_once(process, crop):
    def say(number, body):
        return "<think>It is dark.</think><degradation>['low_light']</degradation><answer>['gamma.brighten', 'tv.denoise']</answer>"

    with serving(say) as (url, asked):
        planner = load_policy(f"remote-plan:{url}#model")
        assert isinstance(planner, RemotePlanVLM) and planner.plans_whole
        episode = process.start_image(crop)
        for _ in run(process, planner, [episode]):
            pass
    assert len(asked) == 1 and [process.actions.name(index) for index in episode.applied] == ["gamma.brighten", "tv.denoise"]
    assert np.array_equal(picture(asked[0][2]), crop) and "image restoration assistant" in words(asked[0][2])
    with serving(lambda number, body: "['gamma.brighten']") as (url, _):
        planner = RemotePlanVLM(endpoint(url))
        assert planner.plan(observation_of(process, process.start_image(crop))) == process.actions.stop
        assert planner.counts["malformed"] == 1


@pytest.mark.parametrize("address", ["https://host/v1", "#model", "https://host/v1#"])
def test_an_address_needs_a_model(address):
    with pytest.raises(IrEnvError, match="URL#MODEL"):
        load_policy(f"remote:{address}")
    with pytest.raises(IrEnvError, match="URL#MODEL"):
        load_policy(f"agenticir:{address}")


# -- in the places of a planner's own parts ----------------------------------------------------------------------------------------


def test_a_remote_model_perceives(process, crop):
    with serving(lambda number, body: '["low_light", "noise"]' if number == 1 else "rain, I think") as (url, asked):
        judge = VLMJudge(endpoint(url))
        observation = observation_of(process, process.start_image(crop))
        assert judge.perceive(observation) == judge.perceive(observation) == {"brighten", "denoise"} and len(asked) == 1
        assert np.array_equal(picture(asked[0][2]), crop)
        assert judge.perceive(observation_of(process, process.start_image(crop[::-1].copy()))) == set()
        small = observation_of(process, process.start_image(crop[::4, ::4].copy()))
        assert judge.perceive(small) == {"super_resolve"}, "that is seen from the size"
    assert judge.counts == {"answers": 3, "malformed": 2}


def test_a_remote_model_judges(crop):
    def say(number, body):
        if len(pictures(body)) == 2:
            return "Latter." if np.array_equal(pictures(body)[1], crop) else "neither"
        return '"Very high"' if "motion blur" in words(body) else "It is low."

    former, latter = (Tried(0, image, {}) for image in (crop[::-1].copy(), crop))
    with serving(say) as (url, asked):
        judge = VLMJudge(endpoint(url))
        assert judge.latter_is_better(former, latter) and not judge.latter_is_better(latter, former)
        assert LEVELS[judge.severity(crop, "motion_deblur")] == "very high" and LEVELS[judge.severity(crop, "derain")] == "medium"
        judge.severity(crop, "super_resolve")
        assert "How severe is the blur in" in words(asked[-1][2])
        assert judge.severity(crop, "derain") == 2 and len(asked) == 5, "what is malformed is not asked for again"
    assert judge.counts == {"answers": 5, "malformed": 2} and judge.endpoint.unanswered == 0
    for silent in (endpoint("http://127.0.0.1:9/v1", retries=0), endpoint(url, budget=0)):
        judge = VLMJudge(silent)
        assert judge.severity(crop, "derain") == 2 and not judge.latter_is_better(former, latter)
        assert silent.unanswered == 2 and not judge.counts


@pytest.mark.parametrize(("text", "choice"), [(" Low.\n", "low"), ("'low'", "low"), ("low or medium", None), ("", None), ("lower", None)])
def test_a_choice_is_one_of_those_offered(text, choice):
    assert parse_choice(text, LEVELS) == choice


def test_agenticir_asks_a_remote_model_for_all_that_depictqa_tells(process, crop):
    """It sees noise and darkness, finds that the noise does not go, and prefers the image from which it did not to one before."""

    def say(number, body):
        if "JSON list" in words(body):
            return '["noise", "low_light"]'
        if len(pictures(body)) == 2:
            return "latter"
        return "very low" if "low light" in words(body) else "high"

    with serving(say) as (url, asked):
        planner = load_policy(f"agenticir:{url}#some/model")
        episode = process.start_image(crop)
        for _ in run(process, planner, [episode]):
            pass
    assert {process.actions.name(index) for index in episode.applied} == {"gamma.brighten", "tv.denoise"} and not episode.error
    questions = [words(body) for _, _, body in asked]
    assert "Which of these degradations" in questions[0] and any("How severe is the noise" in each for each in questions)
    assert any("one scene" in each for each in questions), "of two compromises the better is asked for"
    assert not planner.judges and planner.name == "agenticir (some/model)" and planner.endpoint.requests == len(asked)


@pytest.mark.parametrize("name", ["traversal", "mair", "4kagent", "restore_agent", "q_agent"])
def test_others_perceive_through_a_remote_model(process, crop, name):
    with serving(lambda number, body: '["noise"]' if number == 1 else "[]") as (url, asked):
        planner = load_policy(f"{name}:{url}#model")
        noisy = np.clip(crop + np.random.default_rng(0).normal(0, 40, crop.shape), 0, 255).astype(np.uint8)
        episode = process.start_image(noisy)
        for _ in run(process, planner, [episode]):
            pass
    assert [process.actions.name(index) for index in episode.applied] == ["tv.denoise"]
    assert len(asked) == 1 + (name == "restore_agent"), "which looks again"


def test_a_refusal_of_perception_is_an_error(process, crop):
    with serving(lambda number, body: (401, {})) as (url, _), pytest.raises(IrEnvError, match="refuses"):
        load_policy(f"mair:{url}#model").plan(observation_of(process, process.start_image(crop)))
