"""verl's agent loop and advantage on our episodes: verl's own classes, with the nano model behind its server's interface."""

import asyncio

import numpy as np
import pytest
import torch
from PIL import Image

from ir_env.actions import MALFORMED
from ir_env.process import RestorationProcess
from ir_env.tool_episode import ToolEpisode
from policies.grpo.advantages import AdvantageEstimator, AdvantageOptions
from policies.vlm.model import VisionLanguageModel
from policies.vlm.parser import parse
from policies.vlm.shipped import SHIPPED
from tool_actors.errors import IrEnvError

pytest.importorskip("verl", reason="verl is installed by itself: its requirements are an environment of their own")
OmegaConf = pytest.importorskip("omegaconf").OmegaConf

PROCESS = {"dataset": {"combos": "A"}, "metrics": ["psnr", "ssim_ycbcr"], "reward": "delta_psnr", "max_steps": 3}


@pytest.fixture(scope="module")
def nano() -> VisionLanguageModel:
    return VisionLanguageModel.load(SHIPPED)


class Server:
    """A model as verl's ``LLMServerClient`` serves it: token ids and images in, token ids and log-probabilities out."""

    def __init__(self, vlm: VisionLanguageModel):
        self.vlm, self.asked = vlm, []

    async def generate(self, request_id, *, prompt_ids, sampling_params, image_data=None, **_):
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append((request_id, len(prompt_ids), [image.size for image in image_data]))
        seen = self.vlm.processor.image_processor(images=image_data, return_tensors="pt")
        ids = torch.tensor([prompt_ids])
        types = (ids == self.vlm.model.config.image_token_id).long()
        prompts = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **seen}
        written = self.vlm.generate(prompts, sampling_params["temperature"], 64, seed=len(self.asked))
        kept = written.mask[0]
        return TokenOutput(token_ids=written.tokens[0][kept].tolist(), log_probs=written.logprobs[0][kept].tolist())


def agent_loop(server, vlm, process, response_length=512):
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from policies.integrations.verl_agent_loop import RestorationAgentLoop

    rollout = {"prompt_length": 512, "response_length": response_length}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout, "model": {"path": str(SHIPPED)}}, "data": {}})
    wrapped = DictConfigWrap(config), server, vlm.tokenizer, vlm.processor, RLHFDataset, DictConfigWrap(config.data)
    return RestorationAgentLoop(*wrapped, process=OmegaConf.create(process))


def play(vlm, seeds, process=PROCESS, temperature=1.0, **settings):
    """The rollouts of these seeds, played at once as verl's worker does, and what the server was asked."""
    from policies.integrations.verl_rows import rows

    server = Server(vlm)

    async def run():
        loops = [agent_loop(server, vlm, process, **settings) for _ in seeds]
        told = [rows(1, seed)[0] for seed in seeds]
        return await asyncio.gather(
            *(loop.run({"temperature": temperature}, raw_prompt=row["prompt"], **row) for loop, row in zip(loops, told, strict=True))
        )

    return asyncio.run(run()), server


def test_a_rollout_is_the_environments_episode(nano):
    outputs, server = play(nano, [3, 3, 4], temperature=0)
    assert outputs[0].response_ids == outputs[1].response_ids and outputs[0].reward_score == outputs[1].reward_score
    for seed, output in zip([3, 3, 4], outputs, strict=True):
        episode = ToolEpisode(RestorationProcess(**PROCESS))
        episode.reset(seed=seed)
        runs = np.split(np.array(output.response_ids), np.flatnonzero(np.diff(output.response_mask)) + 1)
        texts = [nano.tokenizer.decode(run, skip_special_tokens=True) for run in runs[::2]]
        for text in texts:
            action = parse(text, episode.actions).action
            episode.take(MALFORMED if action is None else action)
        assert episode.done and output.num_turns == 2 * len(texts)
        assert output.reward_score == pytest.approx(episode.episode.total_reward, abs=1e-5)
        told = dict(output.extra_fields["reward_extra_info"])
        assert told.pop("format") == 1 - episode.invalid_share and told == pytest.approx(episode.rewards, abs=1e-5)
        assert output.response_mask[0] == output.response_mask[-1] == 1 and len(output.response_logprobs) == len(output.response_ids)
    assert max(len(images) for _, _, images in server.asked) > 1, "the model saw what a tool made"


def test_images_and_their_places_agree_for_verls_own_processing(nano):
    """verl reads the whole rollout again for the update: as many images as places, of the same sizes."""
    [output], _ = play(nano, [3], temperature=0)
    images = output.multi_modal_data["images"]
    assert all(isinstance(image, Image.Image) for image in images)
    grids = nano.processor.image_processor(images=images, return_tensors="pt")["image_grid_thw"]
    places = (np.array(output.prompt_ids + output.response_ids) == nano.model.config.image_token_id).sum()
    assert places == int((grids.prod(1) // nano.processor.image_processor.merge_size**2).sum())


def test_a_rollout_that_would_be_too_long_is_stopped(nano):
    [output], _ = play(nano, [3], temperature=0, response_length=30)
    assert len(output.response_ids) <= 30 and len(output.multi_modal_data["images"]) == 1 and np.isfinite(output.reward_score)


def test_mar_stands_under_the_name_that_verl_hands_the_metrics_to():
    from verl import DataProto
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.ray_trainer import compute_advantage

    import policies.integrations.verl_mar as verl_mar

    verl_mar._estimator.cache_clear()
    rng, own = np.random.default_rng(0), AdvantageEstimator(AdvantageOptions(mode="mar"), ["psnr", "lpips"])
    for _ in range(2):  # the second batch has weights that are not uniform
        metrics = rng.normal([20, 0, 0], size=(4, 3, 3))
        order = rng.permutation(12)
        flat = metrics.reshape(12, 3)[order]
        mask = torch.ones(12, 5)
        mask[:, 3:] = 0
        columns = dict(zip(("psnr", "lpips", "format"), flat.T, strict=True))
        data = DataProto.from_dict(
            tensors={"token_level_rewards": torch.zeros(12, 5), "response_mask": mask},
            non_tensors={"uid": np.repeat(list("abcd"), 3)[order].astype(object), **columns},
        )
        config = AlgoConfig(adv_estimator="gdpo", gdpo_reward_keys=["psnr", "lpips", "format"])
        made = compute_advantage(data, "gdpo", config=config).batch["advantages"]
        expected = own(metrics[..., :2], metrics[..., 2:], [verl_mar.FORMAT_WEIGHT]).advantages.reshape(12)[order]
        assert made[:, 0].numpy() == pytest.approx(expected, abs=1e-5) and not made[:, 3:].any() and (made[:, 0] == made[:, 2]).all()


def test_mar_names_what_is_missing():
    from policies.integrations.verl_mar import grouped, mar_advantage

    with pytest.raises(IrEnvError, match="lpips"):
        mar_advantage(torch.zeros(2, 1), torch.ones(2, 1), np.array(["a", "a"]), {"gdpo_reward_keys": ["lpips"]}, {})
    with pytest.raises(IrEnvError, match="gdpo_reward_keys"):
        mar_advantage(torch.zeros(2, 1), torch.ones(2, 1), np.array(["a", "a"]), {}, {})
    with pytest.raises(IrEnvError, match="1 to 2 rollouts"):
        grouped(np.array(["a", "a", "b"]))
