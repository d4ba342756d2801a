"""Learning rate and optimiser of a training run."""

import math
from typing import Any

import keras

from keras_lightnets.tasks.config import TaskConfig


def warmup_cosine(config: TaskConfig, steps_per_epoch: int, step: int) -> float:
    """Return the learning rate of a step: a linear rise, then a cosine's fall.

    Args:
        config: Gives peak, final share, epochs and warm-up epochs.
        steps_per_epoch: Steps of one epoch.
        step: From 0, over the whole run.

    Returns:
        The rate; the first step of a warm-up is not 0, so that it learns too.

    Reference:
        Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(total - warmup - 1, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))
    lowest = config.final_rate
    return config.learning_rate * (lowest + (1.0 - lowest) * cosine)


def average_decay(config: TaskConfig, total_steps: int) -> float:
    """Return the decay of the weights' average, shortened for short runs.

    An average over 1 / (1 - decay) steps must fit into the run several times, or
    it still remembers the start at the end.

    Args:
        config: Gives the wanted decay.
        total_steps: Steps of the whole run.

    Returns:
        The decay, at least 0.
    """
    return max(0.0, min(config.ema, 1.0 - 20.0 / max(total_steps, 1)))


def make_optimizer(config: TaskConfig, model: Any, steps_per_epoch: int) -> Any:
    """Return the optimiser, built for the model's trainable weights.

    Weight decay leaves out biases and the scale and offset of normalisations:
    all weights of rank one.

    Args:
        config: Gives optimiser, rates, decay, clipping and averaging.
        model: The model to train.
        steps_per_epoch: Steps of one epoch.

    Returns:
        A `keras.optimizers.Optimizer`.
    """
    total = config.epochs * steps_per_epoch
    decay = average_decay(config, total) if config.ema else 0.0
    # A plain variable, set before each step: a schedule object would put its
    # arithmetic into the graph once per weight and double the tracing time.
    rate = config.learning_rate
    clip = config.clip_norm or None
    average = {"use_ema": decay > 0, "ema_momentum": decay}
    optimizer: Any
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay or None,
            global_clipnorm=clip,
            **average,
        )
    else:
        optimizer = keras.optimizers.AdamW(
            rate, weight_decay=config.weight_decay, global_clipnorm=clip, **average
        )
    plain = [v for v in model.trainable_variables if len(v.shape) < 2]
    if plain:
        optimizer.exclude_from_weight_decay(var_list=plain)
    if config.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
