import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_env.actions import ActionTable
from policies.vlm.model import VisionLanguageModel
from policies.vlm.nano import train_tokenizer, vocabulary_of
from policies.vlm.pretrained import ModelError
from policies.vlm.prompts import Prompter
from policies.vlm.spectrum import with_spectrum
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "nlm.strong", "dcp.strong", "gamma.brighten"]


@pytest.fixture(scope="module")
def prompter():
    return Prompter(ActionTable(load_toolbox(TOOLS)), compact=True, view_size=64)


@pytest.fixture(scope="module")
def vlm(prompter):
    return VisionLanguageModel.load("nano", prompter)


@pytest.fixture(scope="module")
def folder(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano")
    vlm.save(folder)
    return folder


@pytest.fixture(scope="module")
def chats(prompter, crop):
    images = [crop, crop[::-1].copy(), 255 - crop, crop[:, ::-1].copy()]
    return [prompter.messages(image, history) for image, history in zip(images, [(), (0,), (1, 3, 2), ()], strict=True)]


def test_the_image_reaches_the_model(vlm, prompter, crop):
    changed = crop.copy()
    changed[40, 21, 1] ^= 128
    tokens, mask = vlm.encode_answers([prompter.answer(0)] * 3)
    told = vlm.logprobs(vlm.encode([prompter.messages(image, ()) for image in (crop, changed, crop)]), tokens, mask)
    moved = (told[0] - told[1]).abs()
    assert moved.max() > 1e-5 and torch.equal(told[0], told[2]), "one pixel moves the logits, and nothing else does"


def test_patches_are_projected_as_the_convolution_would(vlm):
    projection = vlm.model.model.visual.patch_embed.proj
    patches = torch.randn(7, 3, *projection.kernel_size)
    torch.testing.assert_close(projection(patches), torch.nn.Conv3d.forward(projection, patches), atol=1e-5, rtol=1e-5)
    wider = torch.randn(2, 3, 4, *projection.kernel_size[1:])
    assert projection(wider).shape[2] == 2, "what is more than one patch is still a convolution"


def test_the_spectrum_stands_beside_the_pixels():
    rows, columns = np.mgrid[:64, :64]
    waves = np.repeat((127.5 + 4 * np.cos(2 * np.pi * (columns * 8 + rows * 4) / 64)).astype(np.uint8)[:, :, None], 3, axis=2)
    shown = with_spectrum(waves)
    assert shown.shape == (64, 96, 3) and shown.dtype == np.uint8 and (shown[:, :64] == waves).all()
    row, column = np.unravel_index(shown[:, 64:, 0].argmax(), (64, 32))
    assert (row, column) == (32 + 4, 8), "a wave is one bright point at its frequencies"


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0, 0.0])
def test_log_probabilities_are_the_same_when_sampled_and_when_computed_again(vlm, chats, temperature):
    prompts = vlm.encode(chats)
    answers = vlm.generate(prompts, temperature, max_tokens=24, seed=5)
    again = vlm.logprobs(prompts, answers.tokens, answers.mask, temperature)
    assert (again - answers.logprobs).abs().max() < 1e-4 and answers.logprobs.max() <= 0


def test_a_batch_gives_what_each_prompt_gives_alone(vlm, chats, prompter):
    tokens, mask = vlm.encode_answers([prompter.answer(action) for action in (4, 0, 1, 2)])
    together = vlm.logprobs(vlm.encode(chats), tokens, mask)
    for row, chat in enumerate(chats):
        width = int(mask[row].sum())
        alone = vlm.logprobs(vlm.encode([chat]), tokens[row : row + 1, :width], mask[row : row + 1, :width])
        assert torch.allclose(alone[0], together[row, :width], atol=1e-4)
    assert (together[~mask] == 0).all()


