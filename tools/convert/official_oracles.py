"""Reference networks of authors' repositories, for make_parity.

Nothing of them is kept here: the files are read from checkouts, whose folders stand
in environment variables (`PLACES`).
"""

import ast
import importlib
import importlib.util
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable
from typing import Any

PLACES = {
    "akamaster": "LIGHTNETS_AKAMASTER",  # akamaster/pytorch_resnet_cifar10
    "condensenet": "LIGHTNETS_CONDENSENET",  # ShichenLiu/CondenseNet
    "g_ghost": "LIGHTNETS_G_GHOST",  # huawei-noah/Efficient-AI-Backbones
    "eca": "LIGHTNETS_ECA",  # BangguWu/ECANet
    "espnetv2": "LIGHTNETS_ESPNETV2",  # sacmehta/ESPNetv2
    "igc": "LIGHTNETS_IGC",  # hellozting/InterleavedGroupConvolutions
    "igcv3": "LIGHTNETS_IGCV3",  # homles11/IGCV3
    "mgic": "LIGHTNETS_MGIC",  # BGUCompSci/MultigridInChannelsCNNs
    "kuangliu": "LIGHTNETS_KUANGLIU",  # kuangliu/pytorch-cifar
    "megvii": "LIGHTNETS_SHUFFLENET",  # megvii-model/ShuffleNet-Series
    "micronet": "LIGHTNETS_MICRONET",  # liyunsheng13/micronet
    "nexception": "LIGHTNETS_NEXCEPTION",  # hadarshavit/NEXcepTion
    "peleenet": "LIGHTNETS_PELEENET",  # Robert-JunWang/PeleeNet
    "dbb": "LIGHTNETS_DBB",  # DingXiaoH/DiverseBranchBlock
    "repvgg": "LIGHTNETS_REPVGG",  # DingXiaoH/RepVGG
    "rmnet": "LIGHTNETS_RMNET",  # fxmeng/RMNet
    "squeezenext": "LIGHTNETS_SQUEEZENEXT",  # amirgholami/SqueezeNext
    "weightnet": "LIGHTNETS_WEIGHTNET",  # megvii-model/WeightNet
}


def build(package: str, name: str) -> Any:
    """Return a network with whatever weights it starts with.

    Args:
        package: Key of PLACES.
        name: Network there.

    Returns:
        A torch module in evaluation mode, for any input size.

    Raises:
        FileNotFoundError: If the checkout's folder is not given.
    """
    variable = PLACES[package]
    if variable not in os.environ:
        raise FileNotFoundError(f"Set {variable} to a checkout's folder; see PLACES.")
    return _BUILDERS[package](pathlib.Path(os.environ[variable]), name).eval()


