"""AgenticIR, 4KAgent, RestoreAgent, the searches for upper bounds, and what they perceive with."""

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest

from ir_env.actions import ActionTable
from ir_env.datasets.base import fixed_samples
from ir_env.evaluation import compare, run_all
from ir_env.metrics import MetricWeightsMissing
from ir_env.planner import Observation, Tried, observation_of, run
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from policies.memory import ImageMemory
from policies.planners import FixedPlan, GreedyPlanner
from policies.planners.agenticir import AgenticIRPlanner, EncoderSeverity
from policies.planners.four_k_agent import OFFLINE, Q_MOE, FourKAgentPlanner, Profile
from policies.planners.perception import EncoderPerception, KnownDegradations
from policies.planners.restore_agent import RestoreAgentPlanner, everything, standardised
from policies.planners.rollback import EXPERIENCE, schedule
from policies.planners.search import search_all, search_beam
from policies.planners.vlm_judge import parse_degradations
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import TASK_OF

PAIRS = [
    ("denoise", "n1"),
    ("denoise", "n2"),
    ("dehaze", "h1"),
    ("brighten", "b1"),
    ("super_resolve", "x.psnr"),
    ("super_resolve", "x.gan"),
]
ACTIONS = ActionTable.from_pairs(PAIRS, low_resolution_below=300)
N1, N2, H1, B1, PSNR, GAN = range(6)
STOP = ACTIONS.stop


class World:
    """An image whose pixels are the plan that led to it, after a first one that names the photograph; and what trying tells of it.

    Args:
        quality: of the image that a plan leads to; as NIQE it tells 10 less it.
        failing: tools that raise.
    """

    def __init__(self, quality=lambda plan: 0.0, failing=(), photograph=99):
        self.quality, self.failing, self.photograph = quality, failing, photograph
        self.ran = []

    def image(self, plan):
        pixels = [self.photograph, *plan] + [255] * 20
        return np.array([[[value] * 3 for value in pixels]] * (8 if GAN in plan or PSNR in plan else 4), np.uint8)

    def observation(self, history=(), max_steps=6):
        def try_tools(actions, metrics, after=()):
            made = []
            for action in actions:
                plan = (*history, *after, *([] if action == STOP else [action]))
                self.ran += [plan] if action != STOP else []
                error = "broken" if action in self.failing else ""
                scores = {name: 10 - self.quality(plan) if name == "niqe" else 50.0 for name in metrics}
                made.append(Tried(action, self.image(plan), scores, error))
            return made

        mask = np.ones(ACTIONS.n, np.int8)
        if {PSNR, GAN} & set(history):
            mask[[PSNR, GAN]] = 0
        images = tuple(self.image(history[:length]) for length in range(len(history) + 1))
        return Observation(images[-1], images, tuple(history), mask, ACTIONS, max_steps, None, try_tools)


def followed(planner, world, max_steps=6):
    """Tools taken, to the end of the episode."""
    history = ()
    while len(history) < max_steps:
        action = planner.plan(world.observation(history, max_steps))
        if action == STOP:
            break
        history = (*history, action)
    return history


def plan_of(image):
    return tuple(value for value in image[0, 1:, 0].tolist() if value != 255)


def agenticir(levels, tasks=("denoise", "dehaze", "brighten"), **options):
    """AgenticIR that sees these tasks; ``levels`` tells of a plan how much of the last tool's degradation is left."""
    return AgenticIRPlanner(lambda observation: tasks, lambda image, task: levels(plan_of(image)), **options)


# -- the schedule --------------------------------------------------------------------------------------------------------------------


def test_the_schedule_follows_experience_and_then_the_usual_order():
    for (first, then), (rate, other) in EXPERIENCE.items():
        assert rate < other and schedule([then, first]) == [first, then]
    assert schedule(["super_resolve", "brighten", "derain", "denoise"]) == ["denoise", "derain", "brighten", "super_resolve"]
    assert schedule(["denoise", "brighten"], {("denoise", "brighten"): (0.5, 0.2)}) == ["brighten", "denoise"], "another experience"
    assert schedule([]) == [] and schedule(["desnow", "dehaze"]) == ["dehaze", "desnow"], "a task of a user's own comes last"
    circle = {("denoise", "dejpeg"): (0, 1), ("dejpeg", "derain"): (0, 1), ("derain", "denoise"): (0, 1)}
    with pytest.raises(IrEnvError, match="leave out one"):
        schedule(["denoise", "dejpeg", "derain"], circle)


