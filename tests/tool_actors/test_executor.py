import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tool_actors.cache import ByteLRU
from tool_actors.errors import IrEnvError, ToolFailure, UnknownToolError
from tool_actors.executor import ImageState, LocalExecutor, Request, run_tool
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox


class Counting(Tool):
    """Adds to the picture; counts how often and on how many images it ran."""

    def __init__(self, name="count.plus", amount=0.1, deterministic=True, version="1"):
        self.spec = ToolSpec(name, "brighten", fingerprint=f"{name}{version}", deterministic=deterministic)
        self.amount, self.calls, self.images = amount, 0, 0

    def __call__(self, images):
        self.calls += 1
        self.images += len(images)
        return images + self.amount


class Broken(Tool):
    """Raises on images with a bright corner, returns NaN on those with a dark one."""

    def __init__(self):
        self.spec = ToolSpec("broken.tool", "denoise", fingerprint="b")

    def __call__(self, images):
        if (images[:, :, 0, 0] > 0.9).any():
            raise ValueError("too bright")
        return torch.where(images[:, :1, :1, :1] < 0.1, torch.nan, images)


def image(value, size=(16, 16)):
    return ImageState.from_pixels(np.full((*size, 3), value, np.uint8))


def test_results_come_in_order_and_identical_requests_run_once():
    tool, other = Counting(), Counting("count.minus", -0.1)
    executor = LocalExecutor(Toolbox([tool, other]), cache_bytes=0)
    states = [image(10), image(20), image(10), image(30, (16, 20))]
    results = executor.run(
        [
            Request(states[0], "count.plus"),
            Request(states[1], "count.minus"),
            Request(states[2], "count.plus"),
            Request(states[3], "count.plus"),
        ]
    )
    assert [int(result.state.pixels[0, 0, 0]) for result in results] == [36, 0, 36, 56]
    assert results[3].state.shape == (16, 20, 3)
    assert (tool.calls, tool.images) == (2, 2), "one image per distinct request"
    assert results[2].cached and not results[0].cached
    assert executor.stats.executions == 3 and executor.stats.hits == 1 and executor.stats.calls == 3


def test_prefix_cache_saves_work_and_new_weights_never_hit_old_entries():
    tool = Counting()
    executor = LocalExecutor(Toolbox([tool]))
    first = executor.run([Request(image(10), "count.plus")])[0]
    again = executor.run([Request(image(10), "count.plus")])[0]
    assert tool.images == 1 and again.cached and again.state.pixels is first.state.pixels
    second = executor.run([Request(again.state, "count.plus")])[0]
    assert tool.images == 2 and second.state.path == ("count.plus1", "count.plus1")
    executor.toolbox = Toolbox([Counting(version="2", amount=0.2)])
    assert executor.run([Request(image(10), "count.plus")])[0].state.pixels[0, 0, 0] == 61


def test_tools_that_draw_are_never_shared():
    tool = Counting(deterministic=False)
    executor = LocalExecutor(Toolbox([tool]))
    results = executor.run([Request(image(10), "count.plus")] * 3)
    assert tool.images == 3 and len({result.state.key for result in results}) == 3


def test_a_failure_names_tool_shape_and_cause_and_spares_the_others():
    executor = LocalExecutor(Toolbox([Broken()]))
    results = executor.run([Request(image(value), "broken.tool") for value in (100, 255, 0, 120)])
    assert [result.error is None for result in results] == [True, False, False, True]
    assert isinstance(results[1].error, ToolFailure)
    assert "broken.tool" in str(results[1].error) and "(16, 16, 3)" in str(results[1].error) and "too bright" in str(results[1].error)
    assert "NaN" in str(results[2].error)
    assert executor.stats.failures == 2


def test_wrong_shape_from_a_tool_is_a_failure():
    class Cropping(Counting):
        def __call__(self, images):
            return images[..., 1:]

    [result] = LocalExecutor(Toolbox([Cropping()])).run([Request(image(1), "count.plus")])
    assert "returned shape (1, 3, 16, 15) where (1, 3, 16, 16) was due" in str(result.error)


def test_unknown_tool_is_refused_before_anything_runs():
    tool = Counting()
    executor = LocalExecutor(Toolbox([tool]))
    with pytest.raises(UnknownToolError):
        executor.run([Request(image(1), "count.plus"), Request(image(1), "count.pluss")])
    assert tool.calls == 0


