"""Where publishers of many families serve their weights, and under which terms."""

from typing import Any

from keras_lightnets._spec import Preprocessing, Weights

Changes = tuple[tuple[str, Any], ...]

TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download"
CONVERTED = "converted from the authors' checkpoint"


def timm(
    tag: str,
    file: str,
    rule: Preprocessing,
    top1: float | None,
    changes: Changes = (),
    source: str = "trained by Ross Wightman",
    host: str = f"{TIMM}/v0.1-weights",
) -> Weights:
    """Describe a file of timm's releases on GitHub.

    Args:
        tag: Name to pass as `weights=`.
        file: File name without ending; its last eight characters are its hash.
        rule: Input normalisation, crop and interpolation.
        top1: ImageNet top-1 in percent, as timm measured it, or None.
        changes: Spec fields in which the network differs.
        source: Who trained the weights, in words.
        host: Address of the release.

    Returns:
        The weights, in layout "timm".
    """
    return Weights(
        tag=tag,
        url=f"{host}/{file}.pth",
        hash=f"sha256:{file[-8:]}",
        format="pth",
        layout="timm",
        licence="Apache-2.0",
        preprocessing=rule,
        changes=changes,
        top1=top1,
        source=f"timm, {source}",
    )


def timm_hub(
    name: str,
    rule: Preprocessing,
    licence: str = "Apache-2.0",
    top1: float | None = None,
    source: str = "trained by Ross Wightman",
    tag: str = "",
    file: str = "",
) -> Weights:
    """Describe a file that timm has on Hugging Face, and maybe in a release too.

    Args:
        name: Network and tag, such as "skresnet18.ra_in1k".
        rule: Input normalisation, crop and interpolation.
        licence: SPDX name, or the publisher's words.
        top1: ImageNet top-1 in percent, or None.
        source: Who trained the weights, in words.
        tag: Name to pass as `weights=`; that of timm when not given.
        file: Release and file name without ending of the same weights on GitHub,
            whose last eight characters are its hash; the hub announces its own.

    Returns:
        The weights, in layout "timm".
    """
    url = f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors"
    return Weights(
        tag=tag or name.rpartition(".")[2],
        url=f"{url} | {TIMM}/{file}.pth" if file else url,
        hash=f"sha256:{file[-8:]}" if file else "",
        layout="timm",
        licence=licence,
        preprocessing=rule,
        top1=top1,
        source=f"timm {name}, {source}",
    )


def torchvision(
    version: str, file: str, rule: Preprocessing, top1: float, changes: Changes = ()
) -> Weights:
    """Describe a file of torchvision's model zoo.

    Args:
        version: "v1" or "v2".
        file: File name without ending; what follows the last dash is its hash.
        rule: Input normalisation, crop and interpolation.
        top1: ImageNet top-1 in percent, as torchvision measured it.
        changes: Spec fields in which the network differs.

    Returns:
        The weights, in layout "torchvision".
    """
    return Weights(
        tag=f"torchvision_{version}",
        url=f"https://download.pytorch.org/models/{file}.pth",
        hash=f"sha256:{file.rpartition('-')[2]}",
        format="pth",
        layout="torchvision",
        licence="BSD-3-Clause",
        preprocessing=rule,
        changes=changes,
        top1=top1,
        source="torchvision",
    )


def keras(
    path: str,
    rule: Preprocessing,
    md5: str = "",
    top1: float | None = None,
    changes: Changes = (),
) -> Weights:
    """Describe a file of keras.applications.

    Args:
        path: Path of the file without ending, below the storage's root.
        rule: Input normalisation, crop and interpolation.
        md5: Published hash; empty where there is none.
        top1: ImageNet top-1 in percent, or None.
        changes: Spec fields in which the network differs.

    Returns:
        The weights, in layout "keras".
    """
    return Weights(
        tag="keras_in1k",
        url=f"https://storage.googleapis.com/{path}.h5",
        hash=f"md5:{md5}" if md5 else "",
        format="h5",
        layout="keras",
        licence="Apache-2.0",
        preprocessing=rule,
        changes=changes,
        top1=top1,
        source=f"keras.applications, {CONVERTED}",
    )


def pytorchcv(
    release: str,
    file: str,
    sha1: str,
    rule: Preprocessing,
    changes: Changes = (),
    source: str = "",
    tag: str = "pytorchcv_in1k",
) -> Weights:
    """Describe a file of pytorchcv.

    Args:
        release: Such as "v0.0.415".
        file: File name without its hash and ending.
        sha1: Hash of the unpacked file, whose first eight digits end the name.
        rule: Input normalisation, crop and interpolation.
        changes: Spec fields in which the network differs.
        source: Where pytorchcv has the weights from, in words.
        tag: Name to pass as `weights=`.

    Returns:
        The weights, in layout "pytorchcv".
    """
    host = "https://github.com/osmr/imgclsmob/releases/download"
    whole = "pytorchcv (osmr/imgclsmob)"
    return Weights(
        tag=tag,
        url=f"{host}/{release}/{file}-{sha1[:8]}.pth.zip",
        hash=f"sha1:{sha1}",
        format="pth.zip",
        layout="pytorchcv",
        licence="MIT",
        preprocessing=rule,
        changes=changes,
        source=f"{whole}, {source}" if source else whole,
    )


def facebook(path: str, rule: Preprocessing, top1: float) -> Weights:
    """Describe a file of facebookresearch/mobile-vision, which has no commercial use.

    Args:
        path: Folder of the file below the publisher's FBNet models.
        rule: Input normalisation, crop and interpolation.
        top1: ImageNet top-1 in percent, as the authors measured it.

    Returns:
        The weights, in layout "mobile_cv".
    """
    return Weights(
        tag="facebook_in1k",
        url=f"https://dl.fbaipublicfiles.com/fbnet/models/{path}/model.pth",
        format="pth",
        layout="mobile_cv",
        licence="CC-BY-NC-4.0",
        preprocessing=rule,
        top1=top1,
        source="facebookresearch/mobile-vision, the authors",
        accept_licence=True,
    )
