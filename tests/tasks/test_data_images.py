"""Image files of every kind come out as the same upright RGB picture."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_lightnets.tasks.data import images
from keras_lightnets.tools import runtime


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // width, y * 255 // height, 255 - x * 128 // width]
    return np.stack(planes, -1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def wide(values: np.ndarray, extension: str = ".png") -> bytes:
    """Encode 8-bit values as 16-bit ones, brightest at 65535."""
    cv2 = images.opencv()
    pixels = values.astype(np.uint16) * 257
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    done, data = cv2.imencode(extension, pixels)
    assert done
    return data.tobytes()


RGB = picture()
GREY = np.repeat(RGB[..., :1], 3, -1)
COLOUR = Image.fromarray(RGB)
ALPHA = Image.fromarray(np.dstack([RGB, RGB[..., 0]]))
PALETTE = COLOUR.quantize(64)
INDEXED = np.asarray(PALETTE.convert("RGB"))

# name: (bytes, expected pixels, largest mean difference)
KINDS = {
    "jpeg": (encoded(COLOUR, "JPEG", quality=95), RGB, 1),
    "progressive": (encoded(COLOUR, "JPEG", quality=95, progressive=True), RGB, 1),
    "cmyk": (encoded(COLOUR.convert("CMYK"), "JPEG", quality=95), RGB, 1.5),
    "grey jpeg": (encoded(Image.fromarray(RGB[..., 0]), "JPEG", quality=95), GREY, 1),
    "grey png": (encoded(Image.fromarray(RGB[..., 0]), "PNG"), GREY, 0),
    "grey alpha": (encoded(Image.fromarray(RGB[..., 0]).convert("LA"), "PNG"), GREY, 0),
    "16-bit grey": (wide(RGB[..., 0]), GREY, 0),
    "16-bit colour": (wide(RGB), RGB, 0),
    "16-bit tiff": (wide(RGB, ".tiff"), RGB, 0),
    "alpha": (encoded(ALPHA, "PNG"), RGB, 0),
    "palette": (encoded(PALETTE, "PNG"), INDEXED, 0),
    "palette with hole": (encoded(PALETTE, "PNG", transparency=3), INDEXED, 0),
    "gif": (encoded(PALETTE, "GIF"), INDEXED, 0),
    "bmp": (encoded(COLOUR, "BMP"), RGB, 0),
    "webp": (encoded(COLOUR, "WEBP", lossless=True), RGB, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_as_rgb(kind, tmp_path):
    data, expected, tolerance = KINDS[kind]
    path = tmp_path / "picture"
    path.write_bytes(data)
    image = images.read_image(path)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= tolerance
    header = images.read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(COLOUR, form, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    image = images.read_image(data)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 1
    header = images.read_header(data)
    assert (header.height, header.width) == upright.shape[:2]
    assert header.turned == (orientation >= 5)
    half = images.read_image(data, reduce=2)
    expected = (24, 32) if form == "JPEG" else (48, 64)
    assert half.shape[:2] == (expected[::-1] if orientation >= 5 else expected)


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_jpeg_shows_the_same_picture(reduce):
    data = encoded(Image.fromarray(picture(101, 150)), "JPEG", quality=95)
    image = images.read_image(data, reduce)
    assert image.shape == (-(-101 // reduce), -(-150 // reduce), 3)
    large = runtime.resize_image(picture(101, 150), image.shape[:2])
    assert np.abs(image.astype(int) - large).mean() < 3


def test_reduction_keeps_what_the_target_needs():
    assert images.reduction((480, 640), None) == 1
    assert images.reduction((480, 640), (320, 320)) == 2
    assert images.reduction((480, 640), (384, 384)) == 1
    assert images.reduction((480, 640), (320, 320), "letterbox") == 2
    assert images.reduction((300, 640), (320, 320)) == 1
    assert images.reduction((300, 640), (320, 320), "letterbox") == 2
    assert images.reduction((4000, 3000), (256, 256)) == 8
    assert images.reduction((200, 200), (256, 256)) == 1
    with pytest.raises(ValueError, match="Did you mean 'letterbox'"):
        images.reduction((10, 10), None, "leterbox")


def test_boxes_follow_a_reduced_image():
    boxes = np.array([[10, 20, 101, 60]], np.float32)
    scaled = images.scale_boxes(boxes, 2, (30, 50))
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [[5, 10, 50, 30]]


BIG = encoded(Image.fromarray(picture(240, 320)), "JPEG")
PNG = encoded(Image.fromarray(picture(240, 320)), "PNG")
DAMAGED = PNG[: len(PNG) // 2] + bytes(30) + PNG[len(PNG) // 2 + 30 :]
BROKEN = {
    "half jpeg": (BIG[: len(BIG) // 2], "truncated_image"),
    "jpeg less two bytes": (BIG[:-2], "truncated_image"),
    "header of a jpeg": (BIG[:300], "truncated_image"),
    "half png": (PNG[: len(PNG) // 2], "truncated_image"),
    "png less its end": (PNG[:-12], "truncated_image"),
    "damaged png": (DAMAGED, "unreadable_image"),
    "text": (b"<html>not found</html>", "unreadable_image"),
    "empty": (b"", "empty_image"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("reduce", [1, 2])
def test_broken_files_say_what_is_wrong(name, reduce, tmp_path):
    data, kind = BROKEN[name]
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(images.ImageError, match="bad.jpg") as caught:
        images.read_image(path, reduce)
    assert caught.value.kind == kind
    with pytest.raises(images.ImageError) as caught:
        images.read_image(data, reduce)
    assert caught.value.kind == kind


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(images.ImageError) as caught:
        images.read_image(tmp_path / "none.jpg")
    assert caught.value.kind == "missing_image"
    with pytest.raises(images.ImageError) as caught:
        images.read_image(tmp_path)
    assert caught.value.kind == "unreadable_image"


def test_bytes_after_the_end_do_no_harm():
    data = BIG + b"a video from a phone" * 100
    assert not images.read_header(data).complete
    assert np.array_equal(images.read_image(data), images.read_image(BIG))
