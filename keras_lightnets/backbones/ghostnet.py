"""GhostNet: half of the features from cheap depthwise operations."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets import layers
from keras_lightnets._application import Family, make_application, make_preprocess
from keras_lightnets._channels import make_divisible
from keras_lightnets._inputs import decode_predictions
from keras_lightnets._layout import Layout
from keras_lightnets._spec import IMAGENET, Level, ModelSpec, Weights

__all__ = [
    "GhostNet",
    "GhostNetW050",
    "GhostNetW130",
    "decode_predictions",
    "preprocess_input",
]


@dataclass(frozen=True)
class Row:
    """One line of the paper's table 7 (sizes before the width multiplier)."""

    stage: int
    kernel: int
    expand: int
    out: int
    se: bool
    stride: int


# fmt: off
ROWS = (
    #   stage kernel expand  out  se     stride
    Row(1,    3,      16,    16,  False, 1),
    Row(2,    3,      48,    24,  False, 2),
    Row(2,    3,      72,    24,  False, 1),
    Row(3,    5,      72,    40,  True,  2),
    Row(3,    5,     120,    40,  True,  1),
    Row(4,    3,     240,    80,  False, 2),
    Row(4,    3,     200,    80,  False, 1),
    Row(4,    3,     184,    80,  False, 1),
    Row(4,    3,     184,    80,  False, 1),
    Row(4,    3,     480,   112,  True,  1),
    Row(4,    3,     672,   112,  True,  1),
    Row(5,    5,     672,   160,  True,  2),
    Row(5,    5,     960,   160,  False, 1),
    Row(5,    5,     960,   160,  True,  1),
    Row(5,    5,     960,   160,  False, 1),
    Row(5,    5,     960,   160,  True,  1),
)
# fmt: on
