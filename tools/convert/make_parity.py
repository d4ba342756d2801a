"""Makes tests/parity/*.npz: outputs of reference packages for seeded weights.

Run it with torch, timm, torchvision and pytorchcv installed; keras is not needed::

    python tools/convert/make_parity.py [NAME ...]

FBNet needs a checkout of facebookresearch/mobile-vision on the path (and
cloudpickle, iopath, fvcore), GPUNet one of NVIDIA/DeepLearningExamples, its
PyTorch/Classification/GPUNet.

Weights are drawn per tensor from the publisher's own key (`seeded_state`), so the
tests draw the same ones with numpy alone and no weights are stored. Each file holds
the publisher's keys and shapes, samples of every endpoint and of the logits, and
each output's largest magnitude.
"""

import dataclasses
import importlib.util
import json
import logging
import pathlib
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOG = logging.getLogger(__name__)
FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tests" / "parity"
SAMPLES = 500

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
HALF = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        model: Registry name here.
        oracle: "package:name" there.
        taps: Endpoint here -> module there, whose output it equals.
        norm: (mean, std) of the input, for pixels of 0-255.
        size: (height, width) of the input.
        default: Whether the default test tier compares it.
        gain: Variance gain of the kernels. Deep nets take less, so that gates do
            not saturate and rounding does not grow from block to block.
        calibrated: Whether every variance of batch normalisation is multiplied by
            that of what it normalises (one number per layer, stored), so that any
            depth keeps the signal's size.
        bgr: Whether the reference takes blue, green, red.
        apart: How far the two images' outputs must be apart, as a share of the
            largest value; deep stacks of ReLU without shortcuts bring them together.
        precision: What both sides compute in. RepVGG-D2se's own float32 outputs are
            5e-4 from its float64 ones, so it takes "float64" and a narrower tolerance.
    """

    model: str
    oracle: str
    taps: Mapping[str, str]
    norm: tuple[Sequence[float], Sequence[float]] = IMAGENET
    size: tuple[int, int] = (96, 96)
    default: bool = False
    gain: float = 2.0
    calibrated: bool = False
    bgr: bool = False
    apart: float = 0.05
    precision: str = "float32"

    @property
    def name(self) -> str:
        """File name: registry name and package."""
        return f"{self.model}-{self.oracle.partition(':')[0]}"

    @property
    def tolerance(self) -> float:
        """Largest difference the tests allow, as a share of the largest value.

        In float32, sums over up to 1280 x 25 products differ by their order.
        """
        return {"float32": 1e-4, "float64": 1e-9}[self.precision]


def _taps(prefix: str, indices: Sequence[Any], expand: str = "") -> dict[str, str]:
    """Name the modules of c1, c2, ... and, if given, of c4_expand."""
    taps = {f"c{i}": f"{prefix}{index}" for i, index in enumerate(indices, start=1)}
    return taps | ({"c4_expand": expand} if expand else {})


GHOST = _taps("blocks.", (0, 2, 4, 6, 8), "blocks.7.0.ghost1")
V1_TIMM = _taps("blocks.", (0, 1, 2, 3, 4))
V1_PCV = _taps("features.stage", (1, 2, 3, 4, 5))
V2_TIMM = _taps("blocks.", (0, 1, 2, 4, 6), "blocks.5.0.bn1")
V2_TV = _taps("features.", (1, 3, 6, 13, 17), "features.14.conv.0")
V2_PCV = _taps("features.stage", (1, 2, 3, 4, 5), "features.stage5.unit1.conv1")
LARGE_TIMM = _taps("blocks.", (0, 1, 2, 4, 6), "blocks.5.0.bn1")
SMALL_TIMM = {"c1": "bn1", "c2": "blocks.0", "c3": "blocks.1", "c4": "blocks.3"}
SMALL_TIMM |= {"c5": "blocks.5", "c4_expand": "blocks.4.0.bn1"}
LARGE_TV = _taps("features.", (1, 3, 6, 12, 16), "features.13.block.0")
SMALL_TV = _taps("features.", (0, 1, 3, 8, 12), "features.9.block.0")
ODD = (97, 75)

# fmt: off
CASES: tuple[Case, ...] = (
    Case("ghostnet", "timm:ghostnet_100", GHOST, default=True, gain=1.0),
    Case("ghostnet_050", "timm:ghostnet_050", GHOST, size=ODD, gain=1.0),
    Case("ghostnet_130", "timm:ghostnet_130", GHOST, gain=1.0),
    Case("mobilenet_v1", "pytorchcv:mobilenet_w1", V1_PCV),
    Case("mobilenet_v1_075", "pytorchcv:mobilenet_w3d4", V1_PCV, size=ODD),
    Case("mobilenet_v1_050", "pytorchcv:mobilenet_wd2", V1_PCV),
    Case("mobilenet_v1_025", "pytorchcv:mobilenet_wd4", V1_PCV, default=True),
    Case("mobilenet_v1", "timm:mobilenetv1_100", V1_TIMM, HALF, default=True),
    Case("mobilenet_v2", "torchvision:mobilenet_v2", V2_TV, default=True),
    Case("mobilenet_v2", "pytorchcv:mobilenetv2_w1", V2_PCV),
    Case("mobilenet_v2", "timm:mobilenetv2_100", V2_TIMM),
    Case("mobilenet_v2_140", "timm:mobilenetv2_140", V2_TIMM, size=ODD),
    Case("mobilenet_v2_075", "timm:mobilenetv2_075", V2_TIMM),
    Case("mobilenet_v2_050", "timm:mobilenetv2_050", V2_TIMM),
    Case("mobilenet_v2_035", "timm:mobilenetv2_035", V2_TIMM, default=True),
    Case("mobilenet_v3_large", "timm:tf_mobilenetv3_large_100", LARGE_TIMM, HALF,
         gain=1.7),
    Case("mobilenet_v3_large_075", "timm:tf_mobilenetv3_large_075", LARGE_TIMM, HALF,
         size=ODD, gain=1.7),
    Case("mobilenet_v3_large_minimalistic", "timm:tf_mobilenetv3_large_minimal_100",
         LARGE_TIMM, HALF, gain=1.7),
    Case("mobilenet_v3_small", "timm:tf_mobilenetv3_small_100", SMALL_TIMM, HALF),
    Case("mobilenet_v3_small_075", "timm:tf_mobilenetv3_small_075", SMALL_TIMM, HALF),
    Case("mobilenet_v3_small_050", "timm:mobilenetv3_small_050", SMALL_TIMM,
         default=True),
    Case("mobilenet_v3_small_minimalistic", "timm:tf_mobilenetv3_small_minimal_100",
         SMALL_TIMM, HALF, size=ODD, default=True, gain=1.7),
    Case("mobilenet_v3_large", "torchvision:mobilenet_v3_large", LARGE_TV, gain=1.7),
    Case("mobilenet_v3_small", "torchvision:mobilenet_v3_small", SMALL_TV,
         default=True),
    Case("efficientnet_lite0", "timm:tf_efficientnet_lite0", V2_TIMM, HALF,
         default=True),
    Case("efficientnet_lite1", "timm:tf_efficientnet_lite1", V2_TIMM, HALF, size=ODD),
    Case("efficientnet_lite2", "timm:tf_efficientnet_lite2", V2_TIMM, HALF),
    Case("efficientnet_lite3", "timm:tf_efficientnet_lite3", V2_TIMM, HALF),
    Case("efficientnet_lite4", "timm:tf_efficientnet_lite4", V2_TIMM, HALF, gain=1.5),
)
# fmt: on


def more_cases(path: pathlib.Path) -> tuple[Case, ...]:
    """Read cases from a file.

    Args:
        path: JSON of "taps" (name -> {endpoint: module}) and "cases" (the fields of
            a Case, with the name of its taps); they are calibrated.

    Returns:
        The cases.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    cases = []
    for row in table["cases"]:
        fields = {**row, "taps": table["taps"][row["taps"]], "calibrated": True}
        if "size" in fields:
            fields["size"] = tuple(fields["size"])
        cases.append(Case(**fields))
    return tuple(cases)


