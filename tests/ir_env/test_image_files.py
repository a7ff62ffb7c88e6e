"""Files in and out: what is not pixels stays, at the depth that the file has, or is said."""

import io
import struct
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from ir_env.image_files import as_array, photograph_of, read_photograph, software_of, write_photograph
from ir_env.images import ImageError, load_image

RANDOM = np.random.default_rng(0)


def deep(*shape):
    return RANDOM.integers(0, 65536, shape).astype(np.uint16)


def again(path, target, **options):
    """A file read and written without a change to its pixels; returns what was said."""
    photograph = read_photograph(path)
    return write_photograph(target, photograph.pixels, photograph, **options)


def exif_of(path):
    with Image.open(path) as file:
        exif = file.getexif()
        return {**exif, **exif.get_ifd(0x8769), "gps": dict(exif.get_ifd(0x8825)), "dpi": file.info.get("dpi")}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# -- depth ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_stay_to_the_last(suffix, channels):
    values = deep(48, 64, channels)
    cv2.imwrite(f"a.{suffix}", values, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    assert again(f"a.{suffix}", f"b.{suffix}", keep_grey=True) == []
    written = cv2.imread(f"b.{suffix}", cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16 and np.array_equal(written.reshape(values.shape), values)
    assert read_photograph(f"a.{suffix}").pixels.dtype == np.float32


def test_16_bits_in_a_format_of_8_are_said_and_rounded():
    values = deep(24, 32, 3)
    cv2.imwrite("a.png", values)
    assert again("a.png", "b.jpg") == ["JPEG holds 8 of its 16 bits per channel"]
    assert np.abs(load_image("a.png")[..., ::-1] - np.rint(values / 257.0)).max() == 0


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3)])
def test_floats_are_read_in_0_to_1_and_stay_floats(shape):
    values = RANDOM.random(shape).astype(np.float32) * 0.7
    cv2.imwrite("a.tif", values)
    assert abs(load_image("a.tif").mean() / 255 - values.mean()) < 0.01, "not black"
    assert again("a.tif", "b.tif", keep_grey=True) == []
    assert np.array_equal(cv2.imread("b.tif", cv2.IMREAD_UNCHANGED), values)


@pytest.mark.parametrize("top", [3.7, np.nan, -1.0])
def test_floats_of_no_known_range_are_named(top):
    values = np.full((24, 32), 0.5, np.float32)
    values[3, 4] = top
    cv2.imwrite("a.tif", values)
    with pytest.raises(ImageError, match=r"a\.tif: its values span .* \[0, 1\]"):
        read_photograph("a.tif")


# -- transparency, grey, palettes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jp2", "avif"])
def test_transparency_stays(suffix, crop):
    alpha = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0)
    Image.fromarray(np.dstack([crop, alpha])).save("a.png")
    assert again("a.png", f"b.{suffix}", quality=100) == []
    with Image.open(f"b.{suffix}") as file:
        assert file.mode == "RGBA" and np.abs(np.asarray(file)[..., 3].astype(int) - alpha).max() <= 2


def test_transparency_grows_with_the_image_and_lies_on_white_where_it_cannot_stay(crop):
    alpha = np.zeros((64, 64), np.uint8)
    alpha[:, 32:] = 255
    source = photograph_of(np.dstack([crop, alpha]))
    assert write_photograph("b.png", np.kron(crop, np.ones((2, 2, 1), np.uint8)), source) == []
    grown = np.asarray(Image.open("b.png"))
    assert grown.shape == (128, 128, 4) and (grown[:, :56, 3] == 0).all() and (grown[:, 72:, 3] == 255).all()
    assert write_photograph("b.bmp", crop, source) == ["BMP holds no transparency, which is laid on white"]
    assert (load_image("b.bmp")[:, :32] == 255).all() and np.array_equal(load_image("b.bmp")[:, 32:], crop[:, 32:])


def test_a_palette_with_transparency_is_read_with_it(crop):
    image = Image.fromarray(crop).quantize(16)
    image.save("a.gif", transparency=0)
    assert read_photograph("a.gif").alpha is not None


