"""Published segmentation networks: a backbone, a head and weights that hold both."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import keras

from keras_lightnets import _publishers
from keras_lightnets._errors import unknown
from keras_lightnets._rules import ESPNET_CAMVID, ESPNET_CITYSCAPES
from keras_lightnets._spec import IMAGENET, Preprocessing, Weights
from keras_lightnets.heads import _joined
from keras_lightnets.heads._labels import CAMVID, CITYSCAPES, VOC_LABELS, VOID
from keras_lightnets.heads.deeplab import DeepLabConfig
from keras_lightnets.heads.eseg import VARIANTS, ESegConfig
from keras_lightnets.heads.espnet import ESPNetConfig
from keras_lightnets.heads.espnet_v2 import ESPNetV2Config
from keras_lightnets.heads.lraspp import LRASPPConfig


@dataclass(frozen=True, kw_only=True)
class Segmenter(_joined.Joined):
    """One row of SEGMENTERS.

    Attributes:
        labels: Class names by tag of the weights.
        size: (height, width) of the published evaluation's input.
        sizes: The same by tag, of weights in which it differs.
        miou: Published mean IoU in percent of the first weights.
    """

    labels: Mapping[str, tuple[str, ...]]
    size: tuple[int, int]
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    miou: float | None = None


def _in_segmenter(prefix: str) -> str:
    """Rename a layer of torchvision's classifier as its segmenters do.

    Example:
        >>> _in_segmenter("features.14.block.0.0")
        'backbone.14.block.0.0'
    """
    return "backbone." + prefix.removeprefix("features.")


def _torchvision(file: str) -> tuple[Weights, ...]:
    rule = dataclasses.replace(IMAGENET, size=520, crop=1.0, interpolation="bilinear")
    changes = (("padding", "symmetric"),)
    entry = _publishers.torchvision("v1", file, rule, 0.0, changes)
    return (dataclasses.replace(entry, tag="coco_voc", top1=None),)


_CITY = (*CITYSCAPES, VOID)


def _sachin(
    repository: str, tag: str, path: str, sha256: str, rule: Preprocessing
) -> Weights:
    """Describe a file of ESPNet's authors."""
    return Weights(
        tag=tag,
        url=f"https://github.com/sacmehta/{repository}/raw/master/{path}.pth",
        hash=f"sha256:{sha256}",
        format="pth",
        layout="authors",
        licence="MIT",
        preprocessing=rule,
        source=f"sacmehta/{repository}, the authors",
    )


def _in_espnet(prefix: str) -> str:
    """Rename a layer of ESPNet's encoder as the whole network does."""
    return "encoder." + prefix


def _espnet(backbone: str, q: int, decoder: str, camvid: str = "") -> Segmenter:
    """Describe an ESPNet by its encoder and the hashes of its files."""
    path = f"pretrained/decoder/espnet_p_2_q_{q}"
    city = _sachin("ESPNet", "cityscapes", path, decoder, ESPNET_CITYSCAPES)
    weights: tuple[Weights, ...] = (city,)
    labels: dict[str, tuple[str, ...]] = {"cityscapes": _CITY}
    if camvid:
        entry = _sachin("ESPNet", "camvid", f"{path}_camvid", camvid, ESPNET_CAMVID)
        changes = (("image_in_c1", True),)
        weights += (
            dataclasses.replace(entry, layout="authors_image", changes=changes),
        )
        labels["camvid"] = (*CAMVID, VOID)
    return Segmenter(
        backbone=backbone,
        head="espnet",
        config=ESPNetConfig(classes=20),
        weights=weights,
        rename=_in_espnet,
        labels=labels,
        size=(512, 1024),
        sizes={"camvid": (360, 480)},
        miou=60.3 if q == 8 else None,
    )


def _espnet_c(backbone: str, q: int, sha256: str) -> Segmenter:
    """Describe an ESPNet-C by its encoder and the hash of its file."""
    path = f"pretrained/encoder/espnet_p_2_q_{q}"
    return Segmenter(
        backbone=backbone,
        head="espnet_c",
        config=ESPNetConfig(classes=20),
        weights=(_sachin("ESPNet", "cityscapes", path, sha256, ESPNET_CITYSCAPES),),
        rename=str,
        labels={"cityscapes": _CITY},
        size=(512, 1024),
    )


