"""Makes tests/golden/NAME.json: what each network's structure must stay.

Run it from a checkout where the package is installed with its sources::

    python tools/convert/make_golden.py [NAME ...]
"""

import importlib.util
import logging
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType

from keras_lightnets.tools.convert import golden_files

LOG = logging.getLogger(__name__)
TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"


def _contracts() -> ModuleType:
    """Load tests/contracts.py, which defines what a golden file holds."""
    place = TESTS / "contracts.py"
    spec = importlib.util.spec_from_file_location("contracts", place)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{place} is missing; run this from a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(names: Sequence[str]) -> int:
    """Write the golden files of the named networks, or of all.

    Args:
        names: Registry names.

    Returns:
        The process's exit status.
    """
    import keras_lightnets

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    contracts = _contracts()
    for name in names or keras_lightnets.list_models():
        facts = contracts.facts(keras_lightnets.get_spec(name))
        path = golden_files.write(name, facts)
        LOG.info("%s: %d parameters", path, facts["params"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
