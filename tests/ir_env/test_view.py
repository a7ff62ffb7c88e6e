import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_env.env import RestorationEnv
from ir_env.view import View, filled, glimpses, reduced, whole_images
from tool_actors.errors import IrEnvError


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), overview=st.sampled_from([0, 32, 64]), count=st.sampled_from([0, 1, 4]))
def test_every_image_fits_the_spaces(height, width, overview, count):
    if not (overview or count):
        return
    view = View(overview=overview, glimpses=count, whole=96, images="all")
    images = [noise(height, width), noise(height, width, 1)]
    seen, spaces = view.look(images, max_steps=3), view.spaces(max_steps=3)
    assert seen.keys() == spaces.keys()
    for name, space in spaces.items():
        assert space.contains(seen[name]), name
    assert View.of_space(gymnasium.spaces.Dict(spaces)) == view
    shown = whole_images(seen)
    assert len(shown) == 2 and all(np.array_equal(one, reduced(image, 96)) for one, image in zip(shown, images, strict=True))


def test_the_overview_keeps_the_aspect_and_the_mean():
    photo = np.zeros((321, 481, 3), np.uint8)
    photo[:, 240:] = 200
    seen = View().look([photo])["overview"]
    assert seen.shape == (64, 64, 3)
    assert (seen[:, :31] == 0).all() and (seen[:, 33:] == 200).all(), "left and right halves, all the way down: mirrored, not black"
    assert reduced(photo, 64).shape == (43, 64, 3) and reduced(photo, 1000) is photo


def test_glimpses_are_native_pixels_from_flat_to_textured():
    photo = np.full((200, 300, 3), 90, np.uint8)
    photo[:, 150:] += (noise(200, 150) // np.linspace(60, 4, 150).astype(np.uint8)[None, :, None]).astype(np.uint8)
    squares = glimpses(photo, 4, 64)
    contrasts = [square.mean(2).std() for square in squares]
    assert contrasts == sorted(contrasts) and contrasts[0] == 0 and contrasts[-1] > 5
    places = [(row, column) for row in range(137) for column in range(237)]
    for square in squares:
        assert any(np.array_equal(photo[row : row + 64, column : column + 64], square) for row, column in places), "native pixels"
    assert np.array_equal(glimpses(photo, 4, 64), squares), "deterministic"
    assert np.array_equal(glimpses(photo, 1, 64)[0], glimpses(photo, 3, 64)[1]), "one glimpse is that of middle rank"


def test_small_images_are_mirrored_and_not_stretched():
    small = noise(5, 7)
    square = filled(small, 16)
    assert square.shape == (16, 16, 3) and np.array_equal(square[:5, :7], small) and np.array_equal(square[5:10, :7], small[::-1])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"glimpses": 0, "overview": 0}, "sees nothing"),
        ({"glimpses": -1}, "glimpses must be"),
        ({"overview": 1.5}, "overview must be"),
        ({"side": 0}, "side must be"),
        ({"images": "all"}, "longest side as whole"),
        ({"images": "some", "whole": 64}, "current, all"),
        ({"size": 3}, "no setting 'size'"),
    ],
)
def test_a_view_that_cannot_be_is_named(settings, match):
    with pytest.raises(IrEnvError, match=match):
        RestorationEnv(view=settings)


def test_spaces_of_other_environments_hold_no_view():
    with pytest.raises(IrEnvError, match="Restoration-v0"):
        View.of_space(gymnasium.spaces.Box(0, 1, (4,)))


def test_the_environment_shows_what_the_view_says():
    env = RestorationEnv(
        view={"overview": 0, "glimpses": 2, "whole": 128, "images": "all"}, dataset={"crop_size": 128}, toolbox=["tv.denoise"]
    )
    first, _ = env.reset(seed=0)
    second, *_ = env.step(0)
    assert env.observation_space.contains(first) and env.observation_space.contains(second)
    assert "overview" not in first and first["glimpses"].shape == (2, 64, 64, 3)
    before, after = whole_images(second)
    assert np.array_equal(before, env.episode.states[0].as_uint8()) and np.array_equal(after, env.episode.state.as_uint8())
    assert [int(size[0] > 0) for size in second["image_size"]] == [1, 1, 0, 0, 0, 0, 0]
