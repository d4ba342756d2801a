"""Typed options of the tasks: frozen, JSON in and out, unknown keys refused."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field

from keras_lightnets._errors import unknown
from keras_lightnets.tasks.recipes import recipe


class ConfigError(ValueError):
    """An option is unknown or has an illegal value; the text says which."""


class Options(pydantic.BaseModel):
    """Base of all option sets.

    Example:
        >>> class Size(Options):
        ...     side: int = 224
        >>> Size.parse({"side": "96"}).side
        96
        >>> Size.parse({"sid": 96})
        Traceback (most recent call last):
        ...
        keras_lightnets.tasks.config.ConfigError: Unknown option 'sid'. Did you ...
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), validate_default=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Check a mapping of options.

        Args:
            values: Option name -> value; numbers may be strings.
            source: Where they come from, for the error text.

        Returns:
            The options.

        Raises:
            ConfigError: If a key is unknown or a value illegal.
        """
        where = f" in {source}" if source else ""
        for key in values:
            if key not in cls.model_fields:
                text = unknown(f"option{where}", key, cls.model_fields)
                raise ConfigError(str(text))
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, where)) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read options from a JSON file.

        Args:
            path: A file with one JSON object.

        Returns:
            The options.

        Raises:
            ConfigError: If the file is missing, broken or holds illegal options.
        """
        return cls.parse(read_json_object(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return all options as JSON values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Return all options as JSON text that `load` reads back."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with some options changed."""
        return type(self).parse({**self.to_dict(), **changes})


def split_commas(value: Any) -> Any:
    """Turn text such as "cat, dog" into a tuple; other values stay."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ConfigError: If it is missing, not JSON or not an object.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno} column "
            f"{error.colno}."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold one JSON object with options. Received: a "
            f"{type(values).__name__}."
        )
    return values


def explain(error: pydantic.ValidationError, where: str) -> str:
    """Return what is wrong with options, one line each, without pydantic's frame.

    Args:
        error: What pydantic found.
        where: Text behind an option's name, such as " in run.json".
    """
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        given = "" if item["type"] == "missing" else f" Received: {item['input']!r}."
        plain = item["type"] == "value_error" and not name
        lines.append(text if plain else f"Option {name!r}{where}: {text}.{given}")
    return "\n".join(lines)


class TaskConfig(Options):
    """Options that every training task has.

    A recipe fills what is not given; see `keras_lightnets.tasks.recipes`.
    """

    task: ClassVar[str]

    recipe: str = Field(
        "finetune", description="Named defaults: finetune, scratch, demo."
    )
    name: str = Field("train", min_length=1, description="Name of the run's folder.")
    runs: str = Field("runs", description="Folder that holds all runs.")
    seed: int = Field(0, ge=0, description="Seed of weights, order and augmentation.")
    deterministic: bool = Field(
        True, description="Use only TensorFlow kernels that repeat bit for bit."
    )

    backbone: str = Field("efficientnet_lite0", description="Registry name.")
    weights: str | None = Field(
        "imagenet", description="Tag, path of a weights file, or none."
    )
    backbone_options: dict[str, Any] = Field(
        default_factory=dict, description='Changes of the network: {"width": 0.5}.'
    )
    image_size: int = Field(320, ge=32, description="Side of the network's input.")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="Arithmetic of the training step."
    )

    data: str | None = Field(None, description="Folder of the training images.")
    val_data: str | None = Field(
        None, description="Folder of the validation images; that of training if absent."
    )
    labels: tuple[str, ...] = Field(
        (), description="Class names, comma-separated; those of the data if absent."
    )
    strict: bool = Field(
        False, description="Refuse data with any problem instead of repairing it."
    )
    augment: str = Field("default", description="Named augmentation.")
    balance: Literal["off", "images", "loss"] = Field(
        "off", description="Rare classes: show their images more often, or weigh them."
    )
    workers: int = Field(
        0, ge=0, description="Threads that read and augment images; 0: one per core."
    )
    cache_mb: int = Field(
        512, ge=0, description="Memory for decoded images between epochs, in MiB."
    )

    epochs: int = Field(40, ge=1, description="Passes over the training images.")
    batch_size: int = Field(16, ge=1, description="Images per step.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimiser.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    final_rate: float = Field(
        0.01, ge=0, le=1, description="Share of the peak left at the end."
    )
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs of linear warm-up.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Decay of kernels; never of biases and norms."
    )
    clip_norm: float = Field(
        10.0, ge=0, description="Largest norm of all gradients together; 0: off."
    )
    ema: float = Field(
        0.999, ge=0, lt=1, description="Decay of the averaged weights; 0: off."
    )
    freeze: str | None = Field(
        None, description="Keep the backbone up to this level as it is, such as c2."
    )
    freeze_bn: bool = Field(
        False, description="Keep the backbone's batch statistics as they are."
    )
    bn_momentum: float | None = Field(
        None, gt=0, lt=1, description="Momentum of all batch normalisations."
    )
    eval_every: int = Field(1, ge=1, description="Epochs between two evaluations.")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key in values:
            if key not in cls.model_fields:
                raise unknown("option", key, cls.model_fields)
        name = values.get("recipe", cls.model_fields["recipe"].default)
        return {**recipe(cls.task, str(name)), **values}

    @pydantic.field_validator("labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_commas(value)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.image_size, self.image_size

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name
