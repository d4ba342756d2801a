"""The detector as data and graph: options, model, losses, description."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from keras_lightnets.tasks import building
from keras_lightnets.tasks.config import ConfigError, TaskConfig
from keras_lightnets.tasks.framework import Data, joined_loss, open_pair


class DetectConfig(TaskConfig):
    """Options of a detection training.

    Example:
        >>> config = DetectConfig(data="images", annotations="train.json", epochs=3)
        >>> DetectConfig.parse(config.to_dict()) == config
        True
    """

    task: ClassVar[str] = "detect"

    name: str = Field("detect", min_length=1, description="Name of the run's folder.")
    head: str = Field("ssdlite", description="Detection head.")
    head_options: dict[str, Any] = Field(
        default_factory=dict, description='Options of the head: {"width": 0.5}.'
    )
    annotations: str | None = Field(None, description="Training annotations (JSON).")
    val_annotations: str | None = Field(
        None, description="Validation annotations (JSON)."
    )
    resize: Literal["stretch", "letterbox"] = Field(
        "stretch", description="How images are fitted into the square input."
    )
    max_detections: int = Field(100, ge=1, description="Detections per image at most.")
    nms_iou: float = Field(
        0.55, gt=0, le=1, description="Overlap above which the lesser box goes."
    )
    fast: bool = Field(False, description="Count metrics with hotcoco (extra fast).")


def open_data(config: DetectConfig) -> Data:
    """Open and check both data sets.

    Args:
        config: Gives folders and annotation files.

    Returns:
        The data sets without their bad images, and one report.

    Raises:
        ConfigError: If a path is not given.
        DatasetError: If a problem is fatal; the text lists all problems.
        ValueError: If the two data sets have different classes.
    """
    from keras_lightnets.tasks.data import coco

    if config.data is None or config.annotations is None:
        raise ConfigError(
            "Training needs images and their boxes: give --data FOLDER and "
            "--annotations FILE.json (COCO format)."
        )
    if config.val_annotations is None:
        raise ConfigError(
            "Training evaluates after each epoch: give --val-annotations FILE.json "
            "(and --val-data FOLDER if the images lie elsewhere). To watch the fit to "
            "the training images, give the training annotations again."
        )
    opened = [
        coco.open_coco(folder, file, strict=config.strict)
        for folder, file in (
            (config.data, config.annotations),
            (config.val_data or config.data, config.val_annotations),
        )
    ]
    return open_pair(*opened)


def with_labels(config: DetectConfig) -> DetectConfig:
    """Fill the class names from the training annotations if they are not given.

    Args:
        config: Gives the annotation file.

    Returns:
        The config with labels.
    """
    if config.labels:
        return config
    from keras_lightnets.tasks.data import coco

    if config.data is None or config.annotations is None:
        raise ConfigError(
            "The class names are not known: give labels, or data and annotations."
        )
    names = coco.CocoDataset(config.data, config.annotations).names
    return config.replace(labels=names)


def find_head(config: DetectConfig) -> Any:
    """Return the head's entry in `heads.HEADS`.

    Raises:
        ConfigError: If there is no such detection head; the closest name is suggested.
    """
    return building.find_head("detect", config.head)


def head_config(config: DetectConfig) -> Any:
    """Return the config of the head.

    Args:
        config: With labels.

    Returns:
        The head's own config object.

    Raises:
        ConfigError: If a head option is unknown or has an illegal value.
    """
    values = {
        "classes": len(config.labels),
        "image_size": config.image_size,
        "iou_threshold": config.nms_iou,
        "max_detections": config.max_detections,
    }
    return building.head_config(find_head(config), values, config.head_options)


def build_model(config: DetectConfig) -> Any:
    """Build backbone and head as one flat graph.

    Args:
        config: Network, head, input size, precision and what is frozen.

    Returns:
        A `keras.Model` from RGB images of 0..255, (batch, size, size, 3), to raw
        {"boxes": (batch, N, 4), "scores": (batch, N, columns)}.

    Raises:
        ValueError: If an option is not legal; the legal values are listed.

    Example:
        >>> config = DetectConfig(  # doctest: +SKIP
        ...     backbone="mobilenet_v3_small", weights=None, labels=("cat", "dog"))
        >>> build_model(config).output["boxes"].shape  # doctest: +SKIP
        (None, 3234, 4)
    """
    config = with_labels(config)
    chosen = head_config(config)
    return building.build_dense(config, config.head, chosen, "detector")


def make_loss(
    config: DetectConfig,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], Any]:
    """Return the task's whole loss, for training loops other than Keras `fit`.

    Args:
        config: Gives head and class balance.

    Returns:
        loss(y_true, y_pred) on the dicts that `batches` and the model give; a
        scalar tensor.
    """
    return joined_loss(losses(with_labels(config)))


def losses(config: DetectConfig) -> dict[str, Any]:
    """Return the loss of each output, with class weights if the config says so."""
    from keras_lightnets.heads.losses import class_balanced_weights
    from keras_lightnets.tasks.data import coco

    weights = None
    if config.balance == "loss":
        data = coco.CocoDataset(str(config.data), str(config.annotations))
        labels = np.concatenate([record.labels for record in data.records])
        counts = np.bincount(labels, minlength=len(data.names))
        order = [data.names.index(name) for name in config.labels]
        weights = class_balanced_weights(counts[order].tolist())
    return find_head(config).losses(head_config(config), weights)


def encoder(
    anchors: np.ndarray, classes: Sequence[int], box_weights: tuple[float, ...]
) -> Callable[..., dict[str, np.ndarray]]:
    """Return the function from an image's boxes to training targets.

    Args:
        anchors: (N, 4) cx, cy, w, h, 0..1.
        classes: The model's class of each class of the data set.
        box_weights: Factors of the encodings.

    Returns:
        encode(boxes (M, 4) 0..1, labels (M,), crowd (M,)) -> {"boxes": (N, 5)
        encodings and 1 for positive anchors, "scores": (N,) int32 labels}.
    """
    from keras_lightnets.heads.matching import match

    lookup = np.asarray(classes, np.int32)

    def encode(
        boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray
    ) -> dict[str, np.ndarray]:
        encodings, assigned = match(
            boxes, lookup[labels], anchors, crowd, weights=box_weights
        )
        positive = (assigned > 0).astype(np.float32)[:, None]
        return {"boxes": np.concatenate([encodings, positive], 1), "scores": assigned}

    return encode


def describe(config: DetectConfig) -> dict[str, Any]:
    """Return what a saved model carries: the runtime's sidecar and the options.

    Args:
        config: With labels.

    Returns:
        JSON values; `runtime.Meta.from_dict` reads them.
    """
    from keras_lightnets.tools import runtime

    head = head_config(config)
    meta = runtime.Meta(
        labels=config.labels,
        size=(config.image_size, config.image_size),
        scores=head.score_activation,
        anchors=find_head(config).anchors(head),
        resize=config.resize,
        box_weights=tuple(head.box_weights),
    )
    return {**meta.to_dict(), "config": config.to_dict()}