# -- AgenticIR -----------------------------------------------------------------------------------------------------------------------


def test_tools_are_tried_one_by_one_until_the_degradation_is_very_low():
    world = World()
    assert len(followed(agenticir(lambda plan: 0), world)) == 3
    assert len(world.ran) == 3, "one of the two tools for noise, and one each of the others"
    world = World(quality=lambda plan: {N1: 1.0, N2: 2.0}.get(plan[-1], 0.0) if plan else 0.0)
    assert followed(agenticir(lambda plan: 1, ("denoise",)), world) == (N2,), "of two that leave it low, the better"
    assert sorted(world.ran) == [(N1,), (N2,)]
    for seed in range(4):
        planner = agenticir(lambda plan: 1 if plan[-1] == N1 else 2, ("denoise",), seed=seed)
        assert followed(planner, world) == (N1,), "the lower level, though it is worse, in whatever order they are tried"


def test_a_task_that_fails_is_rolled_back_and_another_comes_first():
    """Noise goes only after haze has."""
    world = World()
    planner = agenticir(lambda plan: 0 if plan[-1] != N1 or H1 in plan else 2, ("denoise", "dehaze"), seed=1)
    world.failing = (N2,)
    assert followed(planner, world) == (H1, N1)
    assert world.ran.count((N1,)) == 1, "what has failed on an image is remembered"


def test_a_task_that_succeeded_is_rolled_back_where_nothing_can_follow_it():
    """Scheduled first, the noise goes at once, and then the dark cannot; the other way round both succeed."""
    world = World(failing=(N2,))
    planner = agenticir(lambda plan: 4 if plan == (N1, B1) else 0, ("denoise", "brighten"))
    assert followed(planner, world) == (B1, N1)
    assert [plan for plan in world.ran if N2 not in plan] == [(N1,), (N1, B1), (B1,), (B1, N1)]


def test_where_all_fail_the_best_is_a_compromise_and_the_rest_is_gone_on_with():
    world = World(quality=lambda plan: 5.0 if plan[:1] == (H1,) else 1.0)
    taken = followed(agenticir(lambda plan: 4), world)
    assert taken[0] == H1 and [ACTIONS[tool].task for tool in taken[1:]] == ["denoise", "brighten"]
    kept = World(quality=world.quality)
    taken = followed(agenticir(lambda plan: 4, roll_back=False), kept)
    assert [ACTIONS[tool].task for tool in taken] == ["denoise", "dehaze", "brighten"] and len(kept.ran) == 4 < len(world.ran)


def test_a_budget_ends_rolling_back():
    world = World()
    assert len(followed(agenticir(lambda plan: 4, budget=2), world)) == 3
    assert len(world.ran) == 4, "every tool once, in the order of the schedule"
    free = World()
    followed(agenticir(lambda plan: 4), free)
    assert len(free.ran) > len(world.ran)


def test_tools_that_raise_are_left_out_and_steps_are_bounded():
    assert followed(agenticir(lambda plan: 0, ("denoise", "dehaze")), World(failing=(N1, N2))) == (H1,)
    assert followed(agenticir(lambda plan: 0), World(failing=range(6))) == ()
    world = World(failing=(N1, N2))
    followed(agenticir(lambda plan: 4), world)
    assert world.ran.count((H1,)) == 1, "a task whose tools all fail is off the agenda"
    short = World(failing=(N2,))
    assert len(followed(agenticir(lambda plan: 0), short, max_steps=2)) == 2 and max(map(len, short.ran)) == 2
    assert followed(agenticir(lambda plan: 0, ()), World()) == ()


def test_a_planner_that_is_asked_in_the_middle_goes_on_from_there():
    planner = agenticir(lambda plan: 0, ("denoise", "dehaze"))
    assert planner.plan(World().observation((N2,))) == H1
    assert planner.plan(World().observation((N2, H1))) == STOP
    assert planner.plan(World().observation((H1,))) in (N1, N2), "another way than the one that it remembers"
    with pytest.raises(IrEnvError, match="agenticir tries tools"):
        planner.plan(replace(World(photograph=7).observation(), try_tools=None))