def _in_espnet_v2(prefix: str) -> str:
    """Rename a layer of ESPNetv2 as its segmenters do, which lack stage 5."""
    return "" if prefix.startswith("level5") else "base_net." + prefix


def _espnet_v2(backbone: str, scale: str, city: str, voc: str) -> Segmenter:
    """Describe an ESPNetv2 by its width and the hashes of its files."""
    folder = f"model/segmentation/model_zoo/espnetv2/espnetv2_s_{scale}"
    rule = dataclasses.replace(IMAGENET, crop=1.0, interpolation="bilinear")
    return Segmenter(
        backbone=backbone,
        changes=(("image_stages", (2, 3, 4)),),
        head="espnet_v2",
        config=ESPNetV2Config(classes=20),
        weights=(
            _sachin("EdgeNets", "cityscapes", f"{folder}_city_1024x512", city, rule),
            _sachin("EdgeNets", "voc", f"{folder}_pascal_384x384", voc, rule),
        ),
        rename=_in_espnet_v2,
        labels={"cityscapes": _CITY, "voc": VOC_LABELS},
        size=(512, 1024),
        sizes={"voc": (384, 384)},
        miou=66.2 if scale == "2.0" else None,
    )


# torchvision dilates stage 5 with its first block; its fine map is the first block
# of stage 3, not the last.
_DILATED = (("dilate_first", True),)

SEGMENTERS: Mapping[str, Segmenter] = {
    "deeplabv3_mobilenet_v3_large": Segmenter(
        backbone="mobilenet_v3_large",
        changes=_DILATED,
        head="deeplabv3",
        config=DeepLabConfig(classes=21),
        weights=_torchvision("deeplabv3_mobilenet_v3_large-fc3c493d"),
        rename=_in_segmenter,
        output_stride=16,
        labels={"coco_voc": VOC_LABELS},
        size=(520, 520),
        miou=60.3,
    ),
    **{
        f"eseg_{name}": Segmenter(
            backbone=variant.backbone,
            head=f"eseg_{name}",
            config=ESegConfig(classes=19, **variant.options()),
            weights=(),
            rename=str,
            labels={"cityscapes": CITYSCAPES},
            size=(1024, 2048),
        )
        for name, variant in VARIANTS.items()
    },
    "espnet": _espnet(
        "espnet_encoder",
        8,
        "343b0e77e8545d36113c4f3efbf1ee349256f25c97c9f9d5ddefe45f2f49763e",
        "7d354a257170322086dcd4c1e89a482454cf2c9d30b085e70883878dd59301af",
    ),
    "espnet_c": _espnet_c(
        "espnet_encoder",
        8,
        "836f28a2a31bd4fc8997001ab6b620d1f9b7b274a03b32d9f3a95c17a011b438",
    ),
    "espnet_c_q3": _espnet_c(
        "espnet_encoder_q3",
        3,
        "5101e9bc90dd2a57d8460e70cdfaa743f76317bf806d2d1c4adb635c8d392e77",
    ),
    "espnet_c_q5": _espnet_c(
        "espnet_encoder_q5",
        5,
        "ec028eb60b08a56583eb9d310f5f4f7c4bc70972009030c25f1414dc48c916d6",
    ),
    "espnet_q3": _espnet(
        "espnet_encoder_q3",
        3,
        "8f3eb198fb15e5da7fa8d258d5f0fc4a4213e1124f415f6fc54d2772d585a7fc",
    ),
    "espnet_q5": _espnet(
        "espnet_encoder_q5",
        5,
        "0378be45080ca5edfc416e9ba06b04e74ec5e2ec4baf56597f25a894a8593942",
    ),
    "espnet_v2_seg": _espnet_v2(
        "espnet_v2",
        "1.0",
        "0918c833fed889e32901ce739b1784fdd2b79f95a9aea199a469ca3394dd7a14",
        "7ce2df106b62661a4e8e30098398d6b96a2a946b9546d2287500379f984301a8",
    ),
    "espnet_v2_seg_050": _espnet_v2(
        "espnet_v2_050",
        "0.5",
        "9412a86a30f137540ef945d08da3cb7191448956c56c41a64210dab443a9f65f",
        "3352b32b209e1e6492d1481734f5333876b28d8866f5c1702d01ec70255eb20c",
    ),
    "espnet_v2_seg_150": _espnet_v2(
        "espnet_v2_150",
        "1.5",
        "0dbbda9126583d62f73dfdc28a59a30ab4564094ee6d28428b897a4e36c466b4",
        "75f67549659cb5db6a8323a7595e3ce1bc3cbea7f95731105dec7a6d034b516b",
    ),
    "espnet_v2_seg_200": _espnet_v2(
        "espnet_v2_200",
        "2.0",
        "a72d59699801c7ce8e8b89a53af9097eaaa60dc12180ecde86fd700ba1222fe8",
        "bc479586b0ba9254e02589020346931a14d99028ad6bac4817198be6d9e719a6",
    ),
    "lraspp_mobilenet_v3_large": Segmenter(
        backbone="mobilenet_v3_large",
        changes=_DILATED,
        head="lraspp",
        config=LRASPPConfig(classes=21),
        weights=_torchvision("lraspp_mobilenet_v3_large-d234d4ea"),
        rename=_in_segmenter,
        output_stride=16,
        taps=(("c3", "stage3_block1_project_bn"),),
        labels={"coco_voc": VOC_LABELS},
        size=(520, 520),
        miou=57.9,
    ),
}


