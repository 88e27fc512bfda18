"""Decoding on the host: boxes, scaled JPEGs, conversions, and what becomes of damaged files."""

import io
import os
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from tiny_sets import encoded, picture

from ge2mst_jax.data.decode import (
    DRAWS,
    FLIP,
    MAX_FILE_BYTES,
    CorruptImageError,
    DataError,
    DecodeConfig,
    centre_box,
    decode,
    decode_whole,
    draft,
    random_box,
    read_file,
)

DRAW = st.floats(0, 1, exclude_max=True)


def smooth(width, height):
    """A picture without detail: any way of scaling it gives the same."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x], -1).astype(np.uint8)


@given(st.lists(DRAW, min_size=DRAWS, max_size=DRAWS), st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1))
@settings(deadline=None)
def test_a_random_box_lies_in_the_image(draws, width, height, min_area):
    left, top, right, bottom = random_box(draws, width, height, min_area)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_random_boxes_have_the_areas_and_ratios_of_the_definition():
    draws = np.random.default_rng(0).random((4000, DRAWS))
    boxes = np.array([random_box(row, 1000, 1000) for row in draws])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 1e6, width / height
    assert area.min() > 0.079 and area.max() <= 1
    assert ratio.min() > 0.745 and ratio.max() < 1.345
    assert abs(np.mean(np.log(ratio))) < 0.01
    # A box that doesn't fit is drawn again, so that the largest are rarer; below a half, areas are uniform.
    small = np.histogram(area, [0.08, 0.22, 0.36, 0.5])[0]
    assert np.allclose(small / small.sum(), 1 / 3, atol=0.03)


def test_a_long_image_gets_the_largest_centred_box_of_an_allowed_ratio():
    # No box of 90 % of the area with such a ratio fits into 100×10.
    assert random_box([0.9] * DRAWS, 100, 10, min_area=0.9) == (43, 0, 56, 10)
    assert random_box([0.9] * DRAWS, 10, 100, min_area=0.9) == (0, 43, 10, 56)


def test_evaluation_keeps_the_centre():
    assert centre_box(256, 256, 224) == (16, 16, 240, 240)
    assert centre_box(640, 320, 112) == (180.0, 20.0, 460.0, 300.0)
    pixels = decode(encoded(smooth(512, 256)), DecodeConfig(image_size=32), where="a")
    assert pixels.shape == (32, 32, 3)
    assert abs(int(pixels[:, :16, 0].mean()) + int(pixels[:, 16:, 0].mean()) - 255) <= 2  # centred left to right
    assert abs(int(pixels[:16, :, 1].mean()) + int(pixels[16:, :, 1].mean()) - 255) <= 2


def test_an_image_of_the_right_size_is_left_as_it_is():
    pixels = picture(0, 8)
    assert np.array_equal(decode(encoded(pixels), DecodeConfig(image_size=8), where="a"), pixels)


def test_training_without_a_random_crop_is_evaluation_and_a_flip():
    pixels, config = picture(0, 8), DecodeConfig(image_size=8, random_crop=False)
    draws = [0.5] * DRAWS
    assert np.array_equal(decode(encoded(pixels), config, where="a", draws=draws), pixels)
    draws[FLIP] = 0.4
    assert np.array_equal(decode(encoded(pixels), config, where="a", draws=draws), pixels[:, ::-1])
    config = DecodeConfig(image_size=8, random_crop=False, flip=False)
    assert np.array_equal(decode(encoded(pixels), config, where="a", draws=draws), pixels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_random_crop_is_the_box_cut_out_and_resized(interpolation):
    data, draws = encoded(smooth(60, 50)), np.random.default_rng(3).random(DRAWS).tolist()
    pixels = decode(data, DecodeConfig(16, flip=False, interpolation=interpolation), where="a", draws=draws)
    box = random_box(draws, 60, 50)
    by_hand = Image.open(io.BytesIO(data)).crop(box).resize((16, 16), Image.Resampling[interpolation.upper()])
    # Only at the box's border may they differ: there, resizing sees beyond it.
    assert np.abs(pixels.astype(int) - np.asarray(by_hand))[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize(("side", "factor"), [(60, 1), (146, 1), (148, 2), (300, 4), (600, 8), (1200, 8)])
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(side, factor, monkeypatch):
    data = encoded(smooth(side, side), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert draft(image, centre_box(side, side, 64), 64) == factor
        assert image.size == (-(-side // factor),) * 2
    drafted = decode(data, DecodeConfig(64, random_crop=False), where="a")
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: None)  # decoded in full
    whole = decode(data, DecodeConfig(64, random_crop=False), where="a")
    assert np.array_equal(whole, drafted) == (factor == 1)
    assert np.abs(whole.astype(int) - drafted).max() <= 4


def palette():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


@pytest.mark.parametrize(
    ("image", "format", "options", "expected"),
    [
        (Image.new("L", (2, 2), 77), "PNG", {}, (77, 77, 77)),
        (Image.new("L", (2, 2), 77), "JPEG", {}, (77, 77, 77)),
        (Image.new("1", (2, 2), 1), "PNG", {}, (255, 255, 255)),
        (Image.new("LA", (2, 2), (77, 0)), "PNG", {}, (77, 77, 77)),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 0)), "PNG", {}, (1, 2, 3)),
        (palette(), "PNG", {}, (10, 20, 30)),
        (palette(), "PNG", {"transparency": b"\x00\x80"}, (10, 20, 30)),
        (palette(), "GIF", {}, (10, 20, 30)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", {"quality": 100}, (255, 0, 0)),
        (Image.fromarray(np.full((2, 2), 77 * 256 + 255, np.uint16)), "PNG", {}, (77, 77, 77)),
    ],
    ids=["grey", "grey-jpeg", "1-bit", "grey-alpha", "rgba", "palette", "transparent", "gif", "cmyk", "16-bit"],
)
def test_whatever_the_file_holds_becomes_rgb(image, format, options, expected):
    pixels = decode_whole(encoded(image, format, **options), where="a")
    assert pixels.dtype == np.uint8 and pixels.shape == (*image.size[::-1], 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 2 * (format == "JPEG")


def test_one_channel_becomes_grey():
    pixels = decode(encoded(np.full((4, 4, 3), 50, np.uint8)), DecodeConfig(4), where="a", channels=1)
    assert pixels.shape == (4, 4, 1) and np.all(pixels == 50)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_a_truncated_file_is_refused_by_name(format, cut):
    data = encoded(picture(0, 16), format)
    cut = cut % (len(data) - 40)  # without its last bytes (checksums, end mark) a file may still hold every pixel
    with pytest.raises(CorruptImageError, match=r"^dir/a\.img: not a readable image \("):
        decode(data[:cut], DecodeConfig(8), where="dir/a.img")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow warns of odd metadata
@given(
    st.binary(min_size=1, max_size=20), st.floats(0, 1), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
)
@settings(deadline=None, max_examples=300)
def test_a_damaged_file_decodes_or_is_refused(damage, place, format):
    data = encoded(picture(0, 16), format)
    start = int(place * (len(data) - len(damage)))
    data = data[:start] + damage + data[start + len(damage) :]
    try:
        assert decode(data, DecodeConfig(8), where="a").shape == (8, 8, 3)
    except CorruptImageError as error:
        assert str(error).startswith("a: not a readable image")
        assert "\n" not in str(error)


def test_what_is_no_image_is_refused():
    for data, why in ((b"", "an empty file"), (b"not an image", "unknown format")):
        with pytest.raises(CorruptImageError, match=rf"a.jpg: not a readable image \({why}\)"):
            decode(data, DecodeConfig(8), where="a.jpg")
    with pytest.raises(CorruptImageError, match="32-bit pixels"):
        decode(encoded(Image.new("F", (2, 2), 0.5), "TIFF"), DecodeConfig(8), where="a.tiff")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0), ("image_size", -1), ("image_size", 8193), ("image_size", 224.0), ("image_size", True),
        ("image_size", "224"), ("image_size", None), ("min_area", 0.0), ("min_area", 1.5), ("min_area", float("nan")),
        ("min_area", float("inf")), ("min_area", True), ("interpolation", "nearest"), ("interpolation", None),
        ("interpolation", ["bilinear"]), ("random_crop", "False"), ("random_crop", 2), ("flip", None), ("flip", 0),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        DecodeConfig(**{field: value})


# Photos taken with the camera turned


def seen_upright(pixels, orientation):
    """What is stored where a camera held so took a picture of `pixels`; the definition of EXIF, in numpy."""
    undone = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }
    return np.ascontiguousarray(undone[orientation](pixels))


def photo(pixels, orientation, format="PNG", **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(seen_upright(pixels, orientation), format, exif=exif, **options)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(format, orientation):
    pixels = np.concatenate([picture(0), picture(1), picture(2)], 1)[:, :20]  # 8 high, 20 wide
    options = {"lossless": True} if format == "WEBP" else {}
    data = photo(pixels, orientation, format, **options)
    assert np.array_equal(decode_whole(data, where="a"), pixels)
    config, draws = DecodeConfig(8), np.random.default_rng(orientation).random(DRAWS).tolist()
    for draws_or_none in (None, draws):  # evaluation and training
        expected = decode(encoded(pixels), config, where="a", draws=draws_or_none)
        assert np.array_equal(decode(data, config, where="a", draws=draws_or_none), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_turned_jpeg_is_decoded_at_a_fraction_of_its_size_too(orientation):
    pixels = smooth(640, 480)
    upright = encoded(pixels, "JPEG", quality=98)
    turned = photo(pixels, orientation, "JPEG", quality=98)
    config = DecodeConfig(32)
    for draws in (None, [0.3] * DRAWS):
        found, expected = (decode(d, config, where="a", draws=draws).astype(int) for d in (turned, upright))
        assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_passed_over(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_whole(encoded(picture(0), exif=exif), where="a"), picture(0))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow warns of odd metadata
@given(st.binary(max_size=60), st.booleans())
@settings(deadline=None, max_examples=200)
def test_damaged_exif_data_are_no_damaged_image(damage, with_header):
    data = encoded(picture(0), exif=b"Exif\0\0" * with_header + damage)
    assert decode_whole(data, where="a").shape == (8, 8, 3)


# One rule for all depths


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_cut_off(format, order):
    values = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xFEFF, 0xFF00, 0xFFFF]], np.uint16)
    image = Image.fromarray(values.astype(order)) if format == "TIFF" else Image.fromarray(values)
    expected = [[0, 0, 1, 127], [128, 254, 255, 255]]
    for channels in (1, 3):
        assert decode_whole(encoded(image, format), where="a", channels=channels)[..., 0].tolist() == expected


def bomb():
    """A PNG that claims 100,000 × 100,000 pixels."""
    data = bytearray(encoded(picture(0)))
    data[16:24] = (100_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4)
    return bytes(data)


def chunk_damaged():
    data = bytearray(encoded(picture(0)))
    place = data.index(b"IDAT")
    data[place + 10] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "32-bit pixels (mode F) have no 8-bit meaning"),
        (encoded(Image.new("I", (8, 8), 70000), "TIFF"), "32-bit pixels (mode I) have no 8-bit meaning"),
        (bomb(), "decompression bomb"),
        (chunk_damaged(), "broken PNG|broken data"),
        (encoded(picture(0))[:-30], "truncated"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
        (b"II*\0" + bytes(40), "not a readable image"),
        (encoded(picture(0), "EPS"), "EPS files are programs"),
    ],
    ids=["float", "int32", "bomb", "chunk", "cut", "magic alone", "empty TIFF", "EPS"],
)
def test_files_that_cannot_be_read_are_one_line(data, says):
    for read in (decode_whole, lambda data, where: decode(data, DecodeConfig(8), where=where)):
        with pytest.raises(CorruptImageError) as caught:
            read(data, where="dir/a.png")
        said = str(caught.value)
        assert said.startswith("dir/a.png: not a readable image (") and said.isprintable()
        assert any(part in said for part in says.split("|"))


# Files


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "No such file or directory"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "Is a directory|not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("gone"), "No such file or directory"),
        (make_sparse, "1073741825 bytes, more than"),
        (make_socket, "No such device or address|not a regular file"),
    ],
    ids=["missing", "pipe", "folder", "device", "loop", "dangling", "sparse", "socket"],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, make, says):
    monkeypatch.chdir(tmp_path)
    path = Path("a.png")
    make(path)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert str(caught.value).startswith("a.png: can't be read (") and any(
        s in str(caught.value) for s in says.split("|")
    )


def test_an_error_is_one_line_whatever_the_file_is_called():
    for name in ("a\nb", "a\x1b[2J", "a\udcff"):
        for read in (read_file, lambda name: decode_whole(b"", where=name)):
            with pytest.raises(DataError) as caught:
                read(name)
            assert str(caught.value).isprintable()
