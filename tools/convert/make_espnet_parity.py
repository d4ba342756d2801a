"""Make the stored reference outputs of the ESPNet and ESPNetv2 segmenter tests.

Needs torch, OpenCV, checkouts of sacmehta/ESPNet and sacmehta/EdgeNets in the folders
named by LIGHTNETS_ESPNET and LIGHTNETS_EDGENETS, and, for the CamVid results, the
folder with `data/camvid` and `weights/espnet` named by LIGHTNETS_SHARED::

    python tools/convert/make_espnet_parity.py tests/parity [seeded | camvid | official]

writes `espnet_seeded.npz` and `espnet_v2_seeded.npz`: outputs with seeded weights, and
`espnet_camvid.npz`: what the authors' code and weights make of CamVid's validation
images; `espnet_official.npz`: what their other files make of one of them.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

try:
    from keras_lightnets.tools.convert import make_ssdlite_parity as shared
except ImportError:  # beside torch this package need not be installed
    import make_ssdlite_parity as shared  # type: ignore[no-redef]

# Name here -> folder of the checkout, class, its arguments, and image size. The second
# sizes of ESPNetv2 leave 5 cells at the coarsest map, the least that its pyramids make.
ESPNETS: dict[str, tuple[str, str, tuple[int, ...], tuple[int, int]]] = {
    "espnet:camvid": ("train", "ESPNet", (12, 2, 8), (64, 96)),
    "espnet_q3:cityscapes": ("test", "ESPNet", (20, 2, 3), (64, 96)),
    "espnet_c_q3:cityscapes": ("test", "ESPNet_Encoder", (20, 2, 3), (64, 96)),
}
EDGENETS: dict[str, tuple[float, int, str, tuple[int, int]]] = {
    "espnet_v2_seg_050:cityscapes": (0.5, 20, "city", (96, 128)),
    "espnet_v2_seg:voc": (1.0, 21, "pascal", (176, 96)),
}
# Name here -> folder or width, class or classes and data, file.
OFFICIAL: dict[str, tuple[Any, ...]] = {
    "espnet:cityscapes": ("ESPNet", "espnet/decoder/espnet_p_2_q_8"),
    "espnet_c:cityscapes": ("ESPNet_Encoder", "espnet/encoder/espnet_p_2_q_8"),
    "espnet_v2_seg:cityscapes": (1.0, "espnetv2_seg/espnetv2_s_1.0_city_1024x512"),
    "espnet_v2_seg_200:cityscapes": (2.0, "espnetv2_seg/espnetv2_s_2.0_city_1024x512"),
    "espnet_v2_seg_200:voc": (2.0, "espnetv2_seg/espnetv2_s_2.0_pascal_384x384"),
}
PICTURE = "0016E5_08091.jpg"
CROP = (352, 480)  # rows and columns from the top left, multiples of 32
STEP = 8  # every eighth row and column is stored: the files stay small
CAMVID_CLASSES = 12
FULL = (0, 33, 66, 100)  # validation images of which every pixel is stored


def seeded_image(size: tuple[int, int]) -> Any:
    """Return the test image of a size, uint8, shape (height, width, 3), RGB."""
    return shared.seeded_image()[: size[0], : size[1]]


def thinned(values: Any) -> Any:
    """Return the cells that are stored of a map (rows, columns, classes)."""
    return values[::STEP, ::STEP] if values.shape[0] >= 32 else values


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", nargs="?", choices=("seeded", "camvid", "official"))
    options = parser.parse_args()
    if options.part in (None, "seeded"):
        for table in ("espnet", "espnet_v2"):
            arrays = _seeded(_espnets() if table == "espnet" else _edgenets())
            np.savez_compressed(options.folder / f"{table}_seeded.npz", **arrays)
    if options.part in (None, "camvid"):
        np.savez_compressed(options.folder / "espnet_camvid.npz", **_camvid())
    if options.part in (None, "official"):
        np.savez_compressed(options.folder / "espnet_official.npz", **_official())


def _seeded(networks: Any) -> dict[str, Any]:
    import torch

    arrays: dict[str, Any] = {}
    for name, size, network, bgr in networks:
        state = network.state_dict()
        shapes = {key: list(value.shape) for key, value in state.items() if value.ndim}
        seeded = {
            key: torch.from_numpy(shared.seeded_tensor(key, tuple(shape)))
            for key, shape in shapes.items()
        }
        network.load_state_dict({**state, **seeded})
        logits = _logits(network, seeded_image(size), name, bgr)
        text = json.dumps(shapes, separators=(",", ":")).encode()
        arrays[f"{name}_state"] = np.frombuffer(text, np.uint8)
        arrays[f"{name}_parameters"] = sum(p.numel() for p in network.parameters())
        arrays[f"{name}_size"] = np.array(size)
        arrays[name] = thinned(logits)
    return arrays


def _espnets() -> Any:
    """Yield name, image size, network and whether it takes blue first."""
    place = Path(os.environ["LIGHTNETS_ESPNET"])
    for name, (folder, kind, arguments, size) in ESPNETS.items():
        module = _load(place / folder, "Model")
        yield name, size, getattr(module, kind)(*arguments).eval(), True


def _edgenets() -> Any:
    """Yield the same of ESPNetv2."""
    place = Path(os.environ["LIGHTNETS_EDGENETS"])
    for name, (width, classes, data, size) in EDGENETS.items():
        module = _load(place, "model.segmentation.espnetv2")
        given = argparse.Namespace(s=width)
        network = module.ESPNetv2Segmentation(given, classes=classes, dataset=data)
        yield name, size, network.eval(), False


def _load(folder: Path, name: str) -> Any:
    sys.path.insert(0, str(folder))
    try:
        sys.modules.pop(name, None)
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _logits(network: Any, image: Any, name: str, bgr: bool) -> Any:
    """Return raw outputs (rows, columns, classes) of a picture, prepared as theirs."""
    pixels = image.astype(np.float32)
    if not bgr:
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        return _run(network, (pixels / 255 - mean) / std)
    blue_first = CITYSCAPES if "city" in name else CAMVID
    return _run(
        network,
        (pixels[..., ::-1] - np.array(blue_first[0])) / np.array(blue_first[1]) / 255,
    )


# Blue, green, red. Cityscapes: their test script; CamVid: their LoadData on the 184
# training images, which `_camvid` measures anew and compares.
CITYSCAPES = (
    (72.3923111, 82.90893555, 73.15840149),
    (45.3192215, 46.15289307, 44.91483307),
)
CAMVID = (
    (110.11500409, 108.23418771, 104.84942664),
    (71.9966812, 72.45968446, 69.79917698),
)


def _run(network: Any, pixels: Any) -> Any:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    with torch.no_grad():
        return network(tensor.float()[None])[0].permute(1, 2, 0).numpy()


def _camvid() -> dict[str, Any]:
    """Label the validation images with the authors' code, files and constants."""
    import cv2
    import torch

    place = Path(os.environ["LIGHTNETS_ESPNET"]) / "train"
    folder = Path(os.environ["LIGHTNETS_SHARED"])
    images = folder / "data" / "camvid"
    mean, std = _measured(place, images)
    network = _load(place, "Model").ESPNet(CAMVID_CLASSES, 2, 8)
    file = folder / "weights/espnet/decoder/espnet_p_2_q_8_camvid.pth"
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval()
    counts = np.zeros((CAMVID_CLASSES, CAMVID_CLASSES), np.int64)
    arrays: dict[str, Any] = {"mean": mean, "std": std}
    for i, path in enumerate(sorted((images / "val").glob("*.jpg"))):
        picture = _read(cv2, path, 1).astype(np.float32)
        truth = _read(cv2, images / "val_labels" / f"{path.stem}.png", 0)
        logits = _run(network, (picture - mean) / std / 255)
        found = logits.argmax(-1).astype(np.uint8)
        pairs = truth.astype(np.int64) * CAMVID_CLASSES + found
        cells = np.bincount(pairs.ravel(), minlength=counts.size)
        counts += cells.reshape(counts.shape)
        if i in FULL:
            arrays[path.name] = found
    return {**arrays, "confusion": counts}


