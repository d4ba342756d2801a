"""The examples in the docstrings run and give what they say."""

import doctest
import importlib

import pytest

MODULES = ("boxes", "anchors", "matching", "losses", "nms", "ssdlite", "_endpoints")
MODULES += ("bifpn", "efficientdet", "fpn", "pelee")
MODULES += ("_table", "detectors", "deeplab", "lraspp", "seg_losses", "segmenters")
MODULES += ("dense", "eseg", "espnet", "espnet_v2")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"keras_lightnets.heads.{name}")
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0
