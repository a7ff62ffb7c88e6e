import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_env.actions import MALFORMED, ActionTable
from ir_env.view import View
from policies.vlm.model import VisionLanguageModel
from policies.vlm.nano import train_tokenizer
from policies.vlm.planner import PolicySettings
from policies.vlm.pretrained import ModelError
from policies.vlm.prompts import Prompter
from policies.vlm.sheet import RULER, sheet
from policies.vlm.spectrum import spectrum
from tool_actors.errors import IrEnvError
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "nlm.strong", "dcp.strong", "gamma.brighten"]


@pytest.fixture(scope="module")
def prompter():
    return PolicySettings.of("nano").prompter(ActionTable(load_toolbox(TOOLS)))


def ask(prompter, image, history=()):
    """The chat about an image."""
    return prompter.messages(prompter.pictures(prompter.view.look([image])), history)


def texts_of(chat):
    return [part["text"] for part in chat[1]["content"] if part["type"] == "text"]


def pictures_of(chat):
    return [part["image"] for part in chat[1]["content"] if part["type"] == "image"]


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
    return [ask(prompter, image, history) for image, history in zip(images, [(), (0,), (1, 3, 2), ()], strict=True)]


def test_the_image_reaches_the_model(vlm, prompter, crop):
    changed = crop.copy()
    changed[40, 21, 1] ^= 128
    tokens, mask = vlm.encode_answers([prompter.answer(0)] * 3)
    told = vlm.logprobs(vlm.encode([ask(prompter, image) for image in (crop, changed, crop)]), tokens, mask)
    moved = (told[0] - told[1]).abs()
    assert moved.max() > 1e-5 and torch.equal(told[0], told[2]), "one pixel moves the logits, and nothing else does"


def test_patches_are_projected_as_the_convolution_would(vlm):
    projection = vlm.model.model.visual.patch_embed.proj
    patches = torch.randn(7, 3, *projection.kernel_size)
    torch.testing.assert_close(projection(patches), torch.nn.Conv3d.forward(projection, patches), atol=1e-5, rtol=1e-5)
    wider = torch.randn(2, 3, 4, *projection.kernel_size[1:])
    assert projection(wider).shape[2] == 2, "what is more than one patch is still a convolution"


def wave(rows, columns, amplitude=4.0):
    """uint8 (64, 64, 3): so many waves from top to bottom and from left to right."""
    y, x = np.mgrid[:64, :64]
    return np.repeat((127.5 + amplitude * np.cos(2 * np.pi * (x * columns + y * rows) / 64)).astype(np.uint8)[:, :, None], 3, axis=2)


def test_the_spectrum_is_the_mean_over_the_glimpses():
    alone = spectrum(wave(4, 8)[None])
    assert alone.shape == (64, 32, 3) and alone.dtype == np.uint8
    assert np.unravel_index(alone[:, :, 0].argmax(), (64, 32)) == (32 + 4, 8), "a wave is one bright point at its frequencies"
    rng = np.random.default_rng(0)
    noisy = wave(4, 8, 30)[None] + rng.normal(0, 20, (16, 64, 64, 1))
    several = spectrum(np.broadcast_to(noisy.clip(0, 255), (16, 64, 64, 3)).astype(np.uint8))
    one = spectrum(np.broadcast_to(noisy.clip(0, 255), (16, 64, 64, 3)).astype(np.uint8)[:1])
    far = np.s_[:, 16:, 0]
    assert several[far].std() < one[far].std() / 2, "the floor of noise is flat in the mean"
    two = spectrum(np.stack([wave(4, 8), wave(-10, 20)]))[:, :, 0]
    assert two[36, 8] > 1.5 * np.median(two) and two[22, 20] > 1.5 * np.median(two), "what any glimpse shows is in it"


