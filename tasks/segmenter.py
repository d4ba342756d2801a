"""The segmenter as data and graph: options, data, model, losses, description."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from keras_lightnets.heads._labels import VOID
from keras_lightnets.tasks import building
from keras_lightnets.tasks.config import ConfigError, TaskConfig, split_commas
from keras_lightnets.tasks.framework import Data, joined_loss, open_pair, same_classes

Layout = Literal["folders", "voc", "cityscapes", "panoptic"]


class SegmentConfig(TaskConfig):
    """Options of a segmentation training.

    Example:
        >>> config = SegmentConfig(data="camvid", image_size=480, image_height=360)
        >>> config.size
        (360, 480)
        >>> SegmentConfig.parse(config.to_dict()) == config
        True
    """

    task: ClassVar[str] = "segment"

    name: str = Field("segment", min_length=1, description="Name of the run's folder.")
    image_height: int | None = Field(
        None, ge=32, description="Height of the input, where it is not square."
    )
    augment: str = Field(
        "default", description="Named augmentation: none, light, default, zoom."
    )
    layout: Layout = Field("folders", description="How the data set's folders lie.")
    split: str = Field("train", description="Part of the data to train on.")
    val_split: str = Field("val", description="Part of the data to validate on.")
    void: str | None = Field(
        None, description="Mask numbers without a class, comma-separated."
    )
    head: str = Field("lraspp", description="Segmentation head.")
    head_options: dict[str, Any] = Field(
        default_factory=dict, description='Options of the head: {"filters": 64}.'
    )
    output_stride: int | None = Field(
        None, description="Stride of the backbone's last map; the head's if absent."
    )
    resize: Literal["stretch", "letterbox"] = Field(
        "stretch", description="How images are fitted into the input."
    )
    hard_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="OHEM: share of pixels, the hardest, that count at least; 1: all.",
    )
    dice: float = Field(0.0, ge=0, description="Factor of the Dice loss.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all classes."
    )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.image_height or self.image_size, self.image_size


def void_numbers(text: str | None) -> tuple[int, ...] | None:
    """Read the mask numbers that stand for no class.

    Args:
        text: Whole numbers, comma-separated, or None for the layout's own.

    Returns:
        The numbers.

    Raises:
        ConfigError: If the text holds something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in split_commas(text))
    except ValueError as error:
        raise ConfigError(
            f"void must be whole numbers such as '11,255'. Received: {text!r}"
        ) from error


def open_split(
    root: str, layout: str, split: str, void: str | None, strict: bool
) -> tuple[Any, Any]:
    """Open and check one part of a data set.

    Args:
        root: The data set's folder.
        layout: A key of `masks.LAYOUTS`.
        split: Name of the part.
        void: See `void_numbers`.
        strict: Whether every problem is fatal.

    Returns:
        The data set without its bad images, and the report.
    """
    from keras_lightnets.tasks.data import masks, records

    listed = masks.list_masks(root, split, layout, void_numbers(void))
    return records.open_checked(listed, strict=strict)


def open_data(config: SegmentConfig) -> Data:
    """Open and check both data sets.

    Args:
        config: Gives folder, layout and splits.

    Returns:
        The data sets without their bad images, and one report.

    Raises:
        ConfigError: If the folder is not given.
        DatasetError: If a problem is fatal; the text lists all problems.
    """
    root = _root(config)
    opened = [
        open_split(folder, config.layout, split, config.void, config.strict)
        for folder, split in (
            (root, config.split),
            (config.val_data or root, config.val_split),
        )
    ]
    return open_pair(*opened)


def _root(config: SegmentConfig) -> str:
    if config.data is None:
        raise ConfigError(
            "Training needs images with masks: give --data FOLDER, which holds train/, "
            "train_labels/, val/, val_labels/ and classes.txt, or another --layout."
        )
    return config.data


def with_labels(config: SegmentConfig) -> SegmentConfig:
    """Fill the class names from the training data if they are not given.

    Args:
        config: Gives the data.

    Returns:
        The config with labels.
    """
    if config.labels:
        return config
    from keras_lightnets.tasks.data import masks

    listed = masks.list_masks(_root(config), config.split, config.layout)
    return config.replace(labels=listed.names)


def head_config(config: SegmentConfig) -> Any:
    """Return the config of the head.

    Args:
        config: With labels.

    Returns:
        The head's own config object.

    Raises:
        ConfigError: If a head option is unknown or has an illegal value.
    """
    head = building.find_head("segment", config.head)
    values = {"classes": len(config.labels)}
    return building.head_config(head, values, config.head_options)


