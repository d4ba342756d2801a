"""ESPNet's decoder, and the classifier that ESPNet-C has in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras import layers

from keras_lightnets._layout import Layout, pairs, pyramid_names
from keras_lightnets.heads import _endpoints
from keras_lightnets.layers import (
    BatchNormalization,
    activate,
    bias_conv,
    concat,
    spatial_pyramid,
)

# Maps of the strides 2, 4 and 8.
ENDPOINTS = (("c1",), ("c2",), ("c3",))
COARSE_ENDPOINTS = (("c3", "features"),)


@dataclass(frozen=True, kw_only=True)
class ESPNetConfig:
    """A head as data.

    Attributes:
        classes: Number of classes, and of channels of all that the decoder makes.
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step.

    Raises:
        ValueError: If there is no class.
    """

    classes: int
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(
                f"ESPNetConfig needs classes >= 1. Received: classes={self.classes}"
            )


def espnet_c(features: Mapping[str, Any], config: ESPNetConfig) -> dict[str, Any]:
    """Classify every cell of the coarse map: ESPNet-C, `head_coarse_conv`.

    Args:
        features: Feature maps by endpoint: "c3" (stride 8) or "features".
        config: The head.

    Returns:
        {"logits": (batch, height / 8, width / 8, classes)}, raw.

    Raises:
        ValueError: If the endpoint is missing.

    Example:
        >>> import keras
        >>> maps = {"c3": keras.Input((8, 12, 256))}
        >>> espnet_c(maps, ESPNetConfig(classes=20))["logits"].shape
        (None, 8, 12, 20)

    Reference:
        Mehta et al. 2018, figure 4c, https://arxiv.org/abs/1803.06815.
    """
    (name,) = _endpoints.choose("espnet_c", COARSE_ENDPOINTS, features)
    return {"logits": _coarse(features[name], config)}


def espnet(features: Mapping[str, Any], config: ESPNetConfig) -> dict[str, Any]:
    """Build the decoder: scores of three maps, joined from coarse to fine.

        c3 -- 1x1 -- BN -- up ------+
        c2 -- 1x1 ------------------+-- BN, PReLU -- pyramid -- up, BN, PReLU --+
        c1 ---------------------------------------------------------------------+
                                               logits -- up -- 3x3, BN, PReLU --+

    Layers: `head_coarse_*`, `head_middle_*`, `head_fuse_*`, `head_fine_*`,
    `head_logits_conv`. "up" is a transposed 2x2 convolution.

    Args:
        features: Feature maps by endpoint: "c1", "c2", "c3" (strides 2, 4, 8).
        config: The head.

    Returns:
        {"logits": (batch, height, width, classes)}, raw, of even sides.

    Raises:
        ValueError: If an endpoint is missing.

    Example:
        >>> import keras
        >>> maps = {f"c{i}": keras.Input((64 >> i, 96 >> i, 8)) for i in (1, 2, 3)}
        >>> espnet(maps, ESPNetConfig(classes=20))["logits"].shape
        (None, 64, 96, 20)

    Reference:
        Mehta et al. 2018, figure 4d, https://arxiv.org/abs/1803.06815.
    """
    names = _endpoints.choose("espnet", ENDPOINTS, features)
    fine, middle, coarse = (features[name] for name in names)
    x = _norm(_coarse(coarse, config), config, "head_coarse")
    x = _double(x, middle, config, "head_coarse")
    y = bias_conv(middle, config.classes, "head_middle", use_bias=False)
    x = _norm_act(concat([y, x], "head_middle"), config, "head_middle")
    x = spatial_pyramid(x, config.classes, "head_fuse")
    x = _norm_act(x, config, "head_fuse")
    x = _double(x, fine, config, "head_fuse")
    x = _norm_act(x, config, "head_fuse_up")
    x = concat([x, fine], "head_fine")
    x = bias_conv(x, config.classes, "head_fine", use_bias=False, kernel=3)
    x = _norm_act(x, config, "head_fine")
    return {"logits": _up(x, config, "head_logits")}


def _coarse(x: Any, config: ESPNetConfig) -> Any:
    return bias_conv(x, config.classes, "head_coarse", use_bias=False)


def _up(x: Any, config: ESPNetConfig, name: str) -> Any:
    return layers.Conv2DTranspose(
        config.classes, 2, strides=2, use_bias=False, name=f"{name}_conv"
    )(x)


def _double(x: Any, like: Any, config: ESPNetConfig, name: str) -> Any:
    """Double a map, and cut it where the finer one's side is odd."""
    x = _up(x, config, f"{name}_up")
    sides = zip(x.shape[1:3], like.shape[1:3], strict=True)
    cut = [0 if None in pair else pair[0] - pair[1] for pair in sides]
    if not any(cut):
        return x
    return layers.Cropping2D([(0, side) for side in cut], name=f"{name}_crop")(x)


def _norm(x: Any, config: ESPNetConfig, name: str) -> Any:
    return BatchNormalization(
        epsilon=config.bn_epsilon, momentum=config.bn_momentum, name=f"{name}_bn"
    )(x)


def _norm_act(x: Any, config: ESPNetConfig, name: str) -> Any:
    return activate(_norm(x, config, name), "prelu", name)


def _coarse_names(config: ESPNetConfig) -> dict[str, str]:
    return {"head_coarse_conv": "classifier.conv"}


def _names(config: ESPNetConfig) -> dict[str, str]:
    both = {"bn": "bn", "act": "act"}
    names = {
        "head_coarse_conv": "encoder.classifier.conv",
        "head_coarse_bn": "br",
        "head_coarse_up_conv": "up_l3.0",
        "head_middle_conv": "level3_C.conv",
    }
    names |= pairs("head_middle", "combine_l2_l3.0.", both)
    names |= pyramid_names("head_fuse", "combine_l2_l3.1.")
    names |= pairs("head_fuse", "combine_l2_l3.1.bn.", both)
    names |= {"head_fuse_up_conv": "up_l2.0"}
    names |= pairs("head_fuse_up", "up_l2.1.", both)
    names |= pairs("head_fine", "conv.", {"conv": "conv", **both})
    return names | {"head_logits_conv": "classifier"}


_IMAGE = ("head_middle_conv",)
LAYOUTS: Mapping[str, Layout] = {
    "authors": Layout(names=_names, top=(), image=_IMAGE),
    "authors_image": Layout(names=_names, top=(), image=(*_IMAGE, "head_fine_conv")),
}
COARSE_LAYOUTS: Mapping[str, Layout] = {
    "authors": Layout(names=_coarse_names, top=()),
}