def test_images_of_a_batch_do_not_mix():
    """Two images of one batch, one of which cannot be dehazed first, step by step together as each alone."""
    worlds = [World(photograph=1, failing=(N2,)), World(photograph=2, failing=(N2,))]

    def perceive(observation):
        return ("denoise", "dehaze") if observation.trajectory[0][0, 0, 0] == 1 else ("dehaze", "brighten")

    def make():
        return AgenticIRPlanner(perceive, lambda image, task: 4 if image[0, 0, 0] == 1 and plan_of(image) == (N1,) else 0)

    together, histories = make(), [(), ()]
    for _ in range(3):
        actions = together.plan_batch([world.observation(history) for world, history in zip(worlds, histories, strict=True)])
        histories = [(*history, action) for history, action in zip(histories, actions, strict=True)]
    assert histories == [(H1, N1, STOP), (H1, B1, STOP)]
    assert histories == [(*followed(make(), world), STOP) for world in worlds]


def test_severity_is_asked_of_the_task_and_of_blur_after_enlarging(crop):
    class Told:
        def probabilities(self, image):
            return {"noise": 0.19, "haze": 0.99, "motion_blur": 0.1, "defocus_blur": 0.5, "low_light": 1.0}

    severity = EncoderSeverity(Told())
    levels = [severity(crop, task) for task in ("denoise", "dehaze", "super_resolve", "brighten", "derain")]
    assert levels == [0, 4, 2, 4, 0]


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("policies.memory.REMEMBERED", 2)
    memory = ImageMemory()
    memory.update({1: "a", 2: "b"})
    memory[3] = "c"
    assert list(memory) == [2, 3]


# -- 4KAgent -------------------------------------------------------------------------------------------------------------------------


def test_all_tools_of_a_task_run_and_the_best_by_the_mixture_stays():
    world = World(quality=lambda plan: {(N1,): 1.0, (N2,): 2.0}.get(plan, 0.0))
    planner = FourKAgentPlanner(mixture=OFFLINE, perceive=lambda observation: ("denoise",))
    assert followed(planner, world) == (N2,) and sorted(world.ran) == [(N1,), (N2,)]
    assert "niqe" in planner.name


def test_a_drop_is_rolled_back():
    """Removing noise first makes it worse, after haze it does not."""
    world = World(quality=lambda plan: -1.0 if plan[:1] in ((N1,), (N2,)) else float(len(plan)))
    planner = FourKAgentPlanner(mixture=OFFLINE, perceive=lambda observation: ("denoise", "dehaze"))
    assert followed(planner, world) == (H1, N1)
    kept = FourKAgentPlanner(Profile(roll_back=False), OFFLINE, lambda observation: ("denoise", "dehaze"))
    assert followed(kept, world)[0] in (N1, N2)


def test_the_published_mixture_and_its_threshold():
    tried = Tried(0, np.zeros((8, 8, 3), np.uint8), {"clipiqa+": 0.6, "maniqa": 0.4, "musiq": 50.0, "niqe": 5.0})
    assert Q_MOE(tried) == pytest.approx(0.25 * (0.6 + 0.4 + 0.5 + 0.5))
    assert Q_MOE(replace(tried, scores={**tried.scores, "niqe": None})) == pytest.approx(0.25 * (0.6 + 0.4 + 0.5))
    good, bad = (replace(Q_MOE, weights={"niqe": -0.025}, threshold=level) for level in (0.1, 0.2))
    planner = FourKAgentPlanner(mixture=good, perceive=lambda observation: ("denoise",))
    search = World(quality=lambda plan: 5.0)
    assert followed(planner, search) and Q_MOE.threshold == 0.38
    strict = FourKAgentPlanner(mixture=bad, perceive=lambda observation: ("denoise", "dehaze"))
    followed(strict, search)
    assert len(search.ran) > 2 + 3, "all fail below the threshold, and come first once each"


@pytest.mark.parametrize(("profile", "taken"), [("perception", GAN), ("fidelity", PSNR), ("fast", GAN)])
def test_profiles_choose_among_the_tools(profile, taken):
    world = World()
    planner = FourKAgentPlanner(profile, OFFLINE, lambda observation: ("super_resolve", "denoise"))
    assert taken in followed(planner, world)
    assert len([plan for plan in world.ran if plan[-1] in (N1, N2)]) == (1 if profile == "fast" else 2)
    with pytest.raises(UnknownNameError, match="perception"):
        FourKAgentPlanner("perceptoin")


