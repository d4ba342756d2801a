"""R-ASPP and LR-ASPP: segmentation heads of MobileNetV2 and MobileNetV3."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._layout import Layout
from keras_lightnets.heads import _conv, _endpoints
from keras_lightnets.heads.deeplab import aspp
from keras_lightnets.layers import activate

# Fine map of stride 8 and the map in front of the classifier's pooling.
ENDPOINTS = (("c3",), ("features", "c5"))
RASPP_ENDPOINTS = (("features", "c5"),)

# MobileNetV3, figure 10: window and strides of the pooling on maps of 64 x 128,
# that is 1024 x 2048 images at an output stride of 16.
PAPER_POOL = (49, 49)
PAPER_STRIDE = (16, 20)


@dataclass(frozen=True, kw_only=True)
class LRASPPConfig:
    """LR-ASPP as data.

    Attributes:
        classes: Number of classes.
        filters: Channels of the coarse branch.
        pool: (height, width) of the gate's pooling window in cells, `PAPER_POOL` in
            the paper, cut to the map where that is smaller; None: the whole map, as
            in torchvision.
        pool_stride: Its strides, `PAPER_STRIDE` in the paper.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.

    Raises:
        ValueError: If a value is not legal.
    """

    classes: int
    filters: int = 128
    pool: tuple[int, int] | None = None
    pool_stride: tuple[int, int] = PAPER_STRIDE
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9

    def __post_init__(self) -> None:
        window = (*(self.pool or (1, 1)), *self.pool_stride)
        if self.classes < 1 or self.filters < 1 or min(window) < 1:
            raise ValueError(
                "LRASPPConfig needs classes, filters, pool and pool_stride of at least "
                f"1. Received: classes={self.classes}, filters={self.filters}, pool="
                f"{self.pool}, pool_stride={self.pool_stride}"
            )

    @property
    def numerics(self) -> _conv.Numerics:
        """What the head's convolutions share."""
        return _conv.Numerics(
            bn_epsilon=self.bn_epsilon, bn_momentum=self.bn_momentum, act="relu"
        )


@dataclass(frozen=True, kw_only=True)
class RASPPConfig:
    """R-ASPP as data.

    Attributes:
        classes: Number of classes.
        filters: Channels of both branches and of what joins them.
        dropout: Rate behind the branches.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.
    """

    classes: int
    filters: int = 256
    dropout: float = 0.1
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9

    @property
    def numerics(self) -> _conv.Numerics:
        """What the head's convolutions share."""
        return _conv.Numerics(
            bn_epsilon=self.bn_epsilon, bn_momentum=self.bn_momentum, act="relu"
        )


def lraspp(features: Mapping[str, Any], config: LRASPPConfig) -> dict[str, Any]:
    """Build LR-ASPP: a gated coarse branch, and a shortcut of finer detail.

        coarse --+-- 1x1, BN, ReLU ------------------ x -- resize -- 1x1 --+
                 +-- mean -- 1x1 -- sigmoid -(resize)-+                    + logits
        fine ------------------------------------------------------ 1x1 --+

    Layers: `head_coarse_conv|bn|act|scale|resize`, `head_gate_pool|conv|act|resize`,
    `head_coarse_logits_conv`, `head_fine_logits_conv`, `head_add`.

    Args:
        features: Feature maps by endpoint: "c3" (stride 8) and "features" or "c5"
            (the backbone's output stride, 16 in the paper). Others are not read.
        config: The head.

    Returns:
        {"logits": (batch, height / 8, width / 8, classes)}, raw.

    Raises:
        ValueError: If an endpoint is missing.

    Example:
        >>> import keras
        >>> fine, coarse = keras.Input((12, 16, 40)), keras.Input((6, 8, 960))
        >>> maps = {"c3": fine, "c5": coarse}
        >>> lraspp(maps, LRASPPConfig(classes=11))["logits"].shape
        (None, 12, 16, 11)

    Reference:
        Howard et al. 2019, section 6.4, https://arxiv.org/abs/1905.02244.
    """
    names = _endpoints.choose("lraspp", ENDPOINTS, features)
    fine, coarse = (features[name] for name in names)
    numerics = config.numerics
    x = _conv.conv_bn_act(coarse, config.filters, numerics, "head_coarse")
    x = layers.Multiply(name="head_coarse_scale")([x, _gate(coarse, config)])
    x = _conv.resize_to(x, fine, 2, "head_coarse")
    parts = [
        _conv.predict(x, config.classes, 0.0, numerics, "head_coarse_logits"),
        _conv.predict(fine, config.classes, 0.0, numerics, "head_fine_logits"),
    ]
    return {"logits": layers.Add(name="head_add")(parts)}


def _gate(coarse: Any, config: LRASPPConfig) -> Any:
    """Return the sigmoid gate, of the size of the map or one cell of it."""
    if config.pool is None:
        pool = layers.GlobalAveragePooling2D(keepdims=True, name="head_gate_pool")
    else:
        sides = zip(config.pool, coarse.shape[1:3], strict=True)
        window = tuple(min(size, side or size) for size, side in sides)
        pool = layers.AveragePooling2D(
            window, config.pool_stride, name="head_gate_pool"
        )
    gate = layers.Conv2D(config.filters, 1, use_bias=False, name="head_gate_conv")
    y = activate(gate(pool(coarse)), "sigmoid", "head_gate")
    if config.pool is None:
        return y  # one cell, which the product repeats
    if None in coarse.shape[1:3]:
        raise ValueError(
            "A pooled gate is spread over a map of known size: build the backbone with "
            "a fixed input_shape, or use pool=None. Received a map of shape "
            f"{tuple(coarse.shape)}"
        )
    return _conv.resize_to(y, coarse, 1, "head_gate")


def raspp(features: Mapping[str, Any], config: RASPPConfig) -> dict[str, Any]:
    """Build R-ASPP: a 1x1 convolution and the image's mean, joined.

    Layers: those of `deeplab.aspp` without dilated branches, `head_logits_conv`.

    Args:
        features: Feature maps by endpoint: "features" or "c5". Others are not read.
        config: The head.

    Returns:
        {"logits": (batch, height / output stride, width / output stride, classes)},
        raw.

    Raises:
        ValueError: If the endpoint is missing or its size is not known.

    Example:
        >>> import keras
        >>> maps = {"c5": keras.Input((6, 8, 320))}
        >>> raspp(maps, RASPPConfig(classes=11))["logits"].shape
        (None, 6, 8, 11)

    Reference:
        Sandler et al. 2018, section 6.3, https://arxiv.org/abs/1801.04381; named so
        by Howard et al. 2019, https://arxiv.org/abs/1905.02244.
    """
    (name,) = _endpoints.choose("raspp", RASPP_ENDPOINTS, features)
    x = aspp(features[name], config.filters, (), config.numerics)
    if config.dropout:
        x = layers.Dropout(config.dropout, name="head_drop")(x)
    logits = _conv.predict(x, config.classes, 0.0, config.numerics, "head_logits")
    return {"logits": logits}


def _torchvision_names(config: LRASPPConfig) -> dict[str, str]:
    return {
        "head_coarse_conv": "classifier.cbr.0",
        "head_coarse_bn": "classifier.cbr.1",
        "head_gate_conv": "classifier.scale.1",
        "head_coarse_logits_conv": "classifier.high_classifier",
        "head_fine_logits_conv": "classifier.low_classifier",
    }


LAYOUTS: Mapping[str, Layout] = {
    "torchvision": Layout(names=_torchvision_names, top=()),
}
