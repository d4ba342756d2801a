"""ESPNetv2: split kernels, the branches' dilations, and the authors' files."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_lightnets
from keras_lightnets import layers
from keras_lightnets._layout import SPLIT_KERNEL
from keras_lightnets.tools.convert import make_parity as parity

SIDE = 64


def by_hand(x, kernel, dilation, stride):
    """Convolve with a dilated 3x3 kernel, cell by cell."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))
    out = sum(
        kernel[i, j]
        * padded[:, i * dilation :, j * dilation :][:, :height:stride, :width:stride]
        for i in range(3)
        for j in range(3)
    )
    return out


def built(function, x, dilation, kernel, **options):
    """Build the layers, give them the kernel's parts, run them."""
    import keras

    inputs = keras.Input((None, None, x.shape[-1]))
    model = keras.Model(inputs, function(inputs, dilation, "a", **options))
    for layer in model.layers:
        for part, (rows, cols) in SPLIT_KERNEL.items():
            if layer.name == f"a_{part}_conv":
                layer.kernel.assign(kernel[list(rows)][:, list(cols)][..., None])
        if layer.name == "a_conv":
            layer.kernel.assign(kernel[..., None])
    return np.asarray(model(x))


@pytest.mark.parametrize(
    ("split", "dilation", "stride"),
    [
        (False, 1, 2),
        (False, 2, 2),
        (False, 4, 2),
        (False, 3, 1),
        (True, 3, 2),
        (True, 5, 2),
        (True, 3, 1),
        (True, 2, 2),
    ],
)
def test_strided_dilated_kernel_of_plain_layers(split, dilation, stride):
    random = np.random.RandomState(0)
    function = layers.split_depthwise if split else layers.dilated_depthwise
    kernel = random.randn(3, 3, 4).astype("float32")
    for sides in ((12, 9), (7, 14)):
        x = random.randn(2, *sides, 4).astype("float32")
        found = built(function, x, dilation, kernel, stride=stride)
        expected = by_hand(x, kernel, dilation, stride)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_odd_dilation_with_stride_is_refused_where_it_is_not_split():
    with pytest.raises(ValueError, match="split_depthwise. Received: dilation=3"):
        layers.dilated_depthwise(np.zeros((1, 8, 8, 2), "float32"), 3, "a", stride=2)


def test_fusion_adds_every_branch_to_those_behind_it():
    branches = [np.full((1, 2, 2, 1), v, "float32") for v in (1, 10, 100)]
    found = np.asarray(layers.fused_pyramid(branches, "a"))
    assert found[0, 0, 0].tolist() == [1, 11, 111]


def test_receptive_fields_stay_in_the_stages_limits():
    """Section 3.2: 13, 11, 9, 7 and 5 cells; branches past it are not dilated."""
    model = keras_lightnets.ESPNetV2W050(
        weights=None, include_top=False, input_shape=(SIDE, SIDE, 3)
    )

    def dilations(block):
        names = [f"{block}_branch{i}_conv" for i in range(1, 5)]
        return [model.get_layer(name).dilation_rate[0] for name in names]

    assert dilations("stage3_block2") == [1, 2, 3, 4]
    assert dilations("stage4_block8") == [1, 1, 2, 3]
    assert dilations("stage5_block4") == [1, 1, 1, 2]


def test_authors_files_load_with_what_their_network_does_not_read(tmp_path):
    """Their stage 5 has a shortcut from the image that is never called."""
    with np.load(parity.FOLDER / "espnet_v2_050-espnetv2.npz") as file:
        state = parity.seeded_state(json.loads(file["state"].tobytes()))
    assert "level5_0.inp_reinf.0.conv.weight" in state
    assert "level2_0.eesp.module_act.weight" in state
    path = tmp_path / "theirs.safetensors"
    save_file(state, path)
    options = {"include_top": False, "input_shape": (SIDE, SIDE, 3)}
    model = keras_lightnets.ESPNetV2W050(weights=path, **options)
    names = {layer.name for layer in model.layers}
    assert "stage4_block1_image_conv" in names
    assert "stage5_block1_image_conv" not in names
    kernel = state["level2_0.eesp.spp_dw.2.conv.weight"]
    for part, (rows, cols) in SPLIT_KERNEL.items():
        ours = model.get_layer(f"stage2_block1_branch3_{part}_conv").kernel
        theirs = kernel[:, 0][:, list(rows)][:, :, list(cols)].transpose(1, 2, 0)
        np.testing.assert_array_equal(np.asarray(ours)[..., 0], theirs)
    del state["level5_0.eesp.proj_1x1.conv.weight"]
    save_file(state, path)
    with pytest.raises(ValueError, match=r"lacks level5_0\.eesp\.proj_1x1\.conv"):
        keras_lightnets.ESPNetV2W050(weights=path, **options)


@pytest.mark.parametrize("name", ["espnetv2_s_1.0_city_1024x512.pth"])
def test_authors_segmentation_files_hold_this_backbone(name, shared):
    """The names of the real files are those that the layout gives."""
    import fnmatch

    from keras_lightnets._checkpoints import convert, readers
    from keras_lightnets.backbones.espnet_v2 import LAYOUTS

    checkpoint = readers.read(shared / "weights" / "espnetv2_seg" / name)
    theirs = {p for p in convert.prefixes_of(checkpoint) if p.startswith("base_net.")}
    layout = LAYOUTS["authors"]
    spec = keras_lightnets.get_spec("espnet_v2").replace(**dict(layout.changes))
    ours = {
        f"base_net.{prefix}"
        for layer, prefix in layout.names(spec).items()
        if not layer.startswith(("stage5", "top"))
    }
    unread = {
        p
        for p in theirs
        if any(fnmatch.fnmatch(p, f"base_net.{u}") for u in layout.unused)
    }
    assert len(unread) == 3
    assert theirs - unread == ours