def test_without_the_weights_of_its_metrics_it_says_so_and_goes_on(caplog):
    world = World(quality=lambda plan: float(len(plan)))
    observation = world.observation()

    def without_weights(actions, metrics, after=()):
        if "maniqa" in metrics:
            raise MetricWeightsMissing("maniqa", "maniqa.pt", "https://where", "no network")
        return observation.try_tools(actions, metrics, after)

    planner = FourKAgentPlanner(perceive=lambda observation: ("denoise",))
    with caplog.at_level(logging.WARNING):
        assert planner.plan(replace(observation, try_tools=without_weights)) in (N1, N2)
    assert planner.mixture is OFFLINE and "instead of Q-MoE" in caplog.text and "maniqa.pt" in caplog.text
    rich = FourKAgentPlanner(perceive=lambda observation: ("denoise",))
    rich.plan(observation)
    assert rich.mixture is Q_MOE and "maniqa" in rich.name


# -- RestoreAgent --------------------------------------------------------------------------------------------------------------------


def test_the_best_tool_is_taken_while_one_gains():
    world = World(quality=lambda plan: {(): 0.0, (H1,): 3.0, (N1,): 1.0, (H1, N2): 4.0}.get(plan, -1.0))
    planner = RestoreAgentPlanner(everything)
    assert followed(planner, world) == (H1, N2, PSNR), "then only enlarging is left, which does not wait for a gain"
    assert followed(RestoreAgentPlanner(lambda observation: ("denoise",)), world) == (N1,)
    gaining = World(quality=lambda plan: float(len(plan)))
    assert len(followed(RestoreAgentPlanner(lambda observation: ("denoise",)), gaining)) == 1, "each task once"
    world.failing = (H1,)
    assert followed(RestoreAgentPlanner(lambda observation: ("dehaze",)), world) == ()


def test_restore_agent_looks_again_after_a_tool_and_q_agent_does_not():
    gaining = World(quality=lambda plan: float(len(plan)))

    def perceive(observation):
        return ("dehaze",) if plan_of(observation.trajectory[0]) else ("denoise",)

    agents = [RestoreAgentPlanner(perceive, again=again) for again in (True, False)]
    assert [agent.name for agent in agents] == ["restore_agent", "q_agent"]
    assert [len(followed(agent, gaining)) for agent in agents] == [2, 1]


def test_no_metric_prevails_by_its_unit():
    image = np.zeros((8, 8, 3), np.uint8)
    told = [(5.0, 60.0), (4.0, 59.0), (3.0, 61.0)]
    tried = [Tried(index, image, {"niqe": niqe, "piqe": piqe}) for index, (niqe, piqe) in enumerate(told)]
    scores, scaled = (
        standardised([replace(each, scores={"niqe": each.scores["niqe"], "piqe": unit * each.scores["piqe"]}) for each in tried])
        for unit in (1.0, 100.0)
    )
    assert scores == pytest.approx(scaled, abs=1e-4) and int(np.argmax(scores)) == 1
    assert standardised([replace(tried[0], scores={"niqe": None}), replace(tried[1], scores={"niqe": 3.0})]) == pytest.approx([0, 0])


# -- perception ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["rain", "", None, "{}", '["snow"]', '["rain", "rain"]', '[["rain"]]', '["rain"] and so on', "[" * 900])
def test_what_is_no_list_of_degradations_names_none(text):
    assert parse_degradations(text) is None


def test_perception_by_labels_and_by_the_encoder(photo):
    assert tuple(KnownDegradations("rain+haze")(None)) == ("derain", "dehaze") and parse_degradations(' ["rain"] ') == ("rain",)
    noisy = np.clip(photo[:128, :128] + np.random.default_rng(0).normal(0, 40, (128, 128, 3)), 0, 255).astype(np.uint8)
    perceive = EncoderPerception()
    assert perceive.probabilities(noisy)["noise"] > 0.9 > perceive.probabilities(np.ascontiguousarray(photo[:128, :128]))["noise"]


def test_labels_are_told_for_the_images_at_hand(process, crop):
    blind = RestorationProcess(toolbox=TOOLS, metrics=["piqe"], reward_weights={"piqe": 1.0})
    episodes = process.start(fixed_samples(process.dataset, 3, 1))
    planner = load_policy("agenticir:labels")
    assert planner.needs_reference
    with pytest.raises(IrEnvError, match="only `ir-env bench`"):
        planner.plan(observation_of(process, episodes[0]))
    planner.perceive.tell(episodes)
    for episode in episodes:
        assert list(planner.perceive(observation_of(process, episode))) == [TASK_OF[episode.combo]]
    with pytest.raises(IrEnvError, match="nobody knows its degradations"):
        planner.perceive.tell([blind.start_image(crop)])
    with pytest.raises(IrEnvError, match="q_agent:labels"):
        load_policy("restore_agent:labels")


