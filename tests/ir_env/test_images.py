import os

import numpy as np
import pytest
from PIL import Image

from ir_env.images import ImageError, find_images, load_image, make_folder, save_image


def test_round_trip(tmp_path, crop):
    path = save_image(tmp_path / "deep" / "x.png", crop)
    assert np.array_equal(load_image(path), crop)
    assert find_images(tmp_path) == [path]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 65535 // 2, (127, 127, 127)),
    ],
)
def test_other_kinds_of_images_are_converted(tmp_path, mode, value, expected):
    Image.new(mode, (20, 18), value).save(tmp_path / "x.png")
    pixels = load_image(tmp_path / "x.png")
    assert pixels.shape == (18, 20, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[0, 0].astype(int) - expected).max() <= 1


def test_orientation_is_applied(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").shape[:2] == photo.shape[1::-1]


def test_bad_files_say_what_is_wrong(tmp_path, photo):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.png: not a readable image"):
        load_image(tmp_path / "text.png")
    Image.fromarray(photo).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    with pytest.raises(ImageError, match=r"cut\.jpg: not a readable image.*truncated"):
        load_image(tmp_path / "cut.jpg")
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="a folder"):
        load_image(tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(ImageError, match="1x1 pixels is too small"):
        load_image(tmp_path / "dot.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no image"):
        find_images(tmp_path / "empty")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, crop):
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be written"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(ImageError, match=r"x\.nonsense: cannot be written"):
        save_image(tmp_path / "x.nonsense", crop)
    assert sorted(os.listdir(tmp_path)) == ["file"], "nothing half-written stays"
