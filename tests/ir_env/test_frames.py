"""Animations keep their timing, and pages their kind, in every format that holds several images."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ir_env import frames as frames_module
from ir_env.frames import open_frames, write_frames
from ir_env.images import ImageError

DURATIONS = [40, 120, 40, 200]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def moving(photo):
    """Four pictures, uint8 (64, 80, 3), of which each differs from that before it everywhere."""
    return [np.ascontiguousarray(photo[top : top + 64, 100:180]) for top in (0, 50, 100, 150)]


def animate(path, pictures, **options):
    first, *others = map(Image.fromarray, pictures)
    first.save(path, save_all=True, append_images=others, **options)


def read(path):
    frames = open_frames(path)
    return [each.pixels for each in frames], frames


def again(path, target, **options):
    frames = open_frames(path)
    return write_frames(target, [(each.pixels, each) for each in frames], frames, **options)


@pytest.mark.parametrize("suffix", ["png", "webp", "avif", "gif"])
@pytest.mark.parametrize("target", ["png", "webp", "avif", "gif"])
def test_an_animation_keeps_its_timing(suffix, target, moving):
    animate(f"a.{suffix}", moving, duration=DURATIONS, loop=3, **({"lossless": True} if suffix == "webp" else {}))
    assert again(f"a.{suffix}", f"b.{target}") == []
    before, frames = read(f"a.{suffix}")
    after, written = read(f"b.{target}")
    assert written.animated and written.count == 4 and written.durations == frames.durations == DURATIONS
    if "avif" not in (suffix, target):  # which says nothing of how often it is played
        assert written.loop == frames.loop == 3
    for one, other in zip(before, after, strict=True):
        difference = np.abs(one.astype(int) - other).mean()
        assert difference == 0 if target == "png" else difference < 8


def test_frames_with_transparency_do_not_shine_through(moving):
    masked = [np.dstack([each, np.full(each.shape[:2], 255, np.uint8)]) for each in moving]
    for number, each in enumerate(masked):
        each[:, 20 * number : 20 * number + 20, 3] = 0
    animate("a.png", masked, duration=50, loop=0)
    for target in ("png", "webp", "gif"):
        again("a.png", f"b.{target}")
        for mask, each in zip(masked, open_frames(f"b.{target}"), strict=True):
            assert each.alpha is not None and np.array_equal(each.alpha == 0, mask[..., 3] == 0), target


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_pages_of_a_tiff_keep_depth_and_size(kind):
    random = np.random.default_rng(0)
    pages = [random.random((40 + 8 * number, 48)) for number in range(3)]
    pages = [page.astype(kind) if kind == np.float32 else (page * np.iinfo(kind).max).astype(kind) for page in pages]
    if kind != np.float32:  # Pillow knows no colours in floats
        pages[1] = np.dstack([pages[1]] * 3)
    cv2.imwritemulti("a.tif", pages)
    assert again("a.tif", "b.tif", keep_grey=True) == []
    frames = open_frames("b.tif")
    assert not frames.animated and frames.count == 3
    done, written = cv2.imreadmulti("b.tif", flags=cv2.IMREAD_UNCHANGED)
    assert done and all(page.dtype == kind for page in written)
    for page, each in zip(pages, written, strict=True):
        assert np.array_equal(page, each)


def test_of_a_format_of_one_image_the_first_is_written_and_the_others_are_said(moving):
    animate("a.png", moving, duration=50)
    animate("a.tif", moving)
    assert again("a.png", "b.jpg") == ["JPEG holds none of the other 3 frames"]
    assert again("a.tif", "c.png") == ["PNG holds none of the other 3 pages"]
    assert open_frames("b.jpg").count == open_frames("c.png").count == 1


def test_a_broken_frame_and_too_many_are_named(moving, monkeypatch):
    animate("a.webp", moving, duration=50)
    animate("a.tif", moving)
    with open("a.tif", "r+b") as file:
        file.truncate(4 * moving[0].nbytes - 4000)
    with pytest.raises(ImageError, match=r"a\.tif: page \d is not readable"):
        list(open_frames("a.tif"))
    monkeypatch.setattr(frames_module, "MOST_BYTES", 1000)
    with pytest.raises(ImageError, match="4 frames of 80x64 pixels are too many at once"):
        open_frames("a.webp")
    with open("text.png", "w") as file:
        file.write("no image")
    assert open_frames("text.png").count == 1, "its reading says what is wrong"