@pytest.mark.parametrize("adapter", [False, True])
def test_answers_to_one_prompt_share_its_computation(vlm, folder, chats, adapter):
    """Prompts that are read once give the tokens, numbers and gradients of prompts that are read for each answer."""
    if adapter:
        vlm = VisionLanguageModel.load(folder, lora={"r": 4})
        for name, parameter in vlm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    rows = torch.tensor([0, 0, 3, 1, 1, 1, 2, 0, 3])
    distinct, each = vlm.encode(chats), vlm.encode([chats[row] for row in rows])
    for temperature in (1.0, 0.7, 0.0):
        first = vlm.generate(each, temperature, max_tokens=9, seed=3)
        second = vlm.generate(distinct, temperature, max_tokens=9, seed=3, rows=rows)
        assert torch.equal(first.tokens, second.tokens)
        torch.testing.assert_close(second.logprobs, first.logprobs, atol=2e-5, rtol=0)
        weights, gradients, scores = torch.randn(first.tokens.shape), [], []
        for prompts, chosen in ((each, None), (distinct, rows)):
            vlm.model.zero_grad()
            logprobs, entropies = vlm.score(prompts, first.tokens, first.mask, temperature, chosen)
            ((logprobs * weights).sum() + 0.1 * entropies.sum()).backward()
            scores.append((logprobs.detach(), entropies.detach()))
            gradients.append({name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(scores[1], scores[0], atol=2e-5, rtol=0)
        for name, gradient in gradients[0].items():
            assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    one = first.tokens[:, :1], first.mask[:, :1]
    torch.testing.assert_close(vlm.score(distinct, *one, rows=rows)[0], vlm.score(each, *one)[0], atol=2e-5, rtol=0)
    vlm.model.zero_grad()


def test_entropies_are_those_of_the_distribution_that_is_drawn_from(vlm, chats):
    prompts = vlm.encode(chats)
    answers = vlm.generate(prompts, 1.5, max_tokens=4, seed=0)
    logprobs, entropies = vlm.score(prompts, answers.tokens, answers.mask, 1.5)
    assert torch.equal(logprobs, vlm.logprobs(prompts, answers.tokens, answers.mask, 1.5))
    logits = vlm.model(**prompts).logits[:, -1] / 1.5
    allowed = [token for token in range(logits.shape[1]) if token not in vlm.barred_tokens]
    expected = torch.distributions.Categorical(logits=logits[:, allowed]).entropy()
    assert torch.allclose(entropies[:, 0], expected, atol=1e-4)
    entropies.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vlm.model.parameters() if parameter.grad is not None)


def test_answers_end_where_the_turn_ends(vlm, chats):
    with torch.no_grad():
        head = vlm.model.get_output_embeddings().weight
        kept = head[vlm.tokenizer.eos_token_id].clone()
        head[vlm.tokenizer.eos_token_id] = 3 * head.mean(0)
        answers = vlm.generate(vlm.encode(chats * 8), max_tokens=48, seed=0)
        head[vlm.tokenizer.eos_token_id] = kept
    lengths = answers.mask.sum(1)
    for tokens, length, text in zip(answers.tokens, lengths, answers.texts, strict=True):
        ends = (tokens == vlm.tokenizer.eos_token_id).nonzero()
        assert length == (ends[0, 0] + 1 if len(ends) else len(tokens)) and "<|" not in text
    assert (answers.logprobs[~answers.mask] == 0).all()


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(vlm, chats):
    prompts = vlm.encode(chats)
    before = torch.get_rng_state()
    first, second, other = (vlm.generate(prompts, max_tokens=12, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_no_answer_holds_the_place_of_an_image(vlm, chats):
    assert vlm.tokenizer.convert_tokens_to_ids("<|image_pad|>") in vlm.barred_tokens
    answers = vlm.generate(vlm.encode(chats * 4), temperature=50.0, max_tokens=64, seed=0)
    assert not torch.isin(answers.tokens, torch.tensor(vlm.barred_tokens)).any()


def test_a_saved_model_is_the_same_model(vlm, folder, chats, prompter):
    tokens, mask = vlm.encode_answers([prompter.answer(1)] * 4)
    loaded = VisionLanguageModel.load(folder)
    assert torch.equal(loaded.logprobs(loaded.encode(chats), tokens, mask), vlm.logprobs(vlm.encode(chats), tokens, mask))
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}, "nothing pickled"


def test_lora_trains_the_adapter_alone_and_is_kept_alone(vlm, folder, chats, prompter, tmp_path):
    adapted = VisionLanguageModel.load(folder, lora={"r": 4, "lora_alpha": 8})
    trained = [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    prompts, (tokens, mask) = adapted.encode(chats), adapted.encode_answers([prompter.answer(1)] * 4)
    plain = vlm.logprobs(prompts, tokens, mask)
    assert torch.equal(adapted.logprobs(prompts, tokens, mask), plain), "a new adapter changes nothing"
    optimiser = torch.optim.Adam([parameter for parameter in adapted.model.parameters() if parameter.requires_grad], 1e-2)
    for _ in range(2):
        (-adapted.logprobs(prompts, tokens, mask).sum()).backward()
        optimiser.step()
    told = adapted.logprobs(prompts, tokens, mask)
    assert told.sum() > plain.sum() + 1
    answers = adapted.generate(prompts, max_tokens=8, seed=0)
    assert (adapted.logprobs(prompts, answers.tokens, answers.mask) - answers.logprobs).abs().max() < 1e-4
    adapted.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size / 10
    assert torch.equal(VisionLanguageModel.load(tmp_path).logprobs(prompts, tokens, mask), told)
    with pytest.raises(ModelError, match="an adapter already"):
        VisionLanguageModel.load(tmp_path, lora={"r": 4})


def test_what_cannot_be_loaded_says_what_to_do(prompter, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("policies.vlm.pretrained._hub_answers", lambda: False)
    with pytest.raises(ModelError, match=r"'nobody/nothing' cannot be loaded .* or 'nano', which needs neither"):
        VisionLanguageModel.load("nobody/nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        VisionLanguageModel.load(tmp_path)
    with pytest.raises(ModelError, match="give the prompter"):
        VisionLanguageModel.load("nano")
    with pytest.raises(ModelError, match="train it whole first"):
        VisionLanguageModel.load("nano", prompter, lora={"r": 4})
    with pytest.raises(ModelError, match=r"peft\.LoraConfig"):
        VisionLanguageModel.load(folder, lora={"rank": 4})


def test_another_architecture_runs_through_the_same_code(vlm, prompter, crop, tmp_path):
    """Qwen2-VL differs in its vision tower, its processor's patches and its positions."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    marks = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": vlm.tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    text = {"vocab_size": len(vlm.tokenizer), "hidden_size": 64, "intermediate_size": 128, "rope_parameters": rope}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"depth": 1, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "patch_size": 16, "mlp_ratio": 2}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    sizes = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 1024, "longest_edge": 65536}}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), vlm.tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=vlm.processor.chat_template
    )
    VisionLanguageModel(model, processor, "tiny").save(tmp_path)
    loaded = VisionLanguageModel.load(tmp_path)
    prompts = loaded.encode([prompter.messages(crop, ()), prompter.messages(crop[:48], (2, 1))])
    answers = loaded.generate(prompts, max_tokens=10, seed=0)
    assert (loaded.logprobs(prompts, answers.tokens, answers.mask) - answers.logprobs).abs().max() < 1e-4


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_tokenizer_of_nano_writes_any_text(vlm, text):
    if "<|" not in text and "tool_call>" not in text:
        assert vlm.tokenizer.decode(vlm.tokenizer(text).input_ids) == text


def test_the_tokenizer_of_nano_is_the_same_each_time_and_short(prompter):
    first, second = (train_tokenizer(vocabulary_of(prompter)) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert all(len(first(prompter.answer(action)).input_ids) <= 12 for action in range(prompter.actions.n))


def test_the_prompt_tells_tools_history_and_form(prompter, crop):
    full = Prompter(prompter.actions)
    system, user = full.messages(crop, (0, 2))
    text = system["content"][0]["text"]
    assert all(tool in text for tool in TOOLS) and '{"name": <function-name>' in text and "super_resolve" not in text
    assert user["content"][1]["text"] == "Calls so far: denoise tv.denoise, then dehaze dcp.strong. Which call comes next?"
    assert user["content"][0]["image"] is crop and "none" in full.messages(crop, ())[1]["content"][1]["text"]
    assert prompter.messages(np.zeros((16, 20, 3), np.uint8), ())[1]["content"][0]["image"].shape == (64, 64, 3)
    assert len(prompter.system) < len(text) / 5