@pytest.mark.parametrize(
    ("view", "width"), [(View(), 352), (View(glimpses=0), 64), (View(overview=0), 288), (View(overview=0, glimpses=1), 96)]
)
def test_the_sheet_of_nano_reaches_the_tower_pixel_by_pixel(photo, view, width):
    prompter = PolicySettings.of("nano", view).prompter(ActionTable(load_toolbox(TOOLS)))
    vlm = VisionLanguageModel.load("nano", prompter)
    [shown] = pictures_of(ask(prompter, photo))
    assert shown.shape == (64, width, 3)
    inputs = vlm.encode([ask(prompter, photo)])
    rows, columns = 64 // 16, width // 16
    assert inputs["image_grid_thw"].tolist() == [[1, rows, columns]]
    # of 2 x 2 patches each visual token, of each patch the colours, twice the same moment, rows and columns
    patches = inputs["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)[:, :, :, :, :, 0]
    pixels = patches.permute(0, 2, 5, 1, 3, 6, 4).reshape(64, width, 3)
    assert torch.equal(((pixels * 0.5 + 0.5) * 255).round().byte(), torch.from_numpy(shown))
    seen, at = view.look([photo]), 0
    if view.overview:
        assert np.array_equal(shown[:, :64], seen["overview"])
        at = 64
    for glimpse in seen.get("glimpses", []):
        assert np.array_equal(shown[:, at : at + 64], glimpse)
        at += 64
    if view.glimpses:
        assert np.array_equal(shown[:, at:-RULER], spectrum(seen["glimpses"])[:, :-RULER])
    else:
        assert at == width


@pytest.mark.parametrize(
    ("size", "height"), [((32, 20), 0), ((64, 48), 11), ((80, 120), 20), ((321, 481), 42), ((2048, 2048), 42), ((1, 9000), 42)]
)
def test_a_ruler_on_the_sheet_tells_how_large_the_image_is(size, height):
    seen = View().look([np.zeros((*size, 3), np.uint8)])
    bar = sheet(seen, with_spectrum=True)[:, -RULER:]
    assert (bar == 255).all(2).all(1).sum() == height  # 64 * log(longer side / 32) / log(2048 / 32), rounded
    assert (bar[64 - height :] == 255).all() and not bar[: 64 - height].any()


def test_views_that_cannot_be_shown_are_refused():
    actions = ActionTable(load_toolbox(TOOLS))
    with pytest.raises(IrEnvError, match="whole images, or overview and glimpses on one sheet"):
        Prompter(actions, view=View(whole=512))
    with pytest.raises(IrEnvError, match="overview 64 and side 96 must be equal"):
        Prompter(actions, view=View(side=96))
    with pytest.raises(IrEnvError, match="would be resized to multiples of 32"):
        VisionLanguageModel.load("nano", Prompter(actions, True, View(overview=48, side=48), spectrum=True))


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
    prompts = loaded.encode([ask(prompter, crop), ask(prompter, crop[:48], (2, 1))])
    answers = loaded.generate(prompts, max_tokens=10, seed=0)
    assert (loaded.logprobs(prompts, answers.tokens, answers.mask) - answers.logprobs).abs().max() < 1e-4


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_tokenizer_of_nano_writes_any_text(vlm, text):
    if "<|" not in text and "tool_call>" not in text:
        assert vlm.tokenizer.decode(vlm.tokenizer(text).input_ids) == text


def test_the_tokenizer_of_nano_is_the_same_each_time_and_short(prompter):
    first, second = (train_tokenizer(prompter.vocabulary(), prompter.tags) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert all(len(first(prompter.answer(action)).input_ids) <= 12 for action in range(prompter.actions.n))


def test_the_prompt_tells_tools_history_and_form(prompter, crop):
    full = Prompter(prompter.actions)
    chat = ask(full, crop, (0, 2))
    text = chat[0]["content"][0]["text"]
    assert all(tool in text for tool in TOOLS) and '{"name": <function-name>' in text and "super_resolve" not in text
    assert texts_of(chat) == ["Calls so far: denoise tv.denoise, then dehaze dcp.strong. Which call comes next?"]
    assert np.array_equal(pictures_of(chat)[0], crop) and "none" in texts_of(ask(full, crop))[0]
    [sheet] = pictures_of(ask(prompter, np.zeros((16, 20, 3), np.uint8)))
    assert sheet.shape == (64, 352, 3)
    assert len(prompter.system) < len(text) / 5


def test_all_images_stand_behind_the_calls_that_made_them(photo):
    view = View(overview=0, glimpses=0, whole=96, images="all")
    prompter = Prompter(ActionTable(load_toolbox([*TOOLS, "bicubic.x4"])), view=view)
    enlarge = prompter.actions.index("bicubic.x4")
    small = photo[::8, ::8]
    large = np.repeat(np.repeat(small, 4, axis=0), 4, axis=1)
    images, history = [small, large, 255 - large], [enlarge, MALFORMED, enlarge, 2]
    shown = prompter.pictures(view.look(images, max_steps=6))
    assert [picture.shape for picture in shown] == [(38, 56, 3), (65, 96, 3), (65, 96, 3)], "no padding"
    content = prompter.messages(shown, history)[1]["content"]
    assert [part.get("text", "image") for part in content] == [
        "image",
        "After super_resolve bicubic.x4:",
        "image",
        "After dehaze dcp.strong:",
        "image",
        "Calls so far: super_resolve bicubic.x4, then malformed, then super_resolve bicubic.x4, then dehaze dcp.strong. "
        "Which call comes next?",
    ], "neither a malformed call nor an enlarging one that was forbidden made an image"
    assert all(picture is shown[at] for at, picture in enumerate(part["image"] for part in content if part["type"] == "image"))
    refused = [enlarge, 0]
    assert texts_of(prompter.messages(shown[1:], refused))[0] == "After denoise tv.denoise:"
    vlm = VisionLanguageModel.load("nano", Prompter(prompter.actions, True, view))
    encoded = vlm.encode([prompter.messages(shown, history)])
    assert encoded["image_grid_thw"].tolist() == [[1, 2, 4], [1, 4, 6], [1, 4, 6]]
