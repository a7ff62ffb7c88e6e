"""What an image becomes does not depend on its company, on the number of threads or, but for a level, on the processor.

`python tests/tool_actors/test_reproducibility.py` makes goldens.npz again, after a tool of the toolbox `default` was changed on purpose.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tool_actors.executor import ImageState, LocalExecutor, Request, run_tool
from tool_actors.threads import limit_threads
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox

GOLDENS = Path(__file__).with_name("goldens.npz")
DEFAULT = list(load_toolbox("default"))


class Sociable(Tool):
    """Subtracts what all images of its batch have in common, which no tool should."""

    def __init__(self, batch_invariant=False):
        self.spec = ToolSpec("sociable.test", "denoise", "s", batch_invariant=batch_invariant)
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return images - images.mean()


@pytest.fixture
def two_threads():
    yield lambda: limit_threads(2)
    limit_threads(1)


def crops(photo, count, height, width):
    places = np.random.default_rng(0).integers(0, (photo.shape[0] - height, photo.shape[1] - width), (count, 2))
    return [np.ascontiguousarray(photo[top : top + height, left : left + width]) for top, left in places]


def to_uint8(pixels):
    return np.rint(pixels.astype(np.float32) * np.float32(255)).astype(np.uint8)


def test_no_tool_sees_an_image_beside_another_unless_it_promises_not_to_care():
    images = [np.full((8, 8, 3), value, np.uint8) for value in (10, 100, 250)]
    tool = Sociable()
    together = run_tool(tool, images)
    assert all(np.array_equal(one, run_tool(tool, [image])[0]) for one, image in zip(together, images, strict=True))
    promising = Sociable(batch_invariant=True)
    results = LocalExecutor(Toolbox([promising])).run([Request(ImageState.from_pixels(image), "sociable.test") for image in images])
    assert promising.batches == [3] and len(results) == 3


@pytest.mark.parametrize("tool", DEFAULT, ids=lambda tool: tool.spec.name)
def test_neither_company_nor_threads_change_a_bit(tool, photo, two_threads):
    for shape, many in (((64, 64), 16), ((48, 80), 5), ((61, 77), 5), ((128, 96), 2)):
        images = crops(photo, 2, *shape)
        alone = [run_tool(tool, [image], "none")[0] for image in images]
        together = run_tool(tool, (images * 8)[:many], "none")
        assert all(np.array_equal(one, alone[index % 2]) for index, one in enumerate(together)), shape
        two_threads()
        threaded, rounded = run_tool(tool, images, "none"), run_tool(tool, images)
        limit_threads(1)
        assert all(np.array_equal(one, other) for one, other in zip(threaded, alone, strict=True)), shape
        assert all(np.array_equal(one, to_uint8(other)) for one, other in zip(rounded, alone, strict=True)), shape


class Threads(Tool):
    """Fills the image with the number of torch's threads; fails on black ones."""

    spec = ToolSpec("threads.test", "denoise", "t")

    def __call__(self, images):
        if not images.any():
            raise ValueError("black")
        return torch.full_like(images, torch.get_num_threads() / 255)


def test_torch_has_one_thread_for_a_tool_unless_more_are_asked_for(two_threads):
    two_threads()
    images = [np.full((2, 2, 3), value, np.uint8) for value in (0, 9)]
    failure, pixels = run_tool(Threads(), images)
    assert failure.cause == "ValueError: black" and (pixels == 1).all() and torch.get_num_threads() == 2
    limit_threads(1)
    executor = LocalExecutor(Toolbox([Threads()]), threads=2)
    [result] = executor.run([Request(ImageState.from_pixels(images[1]), "threads.test")])
    assert (result.state.pixels == 2).all() and torch.get_num_threads() == 1


@pytest.fixture(params=["this processor's kernels", "plain kernels"])
def kernels(request):
    """Those that the libraries choose for this processor, and those that they have for any: as different as another processor's."""
    plain = request.param == "plain kernels"
    cv2.setUseOptimized(not plain)
    torch.backends.mkldnn.set_flags(not plain)
    yield
    torch.backends.mkldnn.set_flags(True)
    cv2.setUseOptimized(True)


def test_on_another_processor_a_state_differs_by_one_level_at_most(kernels):
    with np.load(GOLDENS) as goldens:
        image = goldens["input"]
        assert set(goldens) == {"input", *(tool.spec.name for tool in DEFAULT)}
        for tool in DEFAULT:
            expected = goldens[tool.spec.name].astype(int)
            assert np.abs(sample(tool, image) - expected).max() <= 1, tool.spec.name


def sample(tool: Tool, image: np.ndarray) -> np.ndarray:
    """Every third pixel of a tool's output, every fifteenth of one that is four times as large: of all phases of a pixel shuffle."""
    [output] = run_tool(tool, [image])
    step = 4 * tool.spec.scale - 1
    return output[::step, ::step].astype(int)


def make_goldens() -> None:
    """Part of a noisy photograph, and what each tool makes of it."""
    from ir_env.datasets import BuiltinPhotos

    clean = BuiltinPhotos("heldout").load("chelsea")[96:136, 160:200]
    image = np.clip(clean + np.random.default_rng(0).normal(0, 15, clean.shape), 0, 255).astype(np.uint8)
    np.savez_compressed(GOLDENS, input=image, **{tool.spec.name: sample(tool, image).astype(np.uint8) for tool in DEFAULT})


if __name__ == "__main__":
    make_goldens()