def build_model(config: SegmentConfig) -> Any:
    """Build backbone and head as one flat graph.

    Args:
        config: Network, head, input size, precision and what is frozen.

    Returns:
        A `keras.Model` from RGB images of 0..255, (batch, height, width, 3), to raw
        {"logits": (batch, rows, columns, classes)}.

    Raises:
        ValueError: If an option is not legal; the legal values are listed.
    """
    config = with_labels(config)
    chosen = head_config(config)
    stride = _output_stride(config)
    return building.build_dense(config, config.head, chosen, "segmenter", stride)


def _output_stride(config: SegmentConfig) -> int:
    """Return the stride asked for, or the network's closest to the head's."""
    from keras_lightnets import get_spec

    if config.output_stride is not None:
        return config.output_stride
    wanted = building.find_head("segment", config.head).output_stride
    legal = get_spec(config.backbone).output_strides
    return min(legal, key=lambda stride: abs(stride - wanted))


def losses(config: SegmentConfig) -> dict[str, Any]:
    """Return the loss of the output, with class weights if the config says so."""
    from keras_lightnets.heads.seg_losses import PixelLoss, median_frequency_weights

    weights = None
    if config.balance == "images":
        raise ConfigError(
            "Masks show most classes at once: weigh classes with --balance loss."
        )
    if config.balance == "loss":
        from keras_lightnets.tasks.data import masks

        void = void_numbers(config.void)
        data = masks.list_masks(_root(config), config.split, config.layout, void)
        order = same_classes(config.labels, data.names, data.source)
        weights = median_frequency_weights(masks.count_pixels(data)[order].tolist())
        weights = weights.tolist()
    return {
        "logits": PixelLoss(
            class_weights=weights,
            hard_share=config.hard_share,
            dice=config.dice,
            label_smoothing=config.label_smoothing,
        )
    }


def make_loss(config: SegmentConfig) -> Any:
    """Return the task's whole loss, for training loops other than Keras `fit`."""
    return joined_loss(losses(with_labels(config)))


def describe(config: SegmentConfig) -> dict[str, Any]:
    """Return what a saved model carries: the runtime's sidecar and the options.

    Args:
        config: With labels.

    Returns:
        JSON values; `runtime_labels.LabelMeta.from_dict` reads them.
    """
    from keras_lightnets.tools.runtime_labels import LabelMeta

    meta = LabelMeta("segment", config.labels, config.size, resize=config.resize)
    return {**meta.to_dict(), "config": config.to_dict()}


def label_table(labels: Sequence[str], dataset: Any) -> np.ndarray:
    """Return the model's class of each number of a data set's masks.

    Args:
        labels: The model's class names; `VOID`, if among them, no mask holds.
        dataset: Masks of the same classes, in any order.

    Returns:
        uint8 (256,); `IGNORE` stays.

    Raises:
        ValueError: If the classes differ; those that only one side has are listed.
    """
    known = [name for name in labels if name != VOID or name in dataset.names]
    same_classes(known, dataset.names, dataset.source)
    table = np.full(256, 255, np.uint8)
    for place, name in enumerate(dataset.names):
        table[place] = list(labels).index(name)
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskBatches:
    """Settings of `mask_loader` that depend on the split.

    Attributes:
        train: Whether images are shuffled and augmented.
        table: See `label_table`.
    """

    train: bool
    table: np.ndarray


def mask_loader(config: SegmentConfig, dataset: Any, split: MaskBatches) -> Any:
    """Return batches of images and masks.

    Args:
        config: Size, augmentation, seed.
        dataset: A `MaskDataset`.
        split: What depends on the split.

    Returns:
        A `BatchLoader` of (uint8 (batch, height, width, 3), {"logits": uint8 (batch,
        height, width)}).
    """
    from keras_lightnets.tasks.data import batches, label_augment

    preset = config.augment if split.train else "none"
    change = label_augment.MaskAugment(preset, config.size, config.resize)

    class MaskLoader(batches.BatchLoader):
        """Batches of images and masks."""

        def read(self, index: int) -> batches.Sample:
            return dataset.sample(index)

        def example(
            self, sample: batches.Sample, seed: int
        ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
            image, mask = change(sample[0], sample[1], seed)
            return image, {"logits": split.table[mask]}

    options = batches.LoaderOptions(
        drop_remainder=split.train,
        workers=config.workers,
        cache_bytes=config.cache_mb * 2**20,
    )
    return MaskLoader(
        dataset,
        config.size,
        config.batch_size,
        seed=config.seed,
        shuffle=split.train,
        options=options,
    )
