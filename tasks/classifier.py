"""The classifier as data and graph: options, data, model, losses, description."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from keras_lightnets.tasks.config import ConfigError, TaskConfig
from keras_lightnets.tasks.framework import Data, open_pair, same_classes

Resize = Literal["crop", "stretch", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]
CLASSIFIER = "top_classifier"
# Keys of a layer's config that hold its number of outputs.
OUTPUT_KEYS = ("units", "filters")


class ClassifyConfig(TaskConfig):
    """Options of a classification training.

    Example:
        >>> config = ClassifyConfig(data="flowers/train", val_data="flowers/val")
        >>> ClassifyConfig.parse(config.to_dict()) == config
        True
    """

    task: ClassVar[str] = "classify"

    name: str = Field("classify", min_length=1, description="Name of the run's folder.")
    image_size: int = Field(224, ge=32, description="Side of the network's input.")
    augment: str = Field(
        "default",
        description="Named augmentation: none, light, default, rand (RandAugment), "
        "inception.",
    )
    annotations: str | None = Field(
        None, description="CSV of file and class; absent: one folder per class."
    )
    val_annotations: str | None = Field(None, description="The same for validation.")
    resize: Resize = Field("crop", description="How an evaluation fits images.")
    crop: float = Field(
        0.875, gt=0, le=1, description="Share of the resized image that a crop keeps."
    )
    interpolation: Interpolation = Field(
        "bicubic", description="Filter of an evaluation's resize."
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of the target spread over all classes."
    )
    mixup: float = Field(
        0.0, ge=0, description="Beta parameter of mixed images; 0: off."
    )
    cutmix: float = Field(
        0.0, ge=0, description="Beta parameter of images patched together; 0: off."
    )


def list_images(
    data: str, annotations: str | None, labels: tuple[str, ...] = ()
) -> Any:
    """List a data set: a table where one is given, else a folder per class.

    Args:
        data: Folder of the images.
        annotations: CSV file, or None.
        labels: Class names by number, for a table of numbers.

    Returns:
        A `ClassDataset`, unchecked.
    """
    from keras_lightnets.tasks.data import folder

    if annotations is None:
        return folder.list_folders(data)
    return folder.list_table(data, annotations, labels)


def open_data(config: ClassifyConfig) -> Data:
    """Open and check both data sets.

    Args:
        config: Gives folders and tables.

    Returns:
        The data sets without their bad images, and one report.

    Raises:
        ConfigError: If a path is not given.
        DatasetError: If a problem is fatal; the text lists all problems.
    """
    from keras_lightnets.tasks.data import records

    data, val_data = config.data, config.val_data
    if data is None or (val_data is None and config.val_annotations is None):
        raise ConfigError(
            "Training needs images of both sets: give --data FOLDER and --val-data "
            "FOLDER (one folder per class in each), or tables with --annotations "
            "FILE.csv and --val-annotations FILE.csv."
        )
    train_set = list_images(data, config.annotations, config.labels)
    names = config.labels or train_set.names
    val_set = list_images(val_data or data, config.val_annotations, names)
    opened = [
        records.open_checked(part, strict=config.strict)
        for part in (train_set, val_set)
    ]
    return open_pair(*opened)


def with_labels(config: ClassifyConfig) -> ClassifyConfig:
    """Fill the class names from the training data if they are not given."""
    if config.labels:
        return config
    if config.data is None:
        raise ConfigError("The class names are not known: give labels, or data.")
    return config.replace(labels=list_images(config.data, config.annotations).names)


def build_model(config: ClassifyConfig) -> Any:
    """Build a network with a new classifier behind published weights.

    Args:
        config: Network, input size, precision and what is frozen.

    Returns:
        A `keras.Model` from RGB images of 0..255, (batch, size, size, 3), to
        {"logits": (batch, classes)}.

    Raises:
        ValueError: If an option is not legal; the legal values are listed.
    """
    from keras_lightnets import get_spec
    from keras_lightnets.tasks import building, loop

    config = with_labels(config)
    levels = [level.name for level in get_spec(config.backbone).levels]
    frozen = config.freeze if config.freeze in levels else None
    with loop.precision(config.precision):
        network = building.create_network(
            config, endpoints=(frozen, "logits") if frozen else ("logits",)
        )
        model = with_classes(network, len(config.labels))
    loop.set_norm_momentum(model, config.bn_momentum)
    loop.freeze(model, config.freeze, config.freeze_bn)
    if frozen:
        model = type(model)(
            model.inputs, {"logits": model.output["logits"]}, name="classifier"
        )
    for layer in model.layers:
        if layer.name.startswith("top_"):
            layer.trainable = True
    return model


def with_classes(network: Any, classes: int) -> Any:
    """Return a copy of a network whose classifier is new; the rest keeps its weights.

    Args:
        network: Functional model with a layer "top_classifier".
        classes: Outputs of the new classifier.

    Returns:
        The model.

    Raises:
        ConfigError: If the network's classifier cannot be exchanged.
    """
    import keras_lightnets.layers.norm  # noqa: F401  (registers the layer)

    content = network.get_config()
    places = [la for la in content["layers"] if la["config"]["name"] == CLASSIFIER]
    keys = [key for la in places for key in OUTPUT_KEYS if key in la["config"]]
    if len(keys) != 1:
        raise ConfigError(
            f"The classifier of {network.name} is not one layer whose outputs are "
            "classes, so it cannot be exchanged. Choose another --backbone."
        )
    places[0]["config"][keys[0]] = classes
    content["name"] = "classifier"
    model = type(network).from_config(content)
    for layer in network.layers:
        if layer.name != CLASSIFIER and layer.weights:
            model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def losses(config: ClassifyConfig) -> dict[str, Any]:
    """Return the loss of the output, with class weights if the config says so."""
    import keras

    from keras_lightnets.heads.losses import class_balanced_weights

    weights = np.ones(len(config.labels), np.float32)
    if config.balance == "loss":
        data = list_images(str(config.data), config.annotations, config.labels)
        order = same_classes(config.labels, data.names, data.source)
        counts = np.bincount(
            [record.label for record in data.records], minlength=len(data.names)
        )
        weights = class_balanced_weights(counts[order].tolist())
    smoothing = config.label_smoothing

    def weighted(y_true: Any, y_pred: Any) -> Any:
        """Cross-entropy of smoothed targets (batch, classes), weighed by class."""
        logits = keras.ops.cast(y_pred, "float32")
        shares = keras.ops.cast(y_true, "float32")
        factor = keras.ops.sum(shares * weights, axis=-1)
        target = shares * (1.0 - smoothing) + smoothing / len(weights)
        each = keras.ops.categorical_crossentropy(target, logits, from_logits=True)
        return keras.ops.mean(each * factor)

    return {"logits": weighted}


def describe(config: ClassifyConfig) -> dict[str, Any]:
    """Return what a saved model carries: the runtime's sidecar and the options."""
    return {**make_meta(config).to_dict(), "config": config.to_dict()}


