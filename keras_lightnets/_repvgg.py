"""What stacks of RepVGG blocks have in common as data."""

from dataclasses import dataclass

from keras_lightnets._blocks import Block, StageRow, expand_rows
from keras_lightnets._residual import TORCH_RULE
from keras_lightnets._spec import ModelSpec, Preprocessing


@dataclass(frozen=True, kw_only=True)
class RepStackSpec(ModelSpec):
    """A stack of RepVGG blocks as it is trained.

    Attributes:
        stem: Channels of the first block.
    """

    rows: tuple[StageRow, ...]
    fusable: bool = True
    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    dropout: float = 0.0
    stem: int = 64

    @property
    def preprocessing(self) -> Preprocessing:
        """Input normalisation, the authors' for every variant."""
        return self.weights[0].preprocessing if self.weights else TORCH_RULE

    @property
    def blocks(self) -> list[Block[StageRow]]:
        """The blocks behind the stem, with their channels as built."""
        return expand_rows(
            self.rows,
            channels=self.channels(self.stem),
            outs=[self.channels(row.out) for row in self.rows],
            repeats=[row.repeat for row in self.rows],
        )


def has_identity(block: Block[StageRow]) -> bool:
    """Return whether a block's input is its third branch.

    Args:
        block: One of a spec's blocks.

    Returns:
        True where neither size nor channels change.
    """
    return block.stride == 1 and block.channels == block.out
