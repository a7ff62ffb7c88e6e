import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tool_actors.embedded.networks import CurveNet, HalfResolutionNet, SuperResolver
from tool_actors.errors import IrEnvError
from tool_actors.learned import LearnedTool
from tool_actors.tiling import _fades, _spans, tiled


@given(st.integers(1, 400), st.integers(40, 120), st.integers(0, 30), st.sampled_from([1, 2, 8]))
@settings(max_examples=200, deadline=None)
def test_spans_cover_a_side_and_their_weights_sum_to_one(cells, tile, overlap, multiple):
    side = cells * multiple
    spans = _spans(side, tile, overlap, multiple)
    assert spans[0][0] == 0 and spans[-1][1] == side
    assert all(end - start <= tile and start % multiple == 0 for start, end in spans)
    total = torch.zeros(side)
    for (start, end), fade in zip(spans, _fades(spans, 1, total)):
        assert (fade >= 0).all()
        total[start:end] += fade
    torch.testing.assert_close(total, torch.ones(side))


@pytest.mark.parametrize(("network", "scale", "multiple"), [(HalfResolutionNet(16, 2), 1, 2), (SuperResolver(16, 2), 4, 1)])
def test_a_tiled_image_equals_the_whole_one(network, scale, multiple):
    images = torch.rand(2, 3, 150, 210)
    with torch.no_grad():
        whole = network.eval()(images)
        parts = tiled(network, images, 96, 60, scale, multiple)
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)


def test_the_network_never_sees_more_than_a_tile():
    seen = []

    class Spy(HalfResolutionNet):
        def forward(self, images):
            seen.append(images.shape)
            return super().forward(images)

    tool = LearnedTool("some.tool", "denoise", Spy(8, 1), multiple=2, tile=96, overlap=30)
    images = torch.rand(1, 3, 301, 203)
    assert tool(images).shape == images.shape
    assert len(seen) > 6 and all(max(shape[2:]) <= 96 for shape in seen)


def test_seams_do_not_show_even_where_the_network_sees_the_whole_tile():
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images * 0 + images.mean((2, 3), keepdim=True)

    ramp = torch.linspace(0, 1, 400).expand(1, 3, 200, 400)
    output = LearnedTool("mean.all", "denoise", Mean(), tile=128, overlap=64)(ramp)
    step = output[0, 0, 100].diff().abs().max().item()
    assert step < 0.02, "neighbouring pixels differ by no more than the fade allows: tiles apart differ by 0.2"


def test_gradients_flow_through_tiles():
    images = torch.rand(1, 3, 120, 120, requires_grad=True)
    LearnedTool("some.tool", "denoise", HalfResolutionNet(8, 1), multiple=2, tile=64, overlap=30)(images).mean().backward()
    assert (images.grad.abs().sum((0, 1)) > 0).all()


def test_curves_are_bent_strip_by_strip_to_the_same_image(monkeypatch):
    torch.manual_seed(0)
    network, images = CurveNet(8, 1).eval(), torch.rand(1, 3, 176, 64)
    with torch.no_grad():
        whole = network(images)
        monkeypatch.setattr(CurveNet, "STRIP", 48)
        torch.testing.assert_close(network(images), whole, atol=1e-6, rtol=0)


def test_small_images_are_padded_to_the_minimum_and_cut_again():
    tool = LearnedTool("some.tool", "denoise", HalfResolutionNet(8, 1), multiple=8, minimum=64)
    for height, width in ((1, 1), (5, 70), (63, 65)):
        output = tool(torch.rand(1, 3, height, width))
        assert output.shape == (1, 3, height, width) and torch.isfinite(output).all()


def test_precision_changes_the_fingerprint_and_hardly_the_image():
    torch.manual_seed(0)
    network = HalfResolutionNet(8, 1)
    full, half = (LearnedTool("some.tool", "denoise", network, multiple=2, precision=precision) for precision in ("fp32", "bf16"))
    assert full.spec.fingerprint != half.spec.fingerprint
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        first, second = full(images), half(images)
    assert second.dtype == torch.float32 and 0 < (first - second).abs().max() < 0.05


def test_tiles_smaller_than_their_overlap_are_refused():
    with pytest.raises(IrEnvError, match="too small"):
        LearnedTool("some.tool", "denoise", HalfResolutionNet(8, 1), tile=64, overlap=64)


def test_memory_of_a_big_image_is_bounded():
    """The network's features of the whole image would take 16 times a tile's."""
    peak = []

    class Counting(HalfResolutionNet):
        def forward(self, images):
            peak.append(int(np.prod(images.shape)))
            return images

    tool = LearnedTool("some.tool", "denoise", Counting(8, 1), multiple=2)
    image = torch.rand(1, 3, 4096, 4096)
    torch.testing.assert_close(tool(image), image, atol=1e-6, rtol=0)
    assert max(peak) <= 3 * 1024 * 1024
