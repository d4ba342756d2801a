"""EfficientNet's table, from which its variants and EfficientNet-Lite are scaled."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScaledRow:
    """One line of the paper's table 1 (B0's, before width and depth)."""

    stage: int
    kernel: int
    ratio: int
    out: int
    repeat: int
    stride: int

    @property
    def expanded(self) -> bool:
        """Whether the blocks have an expansion convolution."""
        return self.ratio != 1


# fmt: off
EFFICIENTNET_ROWS = (  # Tan and Le 2019, table 1
    #         stage kernel ratio  out repeat stride
    ScaledRow(1,    3,     1,      16, 1,    1),
    ScaledRow(2,    3,     6,      24, 2,    2),
    ScaledRow(3,    5,     6,      40, 2,    2),
    ScaledRow(4,    3,     6,      80, 3,    2),
    ScaledRow(4,    5,     6,     112, 3,    1),
    ScaledRow(5,    5,     6,     192, 4,    2),
    ScaledRow(5,    3,     6,     320, 1,    1),
)
# fmt: on
