"""The detector as data and graph: options, model, losses, description."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
from pydantic import Field

from keras_lightnets.tasks.config import ConfigError, TaskConfig


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
    labels: tuple[str, ...] = Field(
        (), description="Class names, comma-separated; those of the data if absent."
    )
    resize: Literal["stretch", "letterbox"] = Field(
        "stretch", description="How images are fitted into the square input."
    )
    max_detections: int = Field(100, ge=1, description="Detections per image at most.")
    nms_iou: float = Field(
        0.55, gt=0, le=1, description="Overlap above which the lesser box goes."
    )

    @pydantic.field_validator("labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value


@dataclasses.dataclass(frozen=True)
class Data:
    """The data sets of a run.

    Attributes:
        train: Training images.
        val: Validation images.
        report: Problems of both.
    """

    train: Any
    val: Any
    report: Any


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
    from keras_lightnets.tasks.data import checks, coco

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
    report = checks.merge([found for _, found in opened])
    report.raise_if_fatal()
    train_set, val_set = (data for data, _ in opened)
    return Data(train_set, val_set, report)


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
        ConfigError: If there is none; the closest name is suggested.
    """
    from keras_lightnets import heads
    from keras_lightnets._errors import unknown

    if config.head not in heads.HEADS:
        raise ConfigError(str(unknown("head", config.head, heads.HEADS)))
    return heads.HEADS[config.head]


def head_config(config: DetectConfig) -> Any:
    """Return the config of the head.

    Args:
        config: With labels.

    Returns:
        The head's own config object.

    Raises:
        ConfigError: If a head option is unknown or has an illegal value.
    """
    from keras_lightnets._errors import unknown

    kind = find_head(config).config
    legal = [field.name for field in dataclasses.fields(kind)]
    for key in config.head_options:
        if key not in legal:
            raise ConfigError(str(unknown("option of the head", key, legal)))
    values = {
        "classes": len(config.labels),
        "image_size": config.image_size,
        "iou_threshold": config.nms_iou,
        "max_detections": config.max_detections,
        **config.head_options,
    }
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"head_options: {error}") from error


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
    from keras_lightnets import create_model, get_spec, heads
    from keras_lightnets.tasks import loop

    config = with_labels(config)
    chosen = head_config(config)
    levels = [level.name for level in get_spec(config.backbone).levels]
    endpoints = heads.pick_endpoints(config.head, levels)
    frozen = config.freeze or ""
    if frozen in levels and frozen not in endpoints:
        endpoints = (frozen, *endpoints)
    with loop.precision(config.precision):
        backbone = create_model(
            config.backbone,
            include_top=False,
            weights=config.weights,
            input_shape=(config.image_size, config.image_size, 3),
            endpoints=endpoints,
            **config.backbone_options,
        )
        model = heads.attach(backbone, config.head, chosen, name="detector")
    loop.set_norm_momentum(model, config.bn_momentum)
    loop.freeze(backbone, config.freeze, config.freeze_bn)
    return model


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
    parts = losses(with_labels(config))

    def loss(y_true: Mapping[str, Any], y_pred: Mapping[str, Any]) -> Any:
        return sum(part(y_true[key], y_pred[key]) for key, part in parts.items())

    return loss


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
