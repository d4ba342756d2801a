"""Reads image files of any kind as upright uint8 RGB arrays.

OpenCV 5 decodes grayscale, CMYK, palette, alpha and 16-bit files to 8-bit colour
and turns them upright by their EXIF tag; alpha is dropped, 16 bits are scaled to 8.
It returns nothing for a truncated file, which older versions filled with grey.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_lightnets._errors import unknown

FITS = ("stretch", "letterbox")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# A reduced decode may fall this far below the wanted size along one axis: 640x480
# read at 320x240 serves a square of 320. Below it small objects visibly blur.
LEAST_SHARPNESS = 0.75

_JPEG = b"\xff\xd8"
_ORIENTATION_TAG = 0x0112


class ImageError(ValueError):
    """An image file cannot be used.

    Attributes:
        kind: "missing_image", "empty_image", "unreadable_image" or
            "truncated_image"; the kinds of `checks.KINDS`.
        detail: What is wrong, without the file's name.
    """

    def __init__(self, kind: str, path: Any, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Header:
    """What an image file says about itself.

    Attributes:
        width: Upright width in pixels, after EXIF rotation.
        height: Upright height in pixels.
        turned: Whether the EXIF tag swaps width and height.
        complete: Whether the file ends where its format says. False means
            "decode it to be sure", not "broken".
    """

    width: int
    height: int
    turned: bool
    complete: bool


@functools.cache
def opencv() -> ModuleType:
    """Return cv2, set to one thread per call, as the loader brings its own threads."""
    import cv2

    cv2.setNumThreads(1)
    return cv2


def reduction(
    size: tuple[int, int], target: tuple[int, int] | None, fit: str = "stretch"
) -> int:
    """Return by how much a JPEG may be shrunk while decoding.

    Args:
        size: (height, width) of the file.
        target: (height, width) it will be resized to; None for full size.
        fit: "stretch" resizes both sides, "letterbox" keeps the aspect ratio.

    Returns:
        1, 2, 4 or 8.

    Example:
        >>> reduction((480, 640), (320, 320)), reduction((480, 640), (160, 160))
        (2, 4)
    """
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    if target is None:
        return 1
    short, long = sorted((size[0] / target[0], size[1] / target[1]))
    for factor in (8, 4, 2):
        sharp = fit == "letterbox" or short / factor >= LEAST_SHARPNESS
        if sharp and long / factor >= 1:
            return factor
    return 1


def read_image(source: str | Path | bytes, reduce: int = 1) -> np.ndarray:
    """Read an image.

    Args:
        source: Path, or the file's bytes.
        reduce: 1, 2, 4 or 8: a JPEG is decoded at that fraction of its size, which
            costs about half the time at 2. Other formats ignore it.

    Returns:
        uint8 array of shape (height, width, 3), RGB, 0-255, upright. A reduced side
        is `ceil(side / reduce)` long.

    Raises:
        ImageError: If the file is missing, empty, truncated or no image.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    name = "image" if isinstance(source, bytes) else source
    cv2 = opencv()
    flag = cv2.IMREAD_COLOR_RGB
    if reduce != 1 and data[:2] == _JPEG:
        flag = getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduce}")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise ImageError("unreadable_image", name, str(error.err)) from error
    if image is None or image.dtype != np.uint8:
        raise _diagnose(data, name)
    if flag != cv2.IMREAD_COLOR_RGB:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image


def scale_boxes(boxes: np.ndarray, factor: int, size: tuple[int, int]) -> np.ndarray:
    """Move pixel boxes onto an image read with `reduce=factor`.

    Args:
        boxes: (M, 4) x1, y1, x2, y2 in pixels of the full image.
        factor: The `reduce` of `read_image`.
        size: (height, width) of the image as read.

    Returns:
        float32 (M, 4), inside the image.
    """
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes / np.float32(factor), 0, limits).astype(np.float32)


def read_bytes(path: str | Path) -> bytes:
    """Read an image file undecoded.

    Args:
        path: The file.

    Returns:
        Its bytes, at least one.

    Raises:
        ImageError: If the file is missing, empty or may not be read.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError("missing_image", path, "no such file") from error
    except OSError as error:
        text = error.strerror or str(error)
        raise ImageError("unreadable_image", path, text) from error
    if not data:
        raise ImageError("empty_image", path, "0 bytes")
    return data


def read_header(data: bytes, path: Any = "image") -> Header:
    """Read size, orientation and ending without decoding the pixels.

    Args:
        data: The file's bytes.
        path: What to call the file in an error.

    Returns:
        Its header.

    Raises:
        ImageError: If this is no image.
    """
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = _orientation(image) >= 5  # 5-8 swap the axes
    except Exception as error:
        reason = "no image format is recognised"
        if not isinstance(error, Image.UnidentifiedImageError):
            reason = str(error) or type(error).__name__
        if data[:2] == _JPEG and not _ends_well(data):
            text = f"the file ends inside its header ({len(data)} bytes)"
            raise ImageError("truncated_image", path, text) from error
        raise ImageError("unreadable_image", path, reason) from error
    if turned:
        width, height = height, width
    return Header(width, height, turned, _ends_well(data))


def _orientation(image: Any) -> int:
    from PIL import Image

    raw = image.info.get("exif")
    if not raw:
        return 1
    exif = Image.Exif()
    exif.load(raw)
    value = exif.get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) else 1


def _ends_well(data: bytes) -> bool:
    tail = data[-64:].rstrip(b"\0\r\n ")
    if data[:2] == _JPEG:
        return tail.endswith(b"\xff\xd9")
    if data[:4] == b"\x89PNG":
        return b"IEND" in tail[-12:]
    if data[:4] == b"RIFF":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _diagnose(data: bytes, path: Any) -> ImageError:
    """Say why OpenCV returned nothing."""
    if not data:
        return ImageError("empty_image", path, "0 bytes")
    try:
        header = read_header(data, path)
    except ImageError as error:
        return error
    size = f"{header.width}x{header.height}, {len(data)} bytes"
    if header.complete:
        return ImageError("unreadable_image", path, f"damaged pixels ({size})")
    return ImageError("truncated_image", path, f"the file ends too early ({size})")
