"""Mobile DeepLabv3: atrous spatial pyramid pooling on a mobile backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._layout import Layout
from keras_lightnets.heads import _conv, _endpoints

# The map in front of the classifier's pooling; the backbone's output_stride, 16 or
# 8, decides its resolution.
ENDPOINTS = (("features", "c5"),)


@dataclass(frozen=True, kw_only=True)
class DeepLabConfig:
    """A head as data.

    Attributes:
        classes: Number of classes.
        rates: Dilations of the 3x3 branches; none: only the 1x1 convolution and the
            image's mean remain, as in the MobileNetV2 paper ("without ASPP").
        filters: Channels of every branch and of what follows.
        refine: Whether a 3x3 convolution follows the pyramid, as in torchvision.
        dropout: Rate behind the pyramid.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.

    Raises:
        ValueError: If a value is not legal.
    """

    classes: int
    rates: tuple[int, ...] = (12, 24, 36)
    filters: int = 256
    refine: bool = True
    dropout: float = 0.5
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.classes < 1 or self.filters < 1 or any(r < 1 for r in self.rates):
            raise ValueError(
                "DeepLabConfig needs classes >= 1, filters >= 1 and rates >= 1. "
                f"Received: classes={self.classes}, filters={self.filters}, rates="
                f"{self.rates}"
            )

    @property
    def numerics(self) -> _conv.Numerics:
        """What the head's convolutions share."""
        return _conv.Numerics(
            bn_epsilon=self.bn_epsilon, bn_momentum=self.bn_momentum, act="relu"
        )


def deeplab(features: Mapping[str, Any], config: DeepLabConfig) -> dict[str, Any]:
    """Build the head on a backbone's last feature map.

    Layers: those of `aspp`, `head_refine_*`, `head_logits_conv`.

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
        >>> config = DeepLabConfig(classes=21, rates=(6, 12, 18))
        >>> deeplab({"c5": keras.Input((8, 8, 320))}, config)["logits"].shape
        (None, 8, 8, 21)

    Reference:
        Chen et al. 2017, https://arxiv.org/abs/1706.05587; Sandler et al. 2018,
        section 6.3, https://arxiv.org/abs/1801.04381.
    """
    (name,) = _endpoints.choose("deeplabv3", ENDPOINTS, features)
    numerics = config.numerics
    x = aspp(features[name], config.filters, config.rates, numerics)
    if config.dropout:
        x = layers.Dropout(config.dropout, name="head_drop")(x)
    if config.refine:
        x = _conv.conv_bn_act(x, config.filters, numerics, "head_refine", kernel=3)
    return {"logits": _conv.predict(x, config.classes, 0.0, numerics, "head_logits")}


def aspp(x: Any, filters: int, rates: Sequence[int], numerics: _conv.Numerics) -> Any:
    """Look at a map on several scales and join what is seen.

    Layers: `head_point_*`, `head_rate{dilation}_*`, `head_image_*`, `head_concat`,
    `head_project_*`.

    Args:
        x: Tensor of shape (batch, height, width, channels); sides must be known.
        filters: Channels of every branch and of the result.
        rates: Dilations of the 3x3 branches.
        numerics: Shared settings.

    Returns:
        Tensor of shape (batch, height, width, filters).

    Raises:
        ValueError: If height or width is not known.
    """
    if None in x.shape[1:3]:
        raise ValueError(
            "The image's mean is spread over a map of known size: build the backbone "
            f"with a fixed input_shape. Received a map of shape {tuple(x.shape)}"
        )
    branches = [_conv.conv_bn_act(x, filters, numerics, "head_point")]
    for rate in rates:
        name = f"head_rate{rate}"
        branches.append(
            _conv.conv_bn_act(x, filters, numerics, name, kernel=3, dilation=rate)
        )
    pool = layers.GlobalAveragePooling2D(keepdims=True, name="head_image_pool")
    mean = _conv.conv_bn_act(pool(x), filters, numerics, "head_image")
    branches.append(_conv.resize_to(mean, x, 1, "head_image"))
    joined = layers.Concatenate(name="head_concat")(branches)
    return _conv.conv_bn_act(joined, filters, numerics, "head_project")


def _torchvision_names(config: DeepLabConfig) -> dict[str, str]:
    names = {}
    stems = ["point", *(f"rate{rate}" for rate in config.rates), "image"]
    for i, stem in enumerate(stems):
        first = int(stem == "image")  # a pooling stands in front
        names[f"head_{stem}_conv"] = f"classifier.0.convs.{i}.{first}"
        names[f"head_{stem}_bn"] = f"classifier.0.convs.{i}.{first + 1}"
    names["head_project_conv"] = "classifier.0.project.0"
    names["head_project_bn"] = "classifier.0.project.1"
    names |= {"head_refine_conv": "classifier.1", "head_refine_bn": "classifier.2"}
    return names | {"head_logits_conv": "classifier.4"}


LAYOUTS: Mapping[str, Layout] = {
    # The auxiliary classifier serves training only.
    "torchvision": Layout(
        names=_torchvision_names, top=(), unused=("aux_classifier*",)
    ),
}