def _official() -> dict[str, Any]:
    """Label a picture with the authors' code and files."""
    import cv2
    import torch

    folder = Path(os.environ["LIGHTNETS_SHARED"])
    arrays: dict[str, Any] = {}
    picture = _read(cv2, folder / "data" / "camvid" / "val" / PICTURE, 1)
    image = picture[: CROP[0], : CROP[1], ::-1]
    for name, (kind, file) in OFFICIAL.items():
        old = isinstance(kind, str)
        if old:
            module = _load(Path(os.environ["LIGHTNETS_ESPNET"]) / "test", "Model")
            network = getattr(module, kind)(20, 2, 8)
        else:
            place = Path(os.environ["LIGHTNETS_EDGENETS"])
            module = _load(place, "model.segmentation.espnetv2")
            data, classes = ("city", 20) if "city" in name else ("pascal", 21)
            given = argparse.Namespace(s=kind)
            network = module.ESPNetv2Segmentation(given, classes, data)
        path = folder / "weights" / f"{file}.pth"
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(
            {key.removeprefix("module."): value for key, value in state.items()}
        )
        logits = _logits(network.eval(), image, name, old)
        arrays[name] = logits.argmax(-1).astype(np.uint8)
    return arrays


def _read(cv2: Any, path: Path, flag: int) -> Any:
    picture = cv2.imread(str(path), flag)
    if picture is None:
        raise FileNotFoundError(f"{path} is missing or no picture")
    return picture


def _measured(place: Path, images: Path) -> tuple[Any, Any]:
    """Return mean and deviation as the authors' LoadData measures them."""
    loader = _load(place, "loadData")
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            paths = sorted((images / split).glob("*.jpg"))
            lines = [f"{split}/{p.name},{split}_labels/{p.stem}.png" for p in paths]
            Path(folder, f"{split}.txt").write_text("\n".join(lines))
            for part in (split, f"{split}_labels"):
                Path(folder, part).symlink_to(images / part)
        cache = str(Path(folder) / "cache.p")
        data = loader.LoadData(folder, CAMVID_CLASSES, cache).processData()
    mean, std = data["mean"], data["std"]
    if not (np.allclose(mean, CAMVID[0]) and np.allclose(std, CAMVID[1])):
        raise ValueError(f"CAMVID is not what is measured here: {mean}, {std}")
    return mean, std


if __name__ == "__main__":
    main()