for _path in sorted(FOLDER.glob("cases_*.json")):
    CASES += more_cases(_path)


def seeded_tensor(key: str, shape: Sequence[int], gain: float = 2.0) -> np.ndarray:
    """Draw a tensor whose seed is its key.

    Args:
        key: The publisher's key, such as "blocks.1.0.bn1.running_var".
        shape: Its shape; kernels are (out, in / groups, height, width).
        gain: Variance of a kernel times its fan-in.

    Returns:
        float32 values, int64 for counters; statistics of batch
        normalisation far from 0 and 1.
    """
    random = np.random.RandomState(zlib.crc32(key.encode()))
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, "int64")
    if last == "index":  # of channels, at least as many as there are indices
        return random.randint(0, shape[0], shape).astype("int64")
    if len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        return (random.randn(*shape) * np.sqrt(gain / fan_in)).astype("float32")
    if last in ("weight", "running_var"):
        return random.uniform(0.5, 1.5, shape).astype("float32")
    return random.uniform(-0.3, 0.3, shape).astype("float32")


def seeded_state(
    shapes: Mapping[str, Sequence[int]],
    gain: float = 2.0,
    scales: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Draw a whole state dict.

    Args:
        shapes: The publisher's keys and shapes.
        gain: Variance of a kernel times its fan-in.
        scales: Factors of the variances, in the order of their keys.

    Returns:
        {key: array}.
    """
    state = {key: seeded_tensor(key, shape, gain) for key, shape in shapes.items()}
    keys = [key for key in shapes if key.endswith(".running_var")]
    for key, scale in zip(keys, () if scales is None else scales, strict=False):
        mean = f"{key.removesuffix('var')}mean"
        state[key] = state[key] * np.float32(scale)
        state[mean] = state[mean] * np.sqrt(np.float32(scale))
    return state


def seeded_images(size: tuple[int, int]) -> np.ndarray:
    """Draw two images, one of coarse tiles and one of fine noise.

    Args:
        size: (height, width).

    Returns:
        float32 array of shape (2, height, width, 3), whole numbers of 0-255.
    """
    random = np.random.RandomState(20)
    tiles = random.randint(0, 256, (8, 8, 3)).astype("float32")
    side = max(16, -(-max(size) // 8))
    coarse = np.kron(tiles, np.ones((side, side, 1), "float32"))[: size[0], : size[1]]
    fine = random.randint(0, 256, (*size, 3)).astype("float32")
    return np.stack([coarse, fine])


def normalised_images(case: Case) -> np.ndarray:
    """Return the seeded images as a network without preprocessing takes them."""
    mean, std = (np.asarray(v, "float64") for v in case.norm)
    return ((seeded_images(case.size) - mean) / std).astype(case.precision)


def sample(array: np.ndarray) -> np.ndarray:
    """Return evenly spread values of an array, at most SAMPLES."""
    flat = np.asarray(array).reshape(-1)
    count = min(SAMPLES, flat.size)
    return flat[np.linspace(0, flat.size - 1, count).astype("int64")]


def oracle(case: Case) -> Any:
    """Return the reference network, with whatever weights it starts with.

    Args:
        case: The comparison.

    Returns:
        A torch module in evaluation mode.
    """
    import torch

    package, _, name = case.oracle.partition(":")
    if package == "timm":
        import timm

        return timm.create_model(name, pretrained=False).eval()
    if package == "torchvision":
        from torchvision import models

        return getattr(models, name)(weights=None).eval()
    if package == "mobile_cv":
        from mobile_cv.model_zoo.models.fbnet_v2 import fbnet

        return fbnet(name).eval()
    if package == "gpunet":
        from models import gpunet_builder

        place = pathlib.Path(gpunet_builder.__file__).parents[1]
        path = place / "configs" / "batch1" / "GV100" / f"{name}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        return gpunet_builder.GPUNet_Builder().get_model(rows).eval()
    official = _official()
    if package in official.PLACES:
        return official.build(package, name)
    model = _pytorchcv(name)
    # Built for one input size only; the mean of a 7x7 map is the global mean.
    last = model.features if hasattr(model.features, "final_pool") else model.output
    last.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    final: Any = getattr(model.features, "final_block", None)
    if isinstance(getattr(final, "pool", None), torch.nn.AvgPool2d):
        final.pool = torch.nn.AdaptiveAvgPool2d(1)
    return model.eval()


def _pytorchcv(name: str) -> Any:
    """Build a network of pytorchcv, or "wrn_cifar 16 8", which it has no name for.

    Those for CIFAR get as many classes as are built here without being told.
    """
    import torch
    from pytorchcv.model_provider import get_model
    from pytorchcv.models.wrn_cifar import get_wrn_cifar

    family, *sizes = name.split()
    if sizes:
        blocks, factor = map(int, sizes)
        return get_wrn_cifar(num_classes=1000, blocks=blocks, width_factor=factor)
    model = get_model(family, pretrained=False)
    if "_cifar" in family:
        model.output = torch.nn.Linear(model.output.in_features, 1000)
    return model


def _official() -> Any:
    """Load the neighbouring file; this one may be run where nothing is installed."""
    path = pathlib.Path(__file__).with_name("official_oracles.py")
    spec = importlib.util.spec_from_file_location("official_oracles", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declare_torchvision_operators() -> None:
    """Declare operators that torchvision expects of its compiled part.

    The wheel for another build of torch lacks them; none of them is called.
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []


def calibrate(model: Any, pixels: Any) -> np.ndarray:
    """Return the variance of every normalisation's input, meant over its channels.

    The model's variances and means are scaled on the way, layer after layer, so
    that one pass is enough.

    Args:
        model: The reference network with seeded weights.
        pixels: Its normalised input.

    Returns:
        float32 array, one factor per normalisation, in the order of the keys.
    """
    import torch

    scales: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):

            def scale(norm: Any, inputs: Any, name: str = name) -> None:
                axes = (0, *range(2, inputs[0].ndim))
                factor = float(np.float32(inputs[0].var(axes).mean().item()))
                scales[name] = factor
                norm.running_var.mul_(factor)
                norm.running_mean.mul_(float(np.sqrt(np.float32(factor))))

            handles.append(module.register_forward_pre_hook(scale))
    with torch.no_grad():
        model(pixels)
    for handle in handles:
        handle.remove()
    keys = [k for k in model.state_dict() if k.endswith(".running_var")]
    # A normalisation that is never reached keeps its own.
    names = [k.removesuffix(".running_var") for k in keys]
    return np.asarray([scales.get(name, 1.0) for name in names], "float32")