def find_segmenter(name: str) -> Segmenter:
    """Return a row of SEGMENTERS.

    Raises:
        ValueError: If there is none; the closest name is suggested.
    """
    if name not in SEGMENTERS:
        raise unknown("segmenter", name, SEGMENTERS)
    return SEGMENTERS[name]


def create_segmenter(
    name: str,
    weights: str | os.PathLike[str] | None = "coco_voc",
    size: tuple[int, int] | None = None,
) -> tuple[keras.Model, tuple[str, ...]]:
    """Build a published segmentation network.

    Args:
        name: Name in SEGMENTERS.
        weights: None (random), a published tag, or the path of a file: a checkpoint
            of the publisher, or one that this package saved.
        size: (height, width) of the input; None: the published one.

    Returns:
        The model, from RGB images of 0-255, (batch, height, width, 3), to {"logits":
        (batch, rows, columns, classes)}; and the class names.

    Raises:
        ValueError: If the name is unknown.
        WeightsError: If the weights cannot be had or do not fit.

    Example:
        >>> model, labels = create_segmenter(
        ...     "lraspp_mobilenet_v3_large", weights=None, size=(64, 96))
        >>> model.output["logits"].shape, labels[15]
        ((None, 8, 12, 21), 'person')

    Reference:
        Howard et al. 2019, section 6.4, https://arxiv.org/abs/1905.02244.
    """
    row = find_segmenter(name)
    tag = _tag_of(row, weights)
    labels = row.labels[tag]
    fitted = dataclasses.replace(
        row,
        config=dataclasses.replace(row.config, classes=len(labels)),
        # A file is tried as the tag's first.
        weights=tuple(sorted(row.weights, key=lambda entry: entry.tag != tag)),
    )
    shape = (*(size or row.sizes.get(tag, row.size)), 3)
    model, _ = _joined.create(name, fitted, weights, lambda _: shape)
    return model, labels


def _tag_of(row: Segmenter, weights: str | os.PathLike[str] | None) -> str:
    """Return a tag itself, that of a file with a published name, or the first."""
    if isinstance(weights, str) and weights in row.labels:
        return weights
    name = os.path.basename(weights) if weights is not None else ""
    for entry in row.weights:
        if str(name) == entry.url.rpartition("/")[2]:
            return entry.tag
    return next(iter(row.labels))