@pytest.mark.parametrize(("mode", "kept"), [("L", "L"), ("LA", "LA"), ("1", "L")])
def test_grey_stays_grey_on_request(mode, kept, crop):
    Image.fromarray(crop).convert(mode).save("a.png")
    again("a.png", "grey.png", keep_grey=True)
    again("a.png", "rgb.png")
    assert Image.open("grey.png").mode == kept and Image.open("rgb.png").mode == ("RGBA" if kept == "LA" else "RGB")


# -- profile and metadata ------------------------------------------------------------------------------------------------------------


def wide_profile():
    """A profile of wide primaries, as AdobeRGB's: a matrix and gamma 2.2."""
    fixed = lambda value: struct.pack(">i", round(value * 65536))  # noqa: E731
    xyz = lambda *values: b"XYZ \0\0\0\0" + b"".join(map(fixed, values))  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    name = b"Wide RGB\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + b"\0" * 79
    tags = {
        b"desc": described.ljust(-(-len(described) // 4) * 4, b"\0"),
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.6097, 0.3111, 0.0195),
        b"gXYZ": xyz(0.2053, 0.6257, 0.0609),
        b"bXYZ": xyz(0.1492, 0.0632, 0.7446),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content
    body = table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ").ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + b"".join(map(fixed, (0.9642, 1, 0.8249))) + b"\0" * 48 + body


def test_a_profile_is_applied(crop):
    profile = wide_profile()
    Image.fromarray(crop).save("a.png", icc_profile=profile)
    photograph = read_photograph("a.png")
    srgb = ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(Image.fromarray(crop), ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb)
    assert np.array_equal(photograph.pixels, np.asarray(expected)) and np.abs(photograph.pixels.astype(int) - crop).mean() > 1
    assert not photograph.metadata.icc


def test_a_profile_of_srgb_or_beside_16_bits_is_kept_and_a_broken_one_is_said(crop):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(crop).save("a.jpg", icc_profile=srgb, quality=95)
    again("a.jpg", "b.jpg")
    assert Image.open("b.jpg").info["icc_profile"] == srgb
    values = read_photograph("a.jpg")
    assert np.array_equal(values.pixels, np.asarray(Image.open("a.jpg")))
    wide = photograph_of(deep(24, 32, 3))
    write_photograph("c.png", wide.pixels, replace(wide, metadata=replace(wide.metadata, icc=wide_profile())))
    assert "its colours stay in its profile (Wide RGB)" in read_photograph("c.png").notes
    for suffix in ("png", "tif"):
        again("c.png", f"d.{suffix}")
        assert Image.open(f"d.{suffix}").info["icc_profile"] == wide_profile()
    Image.fromarray(crop).save("e.png", icc_profile=b"nonsense" * 30)
    assert any("profile" in note for note in read_photograph("e.png").notes)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_exif_gps_and_resolution_stay_and_the_orientation_is_reset(suffix, photo):
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "TestCam"
    exif[0x8769] = {36867: "2024:05:01 10:00:00", 0xA002: 448, 0xA003: 300}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 15.0)}
    Image.fromarray(photo).save("a.jpg", exif=exif, dpi=(300, 300), comment=b"hello")
    assert again("a.jpg", f"b.{suffix}", software="ir_env test", history="rain.light") == []
    told = exif_of(f"b.{suffix}")
    assert told[271] == "TestCam" and told[36867] == "2024:05:01 10:00:00" and told["gps"][2] == (48.0, 8.0, 15.0)
    assert told.get(0x0112, 1) == 1 and (told[0xA002], told[0xA003]) == (300, 448)
    assert (told[0x0131], told[0x9213]) == ("ir_env test", "rain.light") and software_of(f"b.{suffix}") == "ir_env test"
    if suffix in ("jpg", "png", "tif"):
        assert told["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert load_image(f"b.{suffix}").shape == (448, 300, 3)


def test_metadata_of_16_bits_stays_between_png_and_tiff():
    exif = Image.Exif()
    exif[271], exif[0x8825] = "TestCam", {1: "N"}
    source = photograph_of(deep(24, 32, 3))
    source = replace(source, metadata=replace(source.metadata, exif=exif.tobytes(), dpi=(300.0, 300.0), xmp=b"<x:xmpmeta/>"))
    write_photograph("a.png", source.pixels, source, software="ir_env test")
    again("a.png", "b.tif", software="ir_env test")
    again("b.tif", "c.png", software="ir_env test")
    for name in ("a.png", "b.tif", "c.png"):
        told = exif_of(name)
        assert told[271] == "TestCam" and told["gps"] == {1: "N"} and told["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert read_photograph(name).metadata.xmp == b"<x:xmpmeta/>" and software_of(name) == "ir_env test"
    assert np.array_equal(as_array(read_photograph("c.png").pixels, source), as_array(source.pixels, source))


def test_exif_that_no_standard_knows_or_that_jpeg_cannot_hold_does_not_stop_a_photograph(crop):
    exif = Image.Exif()
    exif[271], exif[0x8769] = "TestCam", {0x927C: b"x" * 70000}
    Image.fromarray(crop).save("a.png", exif=exif)
    assert again("a.png", "b.jpg") == ["the camera's own notes in EXIF are larger than JPEG can hold"]
    assert exif_of("b.jpg")[271] == "TestCam"


def test_png_text_stays(crop):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt("Title", "Zebra, größer")
    Image.fromarray(crop).save("a.png", pnginfo=text)
    again("a.png", "b.png", software="ir_env", history="a + b")
    assert Image.open("b.png").text == {"Title": "Zebra, größer", "Software": "ir_env", "History": "a + b"}


# -- kinds of files ------------------------------------------------------------------------------------------------------------------


def test_more_than_one_frame_or_page_is_said(crop):
    frames = [Image.fromarray(np.roll(crop, shift, 1)) for shift in (0, 8, 16)]
    for name, what in (("a.gif", "frames"), ("a.webp", "frames"), ("a.tif", "pages")):
        frames[0].save(name, save_all=True, append_images=frames[1:])
        assert read_photograph(name).notes == (f"it holds 3 {what}: this is the first",)


def test_lossless_webp_stays_lossless(crop):
    Image.fromarray(crop).save("a.webp", lossless=True)
    again("a.webp", "b.webp")
    assert np.array_equal(load_image("b.webp"), crop)


def test_heic_without_its_reader_names_the_package(crop, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with open("a.heic", "wb") as file:
        file.write(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match=r"pip install 'ir-env\[heic\]'"):
        read_photograph("a.heic")


def test_arrays_that_are_no_images_are_named():
    for array, told in (
        (np.zeros((20, 20, 5), np.uint8), "shape"),
        (np.zeros((4, 20), np.uint8), "too small"),
        (np.full((20, 20), "a"), "type"),
    ):
        with pytest.raises(ImageError, match=told):
            photograph_of(array)


def test_tags_of_an_8_bit_tiff_stay_and_broken_exif_loses_the_exif_alone(crop):
    exif = Image.Exif()
    exif[271] = "TestCam"
    Image.fromarray(crop).save("a.tif", exif=exif)
    again("a.tif", "b.jpg")
    assert exif_of("b.jpg")[271] == "TestCam"
    for name in ("c.jpg", "c.png", "c.webp"):
        Image.fromarray(crop).save(name, exif=b"Exif\0\0" + b"nonsense" * 20)
        photograph = read_photograph(name)
        assert photograph.pixels.shape == crop.shape and photograph.notes == ("its EXIF cannot be read",), name


def test_floats_of_16_bits_and_an_empty_file():
    import tifffile

    values = RANDOM.random((24, 32)).astype(np.float16)
    tifffile.imwrite("a.tif", values)
    assert np.array_equal(read_photograph("a.tif").pixels[..., 0], values.astype(np.float32))
    open("b.jpg", "w").close()
    with pytest.raises(ImageError, match=r"b\.jpg: the file is empty"):
        read_photograph("b.jpg")