def _fill(model: Any, state: Mapping[str, np.ndarray]) -> None:
    """Copy values into a network, whatever its own loading would check."""
    import torch

    for key, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(np.asarray(state[key])))


def outputs(case: Case) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run the reference network on seeded weights.

    Args:
        case: The comparison.

    Returns:
        ({endpoint: array, channels last}, {"state": keys and shapes as JSON bytes,
        "scales": of a calibrated case}).
    """
    import torch

    model = oracle(case).to(getattr(torch, case.precision))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    text = json.dumps(shapes, separators=(",", ":")).encode()
    inputs: dict[str, Any] = {"state": np.frombuffer(text, "uint8")}
    pixels = torch.from_numpy(_pixels(case))
    state = seeded_state(shapes, case.gain)
    _fill(model, state)
    if case.calibrated:
        inputs["scales"] = calibrate(model, pixels)
        state = seeded_state(shapes, case.gain, inputs["scales"])
        _fill(model, state)
    found: dict[str, Any] = {}
    modules = dict(model.named_modules())
    for level, path in case.taps.items():

        def keep(_: Any, __: Any, out: Any, level: str = level) -> None:
            # A later in-place addition must not reach the copy.
            found[level] = out.detach().clone()

        modules[path].register_forward_hook(keep)
    with torch.no_grad():
        logits = model(pixels)
    maps = {k: v.numpy().transpose(0, 2, 3, 1) for k, v in found.items()}
    return {**maps, "logits": logits.numpy()}, inputs


def _pixels(case: Case) -> np.ndarray:
    """Return the seeded images as the reference network takes them."""
    pixels = normalised_images(case)
    pixels = pixels[..., ::-1] if case.bgr else pixels
    return pixels.transpose(0, 3, 1, 2).copy()


def make(case: Case, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Write a case's file.

    Args:
        case: The comparison.
        folder: Where to write.

    Returns:
        The file's path.

    Raises:
        ValueError: If an output hardly depends on the image, which would make the
            comparison meaningless.
    """
    arrays, stored = outputs(case)
    for level, array in arrays.items():
        most, apart = np.abs(array).max(), np.abs(array[0] - array[1]).max()
        LOG.info(
            "%s %s %s largest %.3g std %.3g, images differ by %.3g",
            *(case.name, level, array.shape, most, array.std(), apart),
        )
        if not apart > case.apart * most:
            raise ValueError(f"{level} of {case.name} hardly depends on the image")
        stored[level] = sample(array)
        stored[f"{level}_shape"] = np.asarray(array.shape)
        stored[f"{level}_max"] = array.dtype.type(most)
    path = folder / f"{case.name}.npz"
    np.savez_compressed(path, **stored)
    return path


def main(names: Sequence[str]) -> int:
    """Make the files of the named cases, or of all.

    Args:
        names: Case names, such as "ghostnet-timm".

    Returns:
        The process's exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    unknown = sorted(set(names) - {case.name for case in CASES})
    if unknown:
        LOG.error("Unknown: %s. Legal: %s", unknown, [case.name for case in CASES])
        return 2
    declare_torchvision_operators()
    for case in CASES:
        if not names or case.name in names:
            path = make(case)
            LOG.info("%s: %d bytes", path, path.stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