def _load(
    path: pathlib.Path,
    neighbours: tuple[str, ...] = (),
    root: pathlib.Path | None = None,
) -> Any:
    """Import a file that is no package; its neighbours are not kept."""
    sys.path.insert(0, str(root or path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"oracle_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{path} is missing from the checkout")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
        for neighbour in neighbours:
            sys.modules.pop(neighbour, None)
    return module


def _megvii(place: pathlib.Path, name: str) -> Any:
    """Build "ShuffleNetV1 1.0x 3" (groups last) or "ShuffleNetV2 1.0x"."""
    import torch

    family, size, *groups = name.split()
    module = _load(place / family / "network.py", ("blocks",))
    options = {"group": int(groups[0])} if groups else {}
    model = getattr(module, family)(model_size=size, **options)
    model.globalpool = torch.nn.AdaptiveAvgPool2d(1)
    return model


def _g_ghost(place: pathlib.Path, name: str) -> Any:
    """Build a G-Ghost-RegNet, such as "g_ghost_regnetx_032"."""
    module = _load(place / "g_ghost_pytorch" / "g_ghost_regnet.py")
    return getattr(module, name)()


def _peleenet(place: pathlib.Path, name: str) -> Any:
    """Build the only network of the repository."""
    return getattr(_load(place / "peleenet.py"), name)()


def _dbb(place: pathlib.Path, name: str) -> Any:
    """Build "ResNet-18", "ResNet-50" or "MobileNet" of diverse branch blocks."""
    neighbours = ("acb", "dbb_transforms", "diversebranchblock", "mobilenet", "resnet")
    sys.path.insert(0, str(place))  # its networks are imported when they are built
    try:
        module = _load(place / "convnet_utils.py")
        sys.modules["convnet_utils"] = module
        module.switch_conv_bn_impl("DBB")
        return module.build_model(name)
    finally:
        sys.path.remove(str(place))
        for key in ("convnet_utils", *neighbours):
            sys.modules.pop(key, None)


def _nexception(place: pathlib.Path, name: str) -> Any:
    """Build "t", "tp" or "s"."""
    import timm.layers.activations
    import timm.models.layers

    timm.models.layers.activations = timm.layers.activations  # where it once was
    module = _load(place / f"nexception_{name}.py")
    return module.NEXception(num_classes=1000)


def _rmnet(place: pathlib.Path, name: str) -> Any:
    """Build an RMNeXt, or a RepVGG such as "rmrep_21", by its function's name."""
    file = "rmnext.py" if name.startswith("rmnext") else "rmrepvgg.py"
    return getattr(_load(place / "models" / file), name)()


def _repvgg(place: pathlib.Path, name: str) -> Any:
    """Build a network by the repository's name, such as "RepVGG-A0"."""
    return _load(place / "repvgg.py", ("se_block",)).get_RepVGG_func_by_name(name)()


def _espnetv2(place: pathlib.Path, name: str) -> Any:
    """Build the classifier of a scale, such as "1.0"."""
    module = _load(place / "imagenet" / "Model.py", ("cnn_utils",))
    return module.EESPNet(s=float(name))


def _condensenet(place: pathlib.Path, name: str) -> Any:
    """Build the converted form of "cifar10 14-14-14 8-16-32 4", with 1000 classes."""
    import torch

    data, stages, growth, groups = name.split()
    options = types.SimpleNamespace(
        data=data,
        num_classes=1000,
        stages=[int(n) for n in stages.split("-")],
        growth=[int(n) for n in growth.split("-")],
        group_1x1=int(groups),
        group_3x3=int(groups),
        bottleneck=4,
    )
    path = place / "models" / "condensenet_converted.py"
    model = _load(path, ("layers",), place).CondenseNet(options)
    model.features.pool_last = torch.nn.AdaptiveAvgPool2d(1)
    return model


def _micronet(place: pathlib.Path, name: str) -> Any:
    """Build "m0" to "m3" with the options of its evaluation script."""
    text = (place / "scripts" / f"eval_micronet_{name}.sh").read_text(encoding="utf-8")
    options: dict[str, types.SimpleNamespace] = {}
    for group, key, value in re.findall(r"MODEL\.(\w+)\.(\w+)\s+([^\s\\]+)", text):
        if value[0].isdigit() or value in ("True", "False"):
            value = ast.literal_eval(value)
        setattr(options.setdefault(group, types.SimpleNamespace()), key, value)
    config = types.SimpleNamespace(MODEL=types.SimpleNamespace(**options))
    packages = ("backbone", "backbone.activation", "backbone.microconfig")
    module = _load(place / "backbone" / "micronet.py", packages, place)
    return module.micronet(cfg=config)


def _weightnet(place: pathlib.Path, name: str) -> Any:
    """Build "1.0x 8 2": a width, and the constants M and G of the kernels' makers."""
    import torch

    size, units, groups = name.split()
    shim = _load(pathlib.Path(__file__).with_name("megengine_shim.py"))
    with shim.installed():
        made = types.ModuleType("weightnet")
        text = (place / "weightnet.py").read_text(encoding="utf-8")
        text = text.replace("self.M = 2", f"self.M = {int(units)}")
        text = text.replace("self.G = 2", f"self.G = {int(groups)}")
        exec(compile(text, "weightnet.py", "exec"), made.__dict__)  # noqa: S102
        sys.modules["weightnet"] = made
        module = _load(place / "shufflenet_v2.py", ("weightnet",))
    model = module.ShuffleNetV2(model_size=size)
    model.globalpool = torch.nn.AdaptiveAvgPool2d(1)
    return model


def _mgic(place: pathlib.Path, name: str) -> Any:
    """Build "basic", "bottleneck", "large" or "small" with 64 channels a group.

    The MobileNets get a stem for large images, as the published one is for 32 px.
    """
    from torch import nn

    common = {"numberOfFixGroup": 64, "mgFcChannel": 64, "pwGroup": True}
    if name in ("large", "small"):
        module = _load(place / "mobilenetv3_MG.py")
        parameters = module.ModelParameters(1000, [], [], **common)
        build = {"large": module.mobileMGV3_full, "small": module.mobileMGV3_small}
        model = build[name](parameters, num_classes=1000)
        model.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        return model
    module = _load(place / "resnetMG.py")
    sizes = ([64, 128, 256, 512], [3, 4, 6, 3], [1, 2, 2, 2])
    bottleneck = name == "bottleneck"
    return module.ResNetMGGroup(
        module.ModelParameters(1000, *sizes, bottleneck=bottleneck, **common)
    )


def read_prototxt(text: str) -> dict[str, list[Any]]:
    """Read Caffe's text format.

    Args:
        text: The file's content.

    Returns:
        {field: values}; a value is a string or such a dict.
    """
    tokens = re.findall(r'"[^"]*"|[{}]|[^\s{}:]+', re.sub(r"#.*", "", text))

    def message(start: int) -> tuple[dict[str, list[Any]], int]:
        fields: dict[str, list[Any]] = {}
        i = start
        while i < len(tokens) and tokens[i] != "}":
            key, value = tokens[i], tokens[i + 1]
            if value == "{":
                inner, i = message(i + 2)
                fields.setdefault(key, []).append(inner)
                i += 1
            else:
                fields.setdefault(key, []).append(value.strip('"'))
                i += 2
        return fields, i

    return message(0)[0]


def _squeezenext(place: pathlib.Path, name: str) -> Any:
    """Build a variant from its prototxt, such as "1.0-SqNxt-23"."""
    text = (place / name / "train_val.prototxt").read_text(encoding="utf-8")
    return caffe_module(read_prototxt(text)["layer"])


def caffe_module(rows: list[dict[str, Any]]) -> Any:
    """Return a torch module that computes Caffe layers; modules bear their names.

    Args:
        rows: The layers, read by `read_prototxt`. A Scale layer is part of the
            BatchNorm in front of it.

    Returns:
        The module; calling it returns the last layer's output.
    """
    import torch

    skipped = {"Data", "Accuracy", "SoftmaxWithLoss", "Scale"}
    steps = [row for row in rows if row["type"][0] not in skipped]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels = {"data": 3}
            for row in steps:
                source, target = row["bottom"][0], row["top"][0]
                module, count = _caffe_layer(row, channels[source])
                channels[target] = count
                self.add_module(row["name"][0], module)

        def forward(self, x: Any) -> Any:
            blobs = {"data": x}
            for row in steps:
                inputs = [blobs[name] for name in row["bottom"]]
                out = getattr(self, row["name"][0])(sum(inputs[1:], inputs[0]))
                blobs[row["top"][0]] = out
            return out

    return Net()


def _caffe_layer(row: dict[str, Any], channels: int) -> tuple[Any, int]:
    """Return a Caffe layer as a torch module, and its output channels."""
    from torch import nn

    kind = row["type"][0]
    if kind == "Convolution":
        given = row["convolution_param"][0]

        def value(key: str, default: str) -> int:
            return int(given.get(key, [default])[0])

        count, side = value("num_output", "0"), value("kernel_size", "1")
        module = nn.Conv2d(
            channels,
            count,
            (value("kernel_h", str(side)), value("kernel_w", str(side))),
            value("stride", "1"),
            (
                value("pad_h", given.get("pad", ["0"])[0]),
                value("pad_w", given.get("pad", ["0"])[0]),
            ),
            groups=value("group", "1"),
            bias=given.get("bias_term", ["true"])[0] == "true",
        )
        return module, count
    if kind == "InnerProduct":
        count = int(row["inner_product_param"][0]["num_output"][0])
        return nn.Linear(channels, count), count
    if kind == "BatchNorm":
        return nn.BatchNorm2d(channels), channels
    if kind == "Pooling" and row["pooling_param"][0]["pool"] == ["AVE"]:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels
    plain = {
        "ReLU": nn.ReLU(),
        "Eltwise": nn.Identity(),  # the sum is taken before every layer
        "Pooling": nn.MaxPool2d(3, 2, ceil_mode=True),
    }
    return plain[kind], channels


def _eca(place: pathlib.Path, name: str) -> Any:
    """Build "eca_resnet50 3557" (kernels per stage) or "eca_mobilenet_v2"."""
    function, *kernels = name.split()
    file = "eca_resnet" if kernels else "eca_mobilenetv2"
    sys.path.insert(0, str(place))
    try:
        module = importlib.import_module(f"models.{file}")
    finally:
        sys.path.pop(0)
        for key in [key for key in sys.modules if key.partition(".")[0] == "models"]:
            sys.modules.pop(key)
    options = {"k_size": [int(k) for k in kernels[0]]} if kernels else {}
    return getattr(module, function)(**options)


def _kuangliu(place: pathlib.Path, name: str) -> Any:
    """Build "VGG16" for CIFAR, with 1000 classes."""
    import torch

    model = _load(place / "models" / "vgg.py").VGG(name)
    model.classifier = torch.nn.Linear(512, 1000)
    return model


def _akamaster(place: pathlib.Path, name: str) -> Any:
    """Build "20 A" to "110 B": a depth for CIFAR and the paper's shortcut option."""
    module = _load(place / "resnet.py")
    depth, option = name.split()

    class Block(module.BasicBlock):  # type: ignore[name-defined]
        def __init__(self, channels: int, out: int, stride: int = 1) -> None:
            super().__init__(channels, out, stride, option)

    repeats = [(int(depth) - 2) // 6] * 3
    return module.ResNet(Block, repeats, num_classes=1000)


def _mxnet(place: pathlib.Path, name: str) -> Any:
    """Build a network from its symbol file, given by its path."""
    here = pathlib.Path(__file__)
    module = _load(here.with_name("mxnet_symbol.py"))
    return module.network((place / name).read_text(encoding="utf-8"))


_BUILDERS: dict[str, Callable[[pathlib.Path, str], Any]] = {
    "akamaster": _akamaster,
    "condensenet": _condensenet,
    "g_ghost": _g_ghost,
    "eca": _eca,
    "espnetv2": _espnetv2,
    "igc": _mxnet,
    "igcv3": _mxnet,
    "mgic": _mgic,
    "kuangliu": _kuangliu,
    "megvii": _megvii,
    "micronet": _micronet,
    "nexception": _nexception,
    "peleenet": _peleenet,
    "dbb": _dbb,
    "repvgg": _repvgg,
    "rmnet": _rmnet,
    "squeezenext": _squeezenext,
    "weightnet": _weightnet,
}
