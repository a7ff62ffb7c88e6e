import pickle

import numpy as np
import pytest
import torch
import yaml

from tool_actors.cotraining import CoTraining, Part, Settings, as_state, batches, run_chain
from tool_actors.embedded.networks import HalfResolutionNet, SuperResolver
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.learned import LearnedTool
from tool_actors.losses import RestorationLoss, l1_loss
from tool_actors.plans import run_plans
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox
from tool_actors.trained_toolbox import write_toolbox
from tool_actors.weight_files import UnsupportedCheckpointError

CHAIN = ("noise.gaussian25", "haze.thin", "tv.denoise", "motion.short")
LEARNED = [name for name in CHAIN if name != "tv.denoise"]


@pytest.fixture
def toolbox():
    return load_toolbox([*CHAIN, "x4.fidelity", "rain.light"])


@pytest.fixture
def part(photo):
    clean = torch.from_numpy(photo[:64, :64].copy()).permute(2, 0, 1)[None].float() / 255
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return Part(CHAIN, (clean + noise).clamp(0, 1), clean)


def _loss():
    return RestorationLoss({"l1": l1_loss}, {"l1": 1.0})


def _learn(toolbox, part, steps=2, **settings):
    trainer = CoTraining(toolbox, _loss(), Settings(epochs=1, lr=1e-3, **settings))
    for _ in range(steps):
        trainer.step([part], epoch=1)
    return trainer


# -- the chain -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_through_four_tools_are_finite_differences(checkpointing):
    torch.manual_seed(0)
    networks = [HalfResolutionNet(4, 1), SuperResolver(4, 1), HalfResolutionNet(4, 1), HalfResolutionNet(4, 1)]
    # small corrections keep states off the ends of [0, 1], where a clamp whose gradient passes differs from its finite difference
    tools = []
    for index, network in enumerate(networks):
        with torch.no_grad():
            for weight in network.tail.parameters():
                weight *= 0.1
        scale = 4 if isinstance(network, SuperResolver) else 1
        tools.append(LearnedTool(f"tiny.{index}", "denoise", network.double(), scale=scale, multiple=network.multiple))
    images = 0.3 + 0.4 * torch.rand(2, 3, 8, 8, dtype=torch.float64)
    clean = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def loss():
        return (run_chain(tools, images, checkpointing=checkpointing, quantise=False) - clean).square().mean()

    loss().backward()
    step = 1e-6
    for network in networks:
        for weight in (network.head.weight, network.tail.weight):
            flat, gradient = weight.data.view(-1), weight.grad.view(-1)
            place = int(gradient.abs().argmax())
            before = flat[place].item()
            with torch.no_grad():
                values = []
                for shift in (step, -step):
                    flat[place] = before + shift
                    values.append(loss().item())
                flat[place] = before
            assert abs(gradient[place]) > 1e-9
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient[place].item(), rel=1e-5)


