import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ir_env.images import SUFFIXES, ImageError, find_images, load_image, make_folder, save_image, written_whole


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


def test_a_file_appears_whole_or_not_at_all(tmp_path, crop):
    save_image(tmp_path / "x.png", crop)
    before = (tmp_path / "x.png").read_bytes()
    with pytest.raises(KeyError), written_whole(tmp_path / "x.png") as file:
        file.write(b"half")
        raise KeyError("what the caller raises stays as it is")
    with pytest.raises(ImageError, match=r"x\.png: cannot be written \(no number"), written_whole(tmp_path / "x.png") as file:
        file.write(b"half")
        raise ValueError("no number")
    assert (tmp_path / "x.png").read_bytes() == before and os.listdir(tmp_path) == ["x.png"]
    with written_whole(tmp_path / "new" / "x.json") as file:
        file.write(b"whole")
        assert os.listdir(tmp_path / "new") != ["x.json"], "it is not there yet"
    assert (tmp_path / "new" / "x.json").read_bytes() == b"whole" and os.listdir(tmp_path / "new") == ["x.json"]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_a_name_of_the_greatest_length_can_be_written_in_every_format(tmp_path, crop, suffix):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    path = save_image(tmp_path / ("x" * (longest - len(suffix)) + suffix.upper()), crop)
    assert load_image(path).shape == crop.shape and find_images(tmp_path) == [path]
    with pytest.raises(ImageError, match="cannot be written"):
        save_image(tmp_path / ("x" * longest + suffix), crop)
    with pytest.raises(ImageError, match="too long"):
        load_image(tmp_path / ("x" * longest + suffix))
    assert len(os.listdir(tmp_path)) == 1


def test_what_a_killed_process_leaves_is_no_image(tmp_path, crop):
    """A process that is killed while it writes, for real."""
    code = (
        "import os, signal, sys\nfrom ir_env.images import written_whole\n"
        "with written_whole(sys.argv[1]) as file:\n    file.write(b'half')\n    file.flush()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    save_image(tmp_path / "a.png", crop)
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.png")]).returncode == -signal.SIGKILL
    assert find_images(tmp_path) == [tmp_path / "a.png"] and len(os.listdir(tmp_path)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="bounds its memory as Linux does")
def test_an_image_larger_than_memory_is_named(tmp_path):
    """In a process that may take 300 MB more than it has."""
    Image.new("1", (12000, 12000)).save(tmp_path / "large.png")
    code = (
        "import resource, sys\nimport PIL.Image, PIL.PngImagePlugin\nfrom ir_env.images import ImageError, load_image\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)\n"
        "try:\n    load_image(sys.argv[1])\nexcept ImageError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "large.png")], capture_output=True, text=True)
    assert "large.png: the image does not fit into memory" in result.stdout, result.stderr
