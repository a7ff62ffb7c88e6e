import math

import pytest
import torch
from torch import nn

from tool_actors import losses
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.losses import TARGETS, RestorationLoss, VGGLoss, gamma, gradient_loss, l1_loss, load_loss, mse_loss, schedule, ssim_loss


def _images(*values):
    """One image per list of rows, the same in all channels: (B, 3, H, W)."""
    return torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, 3, -1, -1)


def test_the_target_weights_are_the_papers():
    assert TARGETS == {"l1": 0.4, "vgg": 0.1, "lpips": 0.15, "musiq": 0.1, "clipiqa": 0.1}


@pytest.mark.parametrize(
    ("epoch", "epochs", "expected"),
    [
        (1, 20, 0.5 * (1 - math.cos(math.pi / 6))),  # T = 6
        (3, 20, 0.5),
        (6, 20, 1.0),
        (7, 20, 1.0),
        (20, 20, 1.0),
        (1, 23, 0.5 * (1 - math.cos(math.pi / 6))),  # T = floor(6.9) = 6, the paper's 23 epochs
        (1, 4, 1.0),  # T = 1: gamma(1) = (1 - cos pi) / 2
        (1, 3, 1.0),  # T = 0
        (1, 1, 1.0),
    ],
)
def test_gamma(epoch, epochs, expected):
    assert gamma(epoch, epochs) == pytest.approx(expected, abs=1e-12)


def test_the_schedule_moves_from_l1_to_the_targets():
    halfway = schedule(TARGETS, 3, 20)
    assert halfway == pytest.approx({"l1": 0.7, "vgg": 0.05, "lpips": 0.075, "musiq": 0.05, "clipiqa": 0.05})
    assert schedule(TARGETS, 12, 20) == pytest.approx(TARGETS)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    loss = RestorationLoss({"l1": l1_loss, "two": lambda x, y: 2 * (x - y).mean()}, {"l1": 0.4, "two": 0.1})
    restored, clean = _images([[0.5, 0.5]]), _images([[0.2, 0.4]])
    total, terms = loss(restored, clean)
    assert terms == pytest.approx({"l1": 0.2, "two": 0.4})
    assert total.item() == pytest.approx(0.4 * 0.2 + 0.1 * 0.4)
    assert loss(restored, clean, {"l1": 1.0, "two": 0.0})[1] == pytest.approx({"l1": 0.2}), "a term of weight 0 is not computed"
    with pytest.raises(IrEnvError, match="one weight per term"):
        RestorationLoss({"l1": l1_loss}, {"l2": 1.0})