# -- on photographs ------------------------------------------------------------------------------------------------------------------

TOOLS = ["tv.denoise", "nlm.strong", "dcp.strong", "gamma.brighten", "bicubic.x4"]
DATA = {"split": "heldout", "crop_size": 64, "combos": "noise,haze,low_light"}


@pytest.mark.parametrize("name", ["agenticir", "4kagent", "restore_agent", "q_agent", "mair"])
def test_photographs_without_a_reference(name, photo, monkeypatch):
    monkeypatch.setattr("policies.planners.four_k_agent.available", lambda *arguments: OFFLINE)
    process = RestorationProcess(toolbox=TOOLS, metrics=["piqe"], reward_weights={"piqe": 1.0}, cache_bytes=0, low_resolution_below=64)
    dark = (photo[:128, :160] * 0.25).astype(np.uint8)
    noisy = np.clip(photo[:128, :160] + np.random.default_rng(0).normal(0, 40, (128, 160, 3)), 0, 255).astype(np.uint8)
    planner = load_policy(name)
    assert not planner.needs_reference
    episodes = [process.start_image(image) for image in (noisy, dark)]
    assert all(observation_of(process, episode).oracle is None for episode in episodes)
    for _ in run(process, planner, episodes):
        pass
    first, second = ([process.actions[action].task for action in episode.applied] for episode in episodes)
    assert "denoise" in first and "brighten" in second and not any(episode.error for episode in episodes)
    assert sum(episode.executions for episode in episodes) == process.executor.stats.executions, "what was tried is not run again"
    for image, episode in zip((noisy, dark), episodes, strict=True):
        alone = process.start_image(image)
        for _ in run(process, load_policy(name), [alone]):
            pass
        assert alone.applied == episode.applied


@pytest.fixture(scope="module")
def process():
    return RestorationProcess(DATA, TOOLS, metrics=["psnr"], reward="delta_psnr")


def test_the_searches_are_upper_bounds(process):
    episodes = process.start(fixed_samples(process.dataset, 3, 1))

    def gains(planner):
        own = [episode.fork() for episode in episodes]
        run_all(process, planner, own)
        return np.array([process.gain(each) for each in own])

    best, wide, greedy = (
        gains(planner) for planner in (search_all(process, episodes, 2), search_beam(process, episodes, 2, 16), GreedyPlanner())
    )
    assert not any(episode.history for episode in episodes), "the episodes are not changed"
    plans = [plan for length in range(3) for plan in itertools.product(TOOLS[:4], repeat=length)]
    every = np.max([gains(FixedPlan(plan)) for plan in plans], axis=0)
    assert best == pytest.approx(every, abs=1e-4) and wide == pytest.approx(best), "a beam that is wide enough is exhaustive"
    assert (gains(search_beam(process, episodes, 6, 1)) >= greedy - 1e-4).all()
    with pytest.raises(IrEnvError, match="other images"):
        run_all(process, search_all(process, episodes[:1], 1), process.start(fixed_samples(process.dataset, 3, 5)))


def test_a_search_as_a_policy_counts_what_it_ran(process):
    planner, episodes = load_policy("beam:2:2"), process.start(fixed_samples(process.dataset, 2, 1))
    assert planner.needs_reference and planner.name == "beam search (width 2, length 2)"
    made = planner.made_for(process, episodes)
    run_all(process, made, episodes)
    # four tools, as the crop is too large to be enlarged; four behind each of the two best plans; and the plan itself
    assert all(0 < len(episode.applied) <= 2 and episode.executions == 4 + 2 * 4 + len(episode.applied) for episode in episodes)
    with pytest.raises(IrEnvError, match="only `ir-env bench` can ask it"):
        run_all(process, planner, process.start(fixed_samples(process.dataset, 1, 1)))
    for wrong in ("beam:0:2", "beam:two", "beam:1:2:3"):
        with pytest.raises(IrEnvError, match="beam"):
            load_policy(wrong)


def test_a_search_is_a_contender_and_needs_a_reference(process, crop):
    table = compare({"dataset": DATA, "toolbox": TOOLS, "metrics": ["psnr"], "reward": "delta_psnr"}, {"beam": search_beam}, samples=2)
    assert table.row("beam").reward > 0 and "chosen on these very images" in table.note
    blind = RestorationProcess(toolbox=TOOLS, metrics=["piqe"], reward_weights={"piqe": 1.0})
    with pytest.raises(IrEnvError, match="compares with the clean image"):
        search_beam(blind, [blind.start_image(crop)])
