"""What GhostNet and RepGhostNet have in common as data."""

from dataclasses import dataclass
from typing import Any

from keras_lightnets._blocks import Block, expand_rows
from keras_lightnets._spec import EXPANDED_LEVELS, IMAGENET, ModelSpec, Preprocessing


@dataclass(frozen=True)
class Row:
    """One bottleneck of a paper's table (sizes before the width multiplier)."""

    stage: int
    kernel: int
    expand: int
    out: int
    se: bool
    stride: int


@dataclass(frozen=True, kw_only=True)
class GhostSpec(ModelSpec):
    """A network of ghost bottlenecks.

    Attributes:
        stem: Channels of the stem.
        top: Channels of the last convolution before pooling.
        hidden: Channels of the layer before the classifier, not multiplied.
    """

    rows: tuple[Row, ...]
    divisor: int = 4
    levels: tuple[Any, ...] = EXPANDED_LEVELS
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    stem: int = 16
    top: int = 960
    hidden: int = 1280

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors' for every width."""
        return self.weights[0].preprocessing if self.weights else IMAGENET

    @property
    def blocks(self) -> list[Block[Row]]:
        """The bottlenecks, with their channels as built."""
        outs = [self.channels(row.out) for row in self.rows]
        return expand_rows(self.rows, channels=self.channels(self.stem), outs=outs)
