"""Named sets of training defaults; explicit options always win over them."""

from collections.abc import Mapping
from typing import Any

from keras_lightnets._errors import unknown

# task -> recipe -> option -> value. A new recipe is one row.
RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "detect": {
        # From published weights on hundreds to some ten thousand images.
        "finetune": {
            "epochs": 40,
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 2.0,
            "bn_momentum": 0.97,
        },
        # From random weights: longer, larger steps, stronger regularisation.
        "scratch": {
            "weights": None,
            "epochs": 300,
            "batch_size": 32,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "weight_decay": 4e-5,
            "warmup_epochs": 3.0,
            "bn_momentum": 0.97,
        },
        # Minutes on a laptop: early stages stay as published.
        "demo": {
            "image_size": 256,
            "epochs": 10,
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": 2e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 1.0,
            "bn_momentum": 0.9,
            "freeze": "c2",
        },
    },
    "segment": {
        # From published weights on hundreds to some thousand images.
        "finetune": {
            "epochs": 60,
            "batch_size": 8,
            "optimizer": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 2.0,
            "bn_momentum": 0.97,
        },
        "scratch": {
            "weights": None,
            "epochs": 300,
            "batch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "weight_decay": 4e-5,
            "warmup_epochs": 3.0,
            "bn_momentum": 0.97,
        },
        # Minutes on a laptop: early stages stay as published.
        "demo": {
            "epochs": 20,
            "batch_size": 8,
            "optimizer": "adamw",
            "learning_rate": 2e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 1.0,
            "bn_momentum": 0.9,
            "freeze": "c2",
        },
    },
    "classify": {
        "finetune": {
            "epochs": 30,
            "batch_size": 32,
            "optimizer": "adamw",
            "learning_rate": 5e-4,
            "weight_decay": 1e-4,
            "warmup_epochs": 1.0,
            "bn_momentum": 0.97,
        },
        "scratch": {
            "weights": None,
            "epochs": 300,
            "batch_size": 64,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 4e-5,
            "warmup_epochs": 5.0,
            "augment": "inception",
            "bn_momentum": 0.97,
        },
        # Minutes on a laptop: only the last stage and the classifier learn.
        "demo": {
            "epochs": 8,
            "batch_size": 16,
            "optimizer": "adamw",
            "learning_rate": 2e-3,
            "weight_decay": 1e-4,
            "warmup_epochs": 1.0,
            "bn_momentum": 0.9,
            "freeze": "c4",
        },
    },
}


def recipe(task: str, name: str) -> dict[str, Any]:
    """Return a recipe's options.

    Args:
        task: "detect", "segment" or "classify"; another one has a single recipe,
            "finetune", that changes nothing.
        name: Name of the recipe.

    Returns:
        Option name -> value.

    Raises:
        ValueError: If there is no such recipe; the legal ones are listed.
    """
    known = RECIPES.get(task, {"finetune": {}})
    if name not in known:
        raise unknown(f"recipe of {task}", name, known)
    return dict(known[name])
