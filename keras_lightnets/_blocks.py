"""From the rows of a paper's table to the blocks of a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class TableRow(Protocol):
    """What the rows of all families have; the rest is the family's."""

    @property
    def stage(self) -> int:
        """Number of the stage, from 1."""

    @property
    def stride(self) -> int:
        """Stride of the row's first block."""


R = TypeVar("R", bound=TableRow)


@dataclass(frozen=True)
class StageRow:
    """One stage of a table that says no more: its first block is the strided one.

    Attributes:
        stage: Number of the stage, that of its map.
        out: Output channels, before the width.
        repeat: Blocks.
        stride: Stride of the first block.
    """

    stage: int
    out: int
    repeat: int
    stride: int = 2


@dataclass(frozen=True, kw_only=True)
class Block(Generic[R]):
    """One block: its row, place and channels.

    Attributes:
        row: The line of the table it belongs to.
        index: Index of that line, from 0.
        repeat: Blocks of the same line before it.
        number: Place in the stage, from 1.
        channels: Input channels.
        out: Output channels.
    """

    row: R
    index: int
    repeat: int
    number: int
    channels: int
    out: int

    @property
    def name(self) -> str:
        """Stem of its layers' names."""
        return f"stage{self.row.stage}_block{self.number}"

    @property
    def stride(self) -> int:
        """The row's stride for its first block, 1 for the others."""
        return self.row.stride if self.repeat == 0 else 1


def expand_rows(
    rows: Sequence[R],
    channels: int,
    outs: Sequence[int],
    repeats: Sequence[int] | None = None,
) -> list[Block[R]]:
    """Return the blocks of a table, each row's repetitions one after the other.

    Args:
        rows: The table.
        channels: Input channels of the first block.
        outs: Output channels of every row, as built.
        repeats: Blocks of every row, as built; one each when not given.

    Returns:
        The blocks in order.

    Raises:
        ValueError: If the sequences have different lengths.

    Example:
        >>> from keras_lightnets import get_spec
        >>> rows = get_spec("mobilenet_v2").rows[:2]
        >>> [b.name for b in expand_rows(rows, 32, outs=(16, 24), repeats=(1, 2))]
        ['stage1_block1', 'stage2_block1', 'stage2_block2']
    """
    blocks: list[Block[R]] = []
    counts = [1] * len(rows) if repeats is None else repeats
    for index, (row, out, count) in enumerate(zip(rows, outs, counts, strict=True)):
        for repeat in range(count):
            block = Block(
                row=row,
                index=index,
                repeat=repeat,
                number=1 + sum(b.row.stage == row.stage for b in blocks),
                channels=channels,
                out=out,
            )
            blocks.append(block)
            channels = out
    return blocks