def make_meta(config: ClassifyConfig) -> Any:
    """Return labels, input size and how an evaluation fits images."""
    from keras_lightnets.tools.runtime_labels import LabelMeta

    return LabelMeta(
        "classify",
        config.labels,
        config.size,
        resize=config.resize,
        crop=config.crop,
        interpolation=config.interpolation,
    )


def class_loader(config: ClassifyConfig, dataset: Any, train: bool) -> Any:
    """Return batches of images and class shares.

    Args:
        config: Size, augmentation, mixing, seed; with labels.
        dataset: A `ClassDataset` of the same classes, in any order.
        train: Whether images are shuffled, augmented and mixed.

    Returns:
        A `BatchLoader` of (uint8 (batch, size, size, 3), {"logits": float32 (batch,
        classes), shares that sum to 1}).
    """
    from keras_lightnets.tasks.data import batches, label_augment, mix

    order = same_classes(config.labels, dataset.names, dataset.source)
    table = np.argsort(order)  # the model's class of each of the data set's
    preset = config.augment if train else "none"
    change = label_augment.ImageAugment(preset, make_meta(config))
    targets = np.eye(len(config.labels), dtype=np.float32)

    class ClassLoader(batches.BatchLoader):
        """Batches of images and class shares."""

        def read(self, index: int) -> batches.Sample:
            image, label = dataset.sample(index)
            return image, np.array(table[label])

        def example(
            self, sample: batches.Sample, seed: int
        ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
            image, label = sample
            return change(image, seed), {"logits": targets[int(label)]}

        def join(self, images: np.ndarray, targets: list[Any], seed: int) -> Any:
            images, joined = super().join(images, targets, seed)
            if not train:
                return images, joined
            shares = joined["logits"]
            images, shares = mix.mix(images, shares, config.mixup, config.cutmix, seed)
            return images, {"logits": shares}

    options = batches.LoaderOptions(
        drop_remainder=train,
        balance=train and config.balance == "images",
        workers=config.workers,
        cache_bytes=config.cache_mb * 2**20,
    )
    return ClassLoader(
        dataset,
        config.size,
        config.batch_size,
        seed=config.seed,
        shuffle=train,
        options=options,
    )