def test_quantize_none_keeps_floats_and_uint8_rounds():
    pixels = np.full((16, 16, 3), 100, np.uint8)
    fine = LocalExecutor(Toolbox([Counting(amount=0.001)]), quantize="none")
    state = fine.run([Request(ImageState.from_pixels(pixels, "none"), "count.plus")])[0].state
    assert state.pixels.dtype == np.float32 and state.pixels[0, 0, 0] == pytest.approx(100 / 255 + 0.001)
    coarse = LocalExecutor(Toolbox([Counting(amount=0.001)]))
    assert coarse.run([Request(ImageState.from_pixels(pixels), "count.plus")])[0].state.pixels[0, 0, 0] == 100
    with pytest.raises(IrEnvError, match="quantize"):
        LocalExecutor(Toolbox([Counting()]), quantize="uint16")


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int32), "uint8"),
        (np.full((4, 4, 3), np.nan, np.float32), "finite"),
        (np.full((4, 4, 3), 2.0, np.float32), r"\[0, 1\]"),
        ("cat.png", "str"),
    ],
)
def test_what_is_no_image_is_refused(pixels, words):
    with pytest.raises(IrEnvError, match=words):
        ImageState.from_pixels(pixels)


def test_batching_equals_one_by_one(crop):
    toolbox = load_toolbox("classical")
    states = [ImageState.from_pixels(np.roll(crop, 7 * i, axis=0)) for i in range(3)]
    for name in ("nlm.light", "tv.denoise", "dcp.strong", "bicubic.x4"):
        together = LocalExecutor(toolbox, cache_bytes=0).run([Request(state, name) for state in states])
        for state, result in zip(states, together):
            alone = LocalExecutor(toolbox, cache_bytes=0).run([Request(state, name)])[0]
            assert np.array_equal(alone.state.pixels, result.state.pixels)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60), st.integers(1, 100))
def test_the_cache_never_exceeds_its_bound_and_keeps_the_newest(puts, bound):
    cache = ByteLRU(bound)
    for key, size in puts:
        cache.put(key, (key, size), size)
        assert cache.bytes <= bound
        if size <= bound:
            assert cache.get(key) == (key, size)
    assert cache.bytes == sum(size for _, (_, size) in cache._entries.items())


class Hungry(Tool):
    """Takes at most ``room`` pixels at once, in any number of images."""

    def __init__(self, room, tile=None, log=None):
        self.room, self.log = room, [] if log is None else log
        self.spec = ToolSpec("bench.hungry", "denoise", "hungry", tile=tile, batch_invariant=True)

    def with_tile(self, tile):
        return Hungry(self.room, tile, self.log)

    def __call__(self, images):
        side = self.spec.tile or max(images.shape[2:])
        pixels = images.shape[0] * min(side, images.shape[2]) * min(side, images.shape[3])
        self.log.append((len(images), self.spec.tile))
        if pixels > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images


def test_where_memory_runs_out_the_batch_is_halved_then_the_tile():
    images = [np.full((256, 256, 3), 10 * index, np.uint8) for index in range(8)]
    tool = Hungry(2 * 256 * 256)
    outputs = run_tool(tool, images)
    assert all(np.array_equal(output, image) for output, image in zip(outputs, images, strict=True))
    assert sorted({count for count, _ in tool.log}) == [2, 4, 8]
    tiled = Hungry(128 * 128, tile=512)
    [output] = run_tool(tiled, images[1:2])
    assert np.array_equal(output, images[1]) and tiled.log == [(1, 512), (1, 128)]
    [failure] = run_tool(Hungry(10, tile=512), images[:1])
    assert isinstance(failure, ToolFailure) and "Even tiles do not help" in str(failure)


def test_a_learned_tool_with_smaller_tiles_shares_its_weights():
    tool = load_toolbox(["noise.gaussian25"])["noise.gaussian25"]
    smaller = tool.with_tile(128)
    assert smaller.module is tool.module and smaller.spec.tile == 128 and tool.spec.tile != 128
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    whole, parts = (run_tool(each, [image])[0].astype(int) for each in (tool, smaller))
    assert np.abs(whole - parts).max() <= 12 and np.abs(whole - parts).mean() < 0.5


class Mean:
    """A scorer that counts what it is asked."""

    names, device = ("mean",), "cpu"

    def __init__(self):
        self.asked = 0

    def score(self, images, references):
        self.asked += len(images)
        return np.array([[image.mean() - reference.mean()] for image, reference in zip(images, references, strict=True)], np.float32)


def test_scores_are_remembered_by_the_pixels_of_both_images():
    executor, scorer = LocalExecutor(load_toolbox(["tv.denoise"])), Mean()
    image, reference = np.full((8, 8, 3), 90, np.uint8), np.full((8, 8, 3), 40, np.uint8)
    first = executor.score(scorer, [ImageState.from_pixels(image)], [reference])
    again = executor.score(scorer, [ImageState.from_pixels(image.copy())], [reference.copy()])
    assert scorer.asked == 1 and np.array_equal(first[0], again[0]), "made anew, the same pixels"
    other = executor.score(scorer, [ImageState.from_pixels(image)] * 2, [reference + 10, reference])
    assert scorer.asked == 2 and [float(each[0]) for each in other] == [40.0, 50.0]
