"""OPERA's planners: the network without language, the vision-language one, under GRPO and as planners; and the judges that read."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModuleSpec

from ir_env.actions import ActionTable
from ir_env.evaluation import evaluate
from ir_env.observation import observe_state
from ir_env.plan_answer import PlanAnswer, parse_plan
from ir_env.plan_reward import judge_by_rules
from ir_env.planner import run
from ir_env.process import RestorationProcess
from ir_env.view import View
from policies.grpo.config import GRPOConfig
from policies.loading import load_checkpoint, load_policy
from policies.opera.judges import endpoint_judge, local_judge, verdict
from policies.opera.network import PlanNetwork
from policies.opera.planner import PlanPlanner
from policies.opera.rl_module import PlanRLModule
from policies.opera.vlm import PlanPrompter, PlanSettings, VLMPlanPlanner
from policies.opera.vlm_rl_module import VLMPlanRLModule
from policies.planners.mair import MAIRPlanner
from policies.vlm.model import VisionLanguageModel
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "nlm.strong", "dcp.strong", "x4.edge", "x4.fidelity"]
ACTIONS = ActionTable(load_toolbox(TOOLS))
PAIRS = [[action.task, action.tool] for action in ACTIONS]
ENV = {"dataset": {"photos": "builtin", "crop_size": 64, "combos": "noise,haze"}, "toolbox": TOOLS, "max_plan": 3}
SEEN = len(DEGRADATIONS)


def make_network(seed=0, **options):
    torch.manual_seed(seed)
    tasks, tools = zip(*PAIRS, strict=True)
    return PlanNetwork(ACTIONS.n, 4, tasks=tasks, tools=tools, hidden=32, **options)


def observations(images):
    seen = [observe_state([image], (), ACTIONS.mask(image.shape[:2], ()), View(), 4) for image in images]
    return {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}


@pytest.fixture(scope="module")
def images(photo):
    rng = np.random.default_rng(0)
    noisy = (photo[:96, :96] + rng.normal(0, 40, (96, 96, 3))).clip(0, 255).astype(np.uint8)
    return [photo, photo[:96, :96], noisy]


# -- the network ---------------------------------------------------------------------------------------------------------------------


def test_what_is_drawn_is_scored_the_same_and_learns(images):
    network, seen = make_network(), observations(images * 4)
    torch.manual_seed(1)
    written = network.write(seen)
    logp, entropy = network.score(network.encode_once(seen), written.tokens)
    assert torch.allclose(logp, written.logp, atol=1e-5) and (entropy >= -1e-6).all()
    assert written.tokens.shape == (12, SEEN + 4) and (written.mask[:, : SEEN + 1] == 1).all()
    for tokens, mask in zip(written.tokens[:, SEEN:].tolist(), written.mask[:, SEEN:].tolist(), strict=True):
        length = tokens.index(ACTIONS.stop) if ACTIONS.stop in tokens else 4
        assert mask == [1.0] * min(length + 1, 4) + [0.0] * (3 - length)
        assert set(tokens[length:]) <= {ACTIONS.stop}
    logp.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def test_enlarging_is_written_once_and_only_where_it_is_allowed(images):
    network = make_network()
    with torch.no_grad():
        network.actor.bias[[3, 4]] = 30.0  # nothing but enlarging
    plans = network.write(observations(images * 8), temperature=5.0).tokens[:, SEEN:]
    enlarged = ((plans == 3) | (plans == 4)).sum(1)
    assert enlarged[::3].max() == 0, "the photograph is large"
    assert enlarged.max() == 1


def test_it_begins_with_what_its_encoder_tells(images):
    network, seen = make_network(), observations(images)
    present, gains = network.encoder.told(network.encode(seen))
    tokens = network.write(seen, temperature=0.0).tokens
    assert torch.equal(tokens[:, :SEEN], (present > 0).long())
    known = [list(network.encoder.tools).index(tool) for tool in TOOLS]
    best = gains[2, known].argmax()
    assert tokens[2, SEEN] == best and ACTIONS[int(best)].task == "denoise"


# -- as planners -------------------------------------------------------------------------------------------------------------------


def test_the_planner_looks_once_and_follows_its_plan(images):
    process = RestorationProcess({"photos": "builtin", "crop_size": 64, "combos": "noise"}, TOOLS, max_steps=4)
    asked = []

    class Fixed(PlanPlanner):
        def write(self, observations):
            asked.extend(observations)
            return [PlanAnswer((1, 0, 1), ("noise",)) for _ in observations]

    planner = Fixed(make_network(), View())
    episodes = [*process.start([process.dataset.draw(np.random.default_rng(0))] * 2), process.start_image(images[0], images[0])]
    for _ in run(process, planner, episodes):
        pass
    assert [episode.applied for episode in episodes] == [[1, 0, 1]] * 3 and all(episode.terminated for episode in episodes)
    assert len(asked) == 2, "two of the images are the same"
    fresh = process.start([process.dataset.draw(np.random.default_rng(1))])
    row = evaluate(process, {"plan": Fixed(make_network(), View())}, fresh).row("plan")
    assert (row.calls, row.tools) == (1.0, 3.0)


def test_another_toolbox_is_refused(images):
    process = RestorationProcess({"photos": "builtin", "crop_size": 64}, ["tv.denoise"])
    with pytest.raises(IrEnvError, match="knows 6 actions, the toolbox gives 2"):
        list(run(process, PlanPlanner(make_network(), View()), [process.start_image(images[1], images[1])]))


def test_mair_goes_from_compression_to_the_scene(images):
    process = RestorationProcess({"photos": "builtin", "crop_size": 64}, ["dcp.strong", "nlm.strong", "jpeg.quality25"], metrics=["psnr"])
    planner = MAIRPlanner(lambda observation: {"denoise", "dehaze", "dejpeg"}, threshold=-1e9)
    [episode] = [process.start_image(images[2], images[1])]
    for _ in run(process, planner, [episode]):
        pass
    assert [process.actions[index].task for index in episode.applied] == ["dejpeg", "denoise", "dehaze"]
    assert load_policy("mair").name == "mair"


# -- vision-language -----------------------------------------------------------------------------------------------------------------


def test_the_prompt_is_that_of_table_14_with_the_tools_of_the_toolbox():
    prompter = PlanPrompter(ACTIONS)
    assert "You are a professional image restoration assistant." in prompter.system
    assert all(f"- {name}\n" in prompter.system for name in DEGRADATIONS)
    assert "# Tools from x4\n- x4.edge\n- x4.fidelity" in prompter.system
    [_, user] = prompter.messages([np.zeros((8, 8, 3), np.uint8)])
    assert [part["type"] for part in user["content"]] == ["image", "text"]


def test_a_demonstration_is_well_formed_and_consistent():
    prompter = PlanSettings.of("nano").prompter(ACTIONS)
    for plan, combo in (([0], ["noise"]), ([3, 2, 0], ["low_resolution", "haze", "noise"]), ([2, 2], ["haze"])):
        answer = prompter.reasoned(plan, combo)
        assert parse_plan(prompter.write(answer), ACTIONS, 6) == answer and judge_by_rules([answer], ACTIONS) == [True]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a nano model that has learned the form of the answers."""
    settings = PlanSettings.of("nano")
    prompter = settings.prompter(ACTIONS)
    vlm = VisionLanguageModel.load("nano", prompter)
    text = prompter.write(prompter.reasoned([0, 2], ["noise", "haze"]))
    optimiser = torch.optim.Adam(vlm.model.parameters(), 2e-3)
    tokens, mask = vlm.encode_answers([text] * 4)
    rng = np.random.default_rng(0)
    for _ in range(60):
        flat = np.broadcast_to(rng.integers(0, 256, (4, 1, 1, 3), np.uint8), (4, 64, 352, 3))
        noisy = rng.integers(0, 256, (4, 64, 352, 3), np.uint8)
        prompts = vlm.encode([prompter.messages([sheet]) for sheet in (flat // 2 + noisy // 2)])
        optimiser.zero_grad()
        (-vlm.logprobs(prompts, tokens, mask).sum(1).mean()).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("nano")
    vlm.save(folder)
    settings.save(folder)
    return folder


def test_a_trained_folder_is_a_policy(taught, images):
    planner = load_policy(taught)
    assert isinstance(planner, VLMPlanPlanner)
    process = RestorationProcess({"photos": "builtin", "crop_size": 64}, TOOLS)
    episode = process.start_image(images[0], images[0])
    for _ in run(process, planner, [episode]):
        pass
    assert episode.applied == [0, 2] and planner.counts["answers"] == 1 and not planner.counts["malformed"]


# -- under GRPO ----------------------------------------------------------------------------------------------------------------------


def settings(module, env=None, **model_config):
    return (
        GRPOConfig()
        .environment("ir_env:ir_env/RestorationPlan-v0", env_config={**ENV, **(env or {})})
        .env_runners(num_envs_per_env_runner=8)
        .training(group_size=4, lr=1e-3, num_epochs=2, num_minibatches=2, rewards="return", advantage="grpo")
        .rl_module(rl_module_spec=RLModuleSpec(module_class=module, model_config={"actions": PAIRS, **model_config}))
        .debugging(seed=3)
    )


@contextmanager
def running(config):
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def test_the_network_trains_and_is_loaded_as_a_planner(ray_cluster, tmp_path, images):
    with running(settings(PlanRLModule, hidden=32)) as algorithm:
        before = algorithm.learner_group.get_weights()["default_policy"]["network.actor.bias"].copy()
        result = algorithm.train()
        assert not np.array_equal(before, algorithm.learner_group.get_weights()["default_policy"]["network.actor.bias"])
        told = result["grpo"]
        assert set(told["part"]) == {"quality", "degradation", "format", "consistency"} and 0 < told["part"]["quality"] < 1
        assert told["tokens"] > SEEN and result["learners"]["default_policy"]["sampling_gap"] < 1e-5
        assert all("+" not in name for name in told["tool_use"])
        algorithm.save_to_path(tmp_path / "checkpoint")
        seen = observations(images[:1])
        seen = {key: value for key, value in seen.items()}
        seen["history"] = seen["history"][:, :3]
        expected = algorithm.get_module().forward_inference({Columns.OBS: seen})[Columns.ACTIONS][0]
    planner = load_checkpoint(tmp_path / "checkpoint")
    process = RestorationProcess({"photos": "builtin", "crop_size": 64}, TOOLS, max_steps=3)
    episode = process.start_image(images[0], images[0])
    for _ in run(process, planner, [episode]):
        pass
    plan = [token for token in expected[SEEN:].tolist() if token != ACTIONS.stop]
    assert episode.applied == plan


def test_texts_reach_the_environment_and_are_judged(ray_cluster, taught):
    judged = {"judge": "rules"}
    with running(settings(VLMPlanRLModule, judged, model=str(taught), max_tokens=60)) as algorithm:
        told = algorithm.train()["grpo"]
    assert told["part"]["format"] > 0.5 and told["part"]["consistency"] > 0.3
    assert told["tokens"] > 20 and told["tool_use"]["tv.denoise"] > 0


# -- judges --------------------------------------------------------------------------------------------------------------------------

REASONED = PlanAnswer((0,), ("noise",), "It is noisy, so I denoise.")


@pytest.mark.parametrize(
    ("text", "said"), [("Yes", True), ("**no**.", False), ("<t>No, wait</t> Yes.", True), ("", False), ("Perhaps", False)]
)
def test_verdicts(text, said):
    assert verdict(text) is said


@pytest.fixture
def endpoint():
    """An OpenAI-compatible server: the first request of each fails, then it says yes to what is noisy."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            if body["model"] == "absent" or len(asked) == 1:
                self.send_error(404 if body["model"] == "absent" else 503)
                return
            said = "Yes" if "noisy" in body["messages"][1]["content"] else "No"
            answer = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def test_a_judge_behind_an_endpoint(endpoint, monkeypatch):
    url, asked = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge = endpoint_judge(url, "small")
    answers = [REASONED, PlanAnswer((2,), (), "So be it, then."), PlanAnswer((0,)), PlanAnswer((0,), (), "")]
    assert judge(answers, ACTIONS) == [True, False, True, False]
    path, key, body = asked[-1]
    assert (path, key, len(asked)) == ("/v1/chat/completions", "Bearer secret", 3), "one failure, which was tried again"
    assert "['dcp.strong']" in body["messages"][1]["content"]
    with pytest.raises(IrEnvError, match="refuses"):
        endpoint_judge(url, "absent")([REASONED], ACTIONS)
    assert endpoint_judge("http://127.0.0.1:9", "small", retries=0)([REASONED], ACTIONS) == [False]


def test_a_local_judge(taught, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = VisionLanguageModel.load(taught).tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = local_judge(str(tmp_path), max_tokens=2)
    assert judge([REASONED, PlanAnswer((0,))], ACTIONS) == [False, True], "an untrained one says neither yes nor no"
    with pytest.raises(IrEnvError, match="cannot be loaded"):
        local_judge(str(tmp_path / "nowhere"))
