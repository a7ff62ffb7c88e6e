import numpy as np
import pytest
import torch

from tool_actors.piqe_loss import piqe_loss


def _images(photo):
    """As it is, noisy and blurred: float32 (1, 3, 96, 96) each, rounded to 256 levels."""
    sharp = torch.from_numpy(np.ascontiguousarray(photo[:96, :96])).permute(2, 0, 1)[None].float() / 255
    noise = 0.1 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(sharp, 5, 1, 2)
    return [image.clamp(0, 1).mul(255).round() / 255 for image in (sharp, sharp + noise, blurred)]


def test_with_hard_thresholds_it_is_the_metric(photo):
    from pyiqa.archs.piqe_arch import piqe

    for image in _images(photo):
        assert piqe_loss(image, softness=1e-6).item() == pytest.approx(piqe(image)[0].item() / 100, abs=1e-3)


def test_it_tells_a_spoilt_image_and_falls_along_its_gradient(photo):
    sharp, *spoilt = _images(photo)
    assert all(piqe_loss(image) > piqe_loss(sharp) + 0.05 for image in spoilt)
    image = spoilt[1].clone().requires_grad_()
    piqe_loss(image).backward()
    assert piqe_loss((image - 0.02 * image.grad.sign()).detach()) < piqe_loss(image)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_image_has_finite_gradients(value):
    image = torch.full((2, 3, 40, 33), value, requires_grad=True)
    piqe_loss(image).backward()
    assert torch.isfinite(image.grad).all()
