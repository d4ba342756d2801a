"""Whole dense networks as functions: ESPNet, ESPNet-C, ESPNetv2's segmenter."""

import os
from typing import Any

from keras_lightnets._errors import unknown

Weights = str | os.PathLike[str] | None
Size = tuple[int, int] | None

_DEPTHS = {3: "_q3", 5: "_q5", 8: ""}
_WIDTHS = {0.5: "_050", 1.0: "", 1.5: "_150", 2.0: "_200"}


def ESPNet(  # noqa: N802
    weights: Weights = "cityscapes", size: Size = None, *, q: int = 8
) -> Any:
    """Build ESPNet with its decoder.

    Args:
        weights: None (random), "cityscapes" (19 classes and "void"), "camvid" (11 and
            "void", q=8 only), or the path of a file.
        size: (height, width) of the input, multiples of 8; None: 512 x 1024, for
            CamVid 360 x 480.
        q: Pyramids in the last stage: 3, 5 or 8.

    Returns:
        A `keras.Model` from RGB images of 0-255, (batch, height, width, 3), to raw
        {"logits": (batch, height, width, classes)}. For classes
        of your own train the head "espnet" on the backbone "espnet_encoder"
        (tasks/segment.py).

    Raises:
        ValueError: If there is no such q.
        WeightsError: If the weights cannot be had or do not fit.

    Example:
        >>> ESPNet(weights=None, size=(64, 96), q=3).output["logits"].shape
        (None, 64, 96, 20)

    Reference:
        Mehta et al. 2018, https://arxiv.org/abs/1803.06815.
    """
    return _create(f"espnet{_ending(_DEPTHS, 'q', q)}", weights, size)


def ESPNetC(  # noqa: N802
    weights: Weights = "cityscapes", size: Size = None, *, q: int = 8
) -> Any:
    """Build ESPNet-C: the encoder and a classifier of its cells.

    Args:
        weights: None (random), "cityscapes" (19 classes and "void"), or the path of a
            file.
        size: (height, width) of the input; None: 512 x 1024.
        q: Pyramids in the last stage: 3, 5 or 8.

    Returns:
        A `keras.Model` from RGB images of 0-255, (batch, height, width, 3), to raw
        {"logits": (batch, height / 8, width / 8, classes)}.

    Raises:
        ValueError: If there is no such q.
        WeightsError: If the weights cannot be had or do not fit.

    Example:
        >>> ESPNetC(weights=None, size=(64, 96), q=3).output["logits"].shape
        (None, 8, 12, 20)

    Reference:
        Mehta et al. 2018, https://arxiv.org/abs/1803.06815.
    """
    return _create(f"espnet_c{_ending(_DEPTHS, 'q', q)}", weights, size)


def ESPNetV2Segmenter(  # noqa: N802
    weights: Weights = "cityscapes", size: Size = None, *, width: float = 2.0
) -> Any:
    """Build ESPNetv2 with its decoder.

    Args:
        weights: None (random), "cityscapes" (19 classes and "void"), "voc" (21), or
            the path of a file.
        size: (height, width) of the input; None: 512 x 1024, for VOC 384 x 384.
        width: Channel multiplier: 0.5, 1.0, 1.5 or 2.0.

    Returns:
        A `keras.Model` from RGB images of 0-255, (batch, height, width, 3), to raw
        {"logits": (batch, height, width, classes)}.

    Raises:
        ValueError: If there is no such width.
        WeightsError: If the weights cannot be had or do not fit.

    Example:
        >>> model = ESPNetV2Segmenter(weights=None, size=(64, 96), width=0.5)
        >>> model.output["logits"].shape
        (None, 64, 96, 20)

    Reference:
        Mehta et al. 2018, https://arxiv.org/abs/1811.11431.
    """
    ending = _ending(_WIDTHS, "width", width)
    return _create(f"espnet_v2_seg{ending}", weights, size)


def _create(name: str, weights: Weights, size: Size) -> Any:
    from keras_lightnets.heads.segmenters import create_segmenter

    return create_segmenter(name, weights, size)[0]


def _ending(table: dict[int, str] | dict[float, str], field: str, value: float) -> str:
    for known, ending in table.items():
        if known == value:
            return ending
    raise unknown(field, value, table)