def test_gradient_loss():
    # differences along the rows 1 - 0 = 1 against 0, along the columns 0 against 0; halved by averaging: 1 x 1, no neighbours
    assert gradient_loss(_images([[0.0, 1.0], [0.0, 1.0]]), _images([[0.0, 0.0], [0.0, 0.0]])).item() == pytest.approx(1.0)
    # at the second scale the means of 2 x 2 are 0 and .5, at the first every second difference along the rows is 1: (2 / 3) + .5
    striped = _images([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert gradient_loss(striped, torch.zeros_like(striped), scales=1).item() == pytest.approx(2 / 3)
    brighter = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    assert gradient_loss(brighter + 0.1, brighter).item() == pytest.approx(0, abs=1e-12), "blind to brightness"


def test_ssim_of_flat_images():
    """Without structure only luminance counts: (2 xy + c1) / (x^2 + y^2 + c1) on Y = (219 v + 16) / 255."""
    x, y, c1 = (219 * 0.2 + 16) / 255, (219 * 0.6 + 16) / 255, 1e-4
    flat = torch.ones(1, 3, 16, 16, dtype=torch.float64)
    assert ssim_loss(0.2 * flat, 0.6 * flat).item() == pytest.approx(1 - (2 * x * y + c1) / (x * x + y * y + c1), abs=1e-6)


def test_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 3, 40, 40, generator=generator, dtype=torch.float64)
    restored = (clean + 0.2 * torch.rand(clean.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    x, y = (((65.481 * i[0, 0] + 128.553 * i[0, 1] + 24.966 * i[0, 2] + 16) / 255).numpy() for i in (restored, clean))
    expected = structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
    assert 1 - ssim_loss(restored, clean).item() == pytest.approx(expected, abs=1e-6)


def test_vgg_compares_the_features_of_three_layers():
    layers = [nn.Conv2d(3, 1, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True)]
    for layer in layers[::2]:
        nn.init.constant_(layer.weight, 1.0)
    layers[2].weight.data *= 2
    loss = VGGLoss(nn.Sequential(*layers), (1, 3))
    ones = torch.ones(1, 3, 4, 4)
    # the features of a white image less those of a grey one: the sum of .5 / deviation over channels, and twice as much a layer later
    first = sum(0.5 / deviation for deviation in VGGLoss.DEVIATION)
    assert loss(ones, 0.5 * ones).item() == pytest.approx(first + 2 * first, rel=1e-5)


def test_the_layers_of_vgg_are_relu2_2_relu3_4_and_relu4_4():
    from torchvision.models import vgg19

    with torch.device("meta"):
        features = vgg19().features
    names, block, number = {}, 1, 0
    for place, layer in enumerate(features):
        if isinstance(layer, nn.ReLU):
            number += 1
            names[place] = f"relu{block}_{number}"
        elif isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 0
    assert [names[place] for place in VGGLoss.LAYERS] == ["relu2_2", "relu3_4", "relu4_4"]


@pytest.fixture
def offline(monkeypatch):
    def unreachable(device):
        raise OSError("no network")

    monkeypatch.setattr(
        losses, "_LOADERS", {name: load if name in ("l1", "mse") else unreachable for name, load in losses._LOADERS.items()}
    )


def test_without_weights_it_is_said_and_terms_that_need_none_stand_in(offline):
    loss = load_loss()
    assert loss.targets == {"l1": 0.4, "gradient": 0.1, "ssim": 0.15, "piqe": 0.1}
    assert set(loss.absent) == {"vgg", "lpips", "musiq", "clipiqa"} and "no network" in loss.absent["vgg"]
    assert "left out, without their weights: vgg, lpips, musiq, clipiqa" in loss.describe()
    assert load_loss(stand_ins=False).targets == {"l1": 0.4}
    with pytest.raises(UnknownNameError, match="did you mean 'lpips'"):
        load_loss(wanted={"lpip": 0.1})
    assert load_loss(wanted={"mse": 1.0}).terms["mse"](torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)) == 0.25
    assert load_loss(wanted={"l1": 1.0, "musiq": 0.02}).targets == {"l1": 1.0, "piqe": 0.02}
    with pytest.raises(IrEnvError, match="teaches nothing"):
        load_loss(wanted={"l1": 0.0})
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(IrEnvError, match="its weight is a number from 0 on"):
            load_loss(wanted={"l1": weight})


def test_terms_with_weights(monkeypatch):
    """MUSIQ and CLIP-IQA are turned round (equations 10 and 11), whatever scores them."""
    scores = {"musiq": 60.0, "clipiqa": 0.7, "lpips": 0.2}
    monkeypatch.setattr(losses, "_metric", lambda name, device: lambda *images: torch.full((2,), scores[name]))
    loss = load_loss(wanted={name: TARGETS[name] for name in ("l1", "lpips", "musiq", "clipiqa")})
    images = torch.zeros(2, 3, 8, 8)
    assert not loss.absent
    assert loss(images, images)[1] == pytest.approx({"l1": 0.0, "lpips": 0.2, "musiq": 0.4, "clipiqa": 0.3})


@pytest.mark.parametrize("term", [l1_loss, mse_loss, gradient_loss, ssim_loss])
def test_terms_have_gradients(term):
    generator = torch.Generator().manual_seed(0)
    restored, clean = (torch.rand(1, 3, 14, 14, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: term(x, clean), restored.requires_grad_())