def test_training_sees_what_execution_does(toolbox, part):
    pixels = (part.degraded[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    [results] = run_plans(LocalExecutor(toolbox), [(ImageState.from_pixels(pixels), CHAIN)])
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        last = run_chain([toolbox[name] for name in CHAIN], images)
    apart = np.abs((last[0].permute(1, 2, 0) * 255).round().numpy() - results[-1].state.pixels)
    # memory lies otherwise, so a convolution may round otherwise
    assert apart.max() <= 1 and apart.mean() < 0.01


def test_a_state_is_clamped_and_rounded_and_its_gradient_passes():
    images = torch.tensor([-0.2, 0.1, 0.5, 1.3], requires_grad=True)
    state = as_state(images)
    assert state.tolist() == pytest.approx([0, 26 / 255, 128 / 255, 1])
    (state * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert images.grad.tolist() == [1, 2, 3, 4]
    assert as_state(images, quantise=False).tolist() == pytest.approx([0, 0.1, 0.5, 1])


class Enlarge(Tool):
    """A tool without gradients that makes white of everything, four times as large."""

    spec = ToolSpec("white.x4", "super_resolve", "white", scale=4)

    def __call__(self, images):
        assert not images.requires_grad
        return torch.ones(*images.shape[:2], 4 * images.shape[2], 4 * images.shape[3])


@pytest.mark.parametrize("how", ["straight_through", "stop"])
def test_tools_without_gradients(how):
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    last = run_chain([Enlarge()], images, classical=how)
    assert last.shape == (1, 3, 32, 32) and (last == 1).all()
    if how == "stop":
        assert not last.requires_grad
        return
    last.sum().backward()
    # the gradient of enlarging: each pixel counts for the 16 that it becomes, near the borders for more or less
    assert images.grad.sum().item() == pytest.approx(3 * 32 * 32, rel=1e-4) and images.grad[..., 3:5, 3:5].mean() > 10


def test_stop_keeps_tools_before_it_from_learning(toolbox, part):
    assert set(_learn(toolbox, part).updates) == set(LEARNED)
    assert set(_learn(toolbox, part, classical="stop").updates) == {"motion.short"}


def test_a_black_pixel_spoils_no_gradient(toolbox):
    """The square root of the curves has an infinite slope there."""
    black = Part(("noise.gaussian25", "haze.thin"), torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    trainer = CoTraining(toolbox, _loss(), Settings(epochs=1))
    trainer.step([black], 1)
    for name in black.plan:
        assert all(torch.isfinite(weight.grad).all() for weight in trainer.tools[name].module.parameters())


# -- the training --------------------------------------------------------------------------------------------------------------------


def test_the_tools_learn_and_the_toolbox_stays(toolbox, part):
    before = {tool.spec.name: {k: v.clone() for k, v in tool.module.state_dict().items()} for tool in toolbox if hasattr(tool, "module")}
    trainer = CoTraining(toolbox, _loss(), Settings(epochs=1, lr=1e-3))
    first = trainer.validate([part])
    for _ in range(5):
        trainer.step([part], 1)
    last = trainer.validate([part])
    assert last["loss"] < first["loss"] and last["psnr"] > first["psnr"]
    assert set(trainer.trained()) == set(LEARNED), "a tool that no plan names does not change"
    for name, state in before.items():
        assert all(torch.equal(value, toolbox[name].module.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize("change", [{}, {"checkpointing": True}])
def test_the_same_training_gives_the_same_weights(toolbox, part, change):
    first, second = _learn(toolbox, part), _learn(toolbox, part, **change)
    for name in LEARNED:
        pairs = zip(first.tools[name].module.parameters(), second.tools[name].module.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_each_tools_gradient_is_clipped_at_the_norm(toolbox, part):
    loss = RestorationLoss({"l1": lambda x, y: 1e6 * l1_loss(x, y)}, {"l1": 1.0})
    trainer = CoTraining(toolbox, loss, Settings(epochs=1))
    trainer.step([part], 1)
    for name in LEARNED:
        norm = torch.stack([weight.grad.norm() for weight in trainer.tools[name].module.parameters()]).norm()
        assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_the_rate_rises_with_a_tools_updates_and_decays(toolbox, part):
    def rates(progress, **settings):
        trainer = CoTraining(toolbox, _loss(), Settings(epochs=1, lr=1e-3, **settings))
        told = []
        for share in progress:
            trainer.step([part], 1, share)
            told.append(1e3 * trainer.optimisers["motion.short"].param_groups[0]["lr"])
        return told

    assert rates([0.0, 0.0, 0.0], warmup=2) == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates([0.0, 0.5, 1.0], decay=True) == pytest.approx([1, 0.525, 0.05])
    assert rates([0.0, 0.5, 1.0]) == pytest.approx([1, 1, 1])


def test_what_is_kept_is_the_running_mean_of_the_weights(toolbox, part):
    """Without averaging the weights themselves; an interrupted training has the same mean."""
    trainer, second = (CoTraining(toolbox, _loss(), Settings(epochs=1, lr=1e-3, average=0.75)) for _ in range(2))
    weights = lambda: next(trainer.tools["motion.short"].module.parameters()).detach().clone()  # noqa: E731
    seen = []
    for _ in range(3):
        trainer.step([part], 1)
        seen.append(weights())
    expected = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    assert torch.allclose(next(trainer.trained()["motion.short"].parameters()), expected, atol=1e-7)
    second.load_state_dict(pickle.loads(pickle.dumps(trainer.state_dict())))
    for one, other in zip(trainer.trained()["motion.short"].parameters(), second.trained()["motion.short"].parameters(), strict=True):
        assert torch.equal(one, other)
    plain = _learn(toolbox, part)
    assert torch.equal(next(plain.trained()["motion.short"].parameters()), next(plain.tools["motion.short"].module.parameters()))


def test_relative_losses_weigh_by_what_they_are(toolbox, part):
    """A loss three times as large has three times the gradient, and the same if it counts by its logarithm."""

    def norm(scale, **settings):
        loss = RestorationLoss({"l1": lambda x, y: scale * l1_loss(x, y)}, {"l1": 1.0})
        trainer = CoTraining(toolbox, loss, Settings(epochs=1, max_norm=1e9, **settings))
        told = trainer.step([part], 1)
        gradients = [weight.grad.norm() for weight in trainer.tools["motion.short"].module.parameters()]
        return torch.stack(gradients).norm().item(), told["loss"]

    one, value = norm(1.0)
    assert norm(3.0)[0] == pytest.approx(3 * one, rel=1e-3)
    assert norm(1.0, relative=True)[0] == pytest.approx(one / value, rel=1e-2)
    assert norm(3.0, relative=True)[0] == pytest.approx(one / value, rel=1e-2)


def test_parts_of_a_batch_weigh_as_many_as_they_are(toolbox, part):
    three = Part(part.plan, part.degraded.repeat(3, 1, 1, 1), part.clean.repeat(3, 1, 1, 1))
    other = Part(("motion.short",), part.clean, part.clean)
    apart, together = (CoTraining(toolbox, _loss(), Settings(epochs=1)) for _ in range(2))
    told = apart.step([part, part, part, other], 1)
    assert together.step([three, other], 1)["loss"] == pytest.approx(told["loss"], rel=1e-5)


def test_an_interrupted_training_goes_on_to_the_same_weights(toolbox, part):
    whole, first = _learn(toolbox, part, 4), _learn(toolbox, part, 2)
    second = CoTraining(toolbox, _loss(), Settings(epochs=1, lr=1e-3))
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for _ in range(2):
        second.step([part], 1)
    for name in LEARNED:
        pairs = zip(whole.tools[name].module.parameters(), second.tools[name].module.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_wrong_settings_are_named(toolbox, part):
    with pytest.raises(UnknownNameError, match="did you mean 'stop'"):
        Settings(classical="stopp")
    with pytest.raises(IrEnvError, match="average is a share"):
        Settings(average=1)
    with pytest.raises(IrEnvError, match="no tool that can learn"):
        CoTraining(load_toolbox(["tv.denoise"]), _loss())
    with pytest.raises(UnknownNameError, match=r"tool of a plan 'haze\.thik'.*Known"):
        CoTraining(toolbox, _loss(), Settings(epochs=1)).step([Part(("haze.thik",), part.degraded, part.clean)], 1)


def test_batches_hold_every_image_once_and_parts_share_a_key():
    keys = ["a"] * 7 + ["b"] * 2 + list("cdefg")
    made = batches(keys, 3, np.random.default_rng(0))
    assert sorted(place for batch in made for part in batch for place in part) == list(range(len(keys)))
    assert all(len({keys[place] for place in part}) == 1 for batch in made for part in batch)
    assert all(sum(map(len, batch)) <= 3 for batch in made)
    assert made == batches(keys, 3, np.random.default_rng(0)) != batches(keys, 3, np.random.default_rng(1))


# -- the new toolbox -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(toolbox, part, tmp_path):
    """(trainer, the file of the new toolbox)"""
    trainer = _learn(toolbox, part)
    return trainer, write_toolbox(toolbox, trainer.trained(), tmp_path / "new", "Co-trained.")


def test_the_new_toolbox_has_the_same_names_and_other_fingerprints(toolbox, written):
    new = load_toolbox(written[1])
    assert new.names == toolbox.names
    for old, tool in zip(toolbox, new, strict=True):
        assert (old.spec.fingerprint != tool.spec.fingerprint) == (tool.spec.name in LEARNED)
        assert old.spec.task == tool.spec.task and old.spec.scale == tool.spec.scale and old.spec.tile == tool.spec.tile
    assert "Co-trained." in new["haze.thin"].spec.description


def test_what_is_loaded_is_what_was_trained(written, part):
    trainer, file = written
    new = load_toolbox(file)
    with torch.no_grad():
        for name in LEARNED:
            assert torch.equal(new[name](part.degraded), trainer.kept[name](part.degraded)), name


def test_a_reference_means_the_new_tools(toolbox, written, tmp_path, monkeypatch):
    new = load_toolbox(written[1])
    monkeypatch.chdir(tmp_path.parent)
    again = load_toolbox(pickle.loads(pickle.dumps(new.references)))
    assert [tool.spec.fingerprint for tool in again] == [tool.spec.fingerprint for tool in new]
    assert again.select(["haze.thin"]).references == [new.references[1]]
    # other weights under the old path are refused, not taken for those
    weights = written[1].parent / "haze.thin.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(UnsupportedCheckpointError, match=r"haze\.thin"):
        load_toolbox(new.references)


def test_nothing_is_taken_from_the_old_tools_cache(toolbox, written, photo):
    state = ImageState.from_pixels(photo[:64, :64])
    executor = LocalExecutor(toolbox)
    [old] = executor.run([Request(state, "motion.short")])
    executor.toolbox = load_toolbox(written[1])
    [new] = executor.run([Request(state, "motion.short")])
    assert old.state.key != new.state.key and not new.cached


def test_a_recognised_network_is_written_and_recognised_again(part, tmp_path):
    from safetensors.torch import save_file
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(0)
    save_file(NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump([{"name": "nafnet.mine", "task": "denoise", "file": "net.safetensors"}]))
    toolbox = load_toolbox(tmp_path / "mine.yaml")
    trainer = _learn(toolbox, Part(("nafnet.mine",), part.degraded, part.clean))
    new = load_toolbox(write_toolbox(toolbox, trainer.trained(), tmp_path / "new"))
    assert new[0].spec.fingerprint != toolbox[0].spec.fingerprint
    with torch.no_grad():
        assert torch.equal(new[0](part.degraded), trainer.kept["nafnet.mine"](part.degraded))


def test_a_network_made_by_code_cannot_be_written(tmp_path):
    own = Toolbox([LearnedTool("own.net", "denoise", HalfResolutionNet(4, 1), multiple=2)])
    with pytest.raises(IrEnvError, match=r"own\.net.*loaded again"):
        write_toolbox(own, {}, tmp_path)
