"""House rules that a machine can check: imports, sizes, words."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = {
    "keras_lightnets": "keras_lightnets",
    "heads": "keras_lightnets.heads",
    "tasks": "keras_lightnets.tasks",
    "tools": "keras_lightnets.tools",
}
FILES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
BACKENDS = {"tensorflow", "jax", "torch", "tf_keras"}
HEAVY = {"tensorflow", "tf_keras", "tensorflow_model_optimization", "torch", "onnx"}
HEAVY |= {"tf2onnx", "onnxruntime", "albumentations", "matplotlib", "ai_edge_litert"}
PRIVATE = r"keras_lightnets\._\w+"
PUBLIC = (
    r"keras_lightnets(\.(cost|layers|create_model|get_spec|list_models|load_model))?"
)

# Module prefix -> what it may import from this project.
MAY_IMPORT = {
    "keras_lightnets._spec": r"keras_lightnets\._(channels|errors)",
    "keras_lightnets._registry": r"keras_lightnets\._(spec|errors)",
    "keras_lightnets._errors": r"$^",
    "keras_lightnets._channels": r"$^",
    "keras_lightnets.layers": rf"keras_lightnets\.layers.*|{PRIVATE}",
    "keras_lightnets.backbones": rf"keras_lightnets\.layers.*|{PRIVATE}",
    "keras_lightnets.heads": (
        rf"keras_lightnets\.(layers|heads).*|{PRIVATE}|keras_lightnets"
    ),
    "keras_lightnets.tasks": (
        rf"{PUBLIC}|{PRIVATE}|keras_lightnets\.(heads|tasks).*"
        r"|keras_lightnets\.tools\.runtime(_labels)?"
    ),
    "keras_lightnets.tools": rf"{PUBLIC}|{PRIVATE}|keras_lightnets\.(heads|tools).*",
}


def module_name(path: pathlib.Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join([FOLDERS[folder], *rest])
    return name.removesuffix(".__init__")


def imported(node: ast.AST) -> list[str]:
    """Return what a statement imports: modules, or names in a module of ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        module = node.module or ""
        if module.split(".")[0] == "keras_lightnets":
            return [f"{module}.{alias.name}" for alias in node.names]
        return [module]
    return []


def allowed(rule: str, target: str) -> bool:
    """Return whether the module, or the one that holds the name, may be imported."""
    parent = target.rpartition(".")[0]
    return bool(
        re.fullmatch(rule, target)
        or (parent != "keras_lightnets" and re.fullmatch(rule, parent))
    )


@functools.cache
def trees() -> list[tuple[pathlib.Path, str, ast.Module]]:
    return [(p, module_name(p), ast.parse(p.read_text("utf-8"))) for p in FILES]


@functools.cache
def imports() -> list[tuple[pathlib.Path, str, list[str]]]:
    """Return what every file imports anywhere in it."""
    return [
        (path, name, [t for node in ast.walk(tree) for t in imported(node)])
        for path, name, tree in trees()
    ]


def test_import_directions():
    wrong = []
    for path, name, targets in imports():
        rules = [r for prefix, r in MAY_IMPORT.items() if name.startswith(prefix)]
        for target in targets:
            ours = target.split(".")[0] == "keras_lightnets"
            if ours and rules and not allowed(rules[0], target):
                wrong.append(f"{path.relative_to(ROOT)}: {target}")
            if target.startswith("keras.src"):
                wrong.append(f"{path.relative_to(ROOT)}: {target}")
            if target.split(".")[0] in ("heads", "tasks", "tools"):
                wrong.append(f"{path.relative_to(ROOT)}: bare {target}")
    assert not wrong, "\n".join(wrong)


def test_no_backbone_imports_another():
    wrong = []
    for path, name, targets in imports():
        if not name.startswith("keras_lightnets.backbones."):
            continue
        for target in targets:
            if target.startswith("keras_lightnets.backbones"):
                wrong.append(f"{path.name}: {target}")
            if target.split(".")[0] in BACKENDS | {"keras"}:
                wrong.append(f"{path.name}: {target} (specs load without keras)")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_inside_functions():
    wrong = []
    for path, _, tree in trees():
        for node in tree.body:
            for target in imported(node):
                if target.split(".")[0] in HEAVY:
                    wrong.append(f"{path.relative_to(ROOT)}: {target}")
    assert not wrong, "\n".join(wrong)


def test_tensorflow_stays_in_tools_data_and_two_layers():
    allowed = ("keras_lightnets.tools", "keras_lightnets.tasks")
    kernels = ("keras_lightnets.layers.conv2d", "keras_lightnets.layers.norm")
    wrong = []
    for path, name, targets in imports():
        if name.startswith(allowed) or name in kernels:
            continue
        for target in targets:
            if target.split(".")[0] in BACKENDS:
                wrong.append(f"{path.relative_to(ROOT)}: {target}")
    assert not wrong, "\n".join(wrong)


def test_every_class_that_files_name_is_imported_with_the_package():
    import keras_lightnets

    registers = [
        name.removeprefix("keras_lightnets.")
        for path, name, _ in imports()
        if "@keras.saving.register_keras_serializable" in path.read_text("utf-8")
    ]
    assert sorted(registers) == sorted(keras_lightnets._REGISTERED)


def test_tf_keras_is_never_reached_through_tensorflow():
    wrong = [str(p) for p in FILES if re.search(r"\btf\.keras\b", p.read_text("utf-8"))]
    assert not wrong, "use keras or tf_keras"


@functools.cache
def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def own_lines(node: ast.FunctionDef) -> int:
    """Return the function's lines without its docstring."""
    size = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        size -= (first.end_lineno or 0) - first.lineno + 1
    return size


def test_sizes():
    wrong = []
    for path, _, tree in trees():
        lines = len(path.read_text("utf-8").splitlines())
        where = path.relative_to(ROOT)
        if lines > 500:
            wrong.append(f"{where}: {lines} lines, at most 500")
        for node in functions(tree):
            if own_lines(node) > 60:
                wrong.append(f"{where}: {node.name} has {own_lines(node)} lines")
            args = node.args
            count = len(args.posonlyargs) + len(args.args) + len(args.kwonlyargs)
            if count > 8 and node.name != "application":
                wrong.append(f"{where}: {node.name} takes {count} arguments")
    assert not wrong, "\n".join(wrong)


def test_one_channel_rounding_rule():
    found = [
        str(path.relative_to(ROOT))
        for path, _, tree in trees()
        for node in functions(tree)
        if "divisible" in node.name
    ]
    assert found == ["keras_lightnets/_channels.py"]


def test_public_objects_are_documented():
    wrong = []
    for path, _, tree in trees():
        if ast.get_docstring(tree) is None:
            wrong.append(f"{path.relative_to(ROOT)}: module")
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if public and not node.name.startswith("_"):
                if ast.get_docstring(node) is None:
                    wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not wrong, "\n".join(wrong)


def test_no_mutable_defaults_no_print_no_notes():
    wrong = []
    for path, _, tree in trees():
        where = path.relative_to(ROOT)
        for node in functions(tree):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if isinstance(default, ast.List | ast.Dict | ast.Set):
                    wrong.append(f"{where}: {node.name} has a mutable default")
        if re.search(r"\b(TODO|FIXME|HACK|XXX)\b", path.read_text("utf-8")):
            wrong.append(f"{where}: a note to self")
    assert not wrong, "\n".join(wrong)


def has_check(node: ast.AST) -> bool:
    for child in ast.walk(node):
        if isinstance(child, ast.Assert):
            return True
        if isinstance(child, ast.Call):
            name = ast.unparse(child.func)
            last = name.split(".")[-1]
            if name.endswith(("raises", "fail")) or last.startswith(
                ("assert", "check")
            ):
                return True
    return False


def test_every_test_can_fail():
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in functions(ast.parse(path.read_text("utf-8"))):
            if node.name.startswith("test_") and not has_check(node):
                wrong.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not wrong, "\n".join(wrong)


def test_setup_cfg_lists_every_package():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {module_name(p) for p in FILES if p.name == "__init__.py"}
    assert listed == found


@pytest.mark.parametrize("folder", ["tasks", "tools"])
def test_no_module_shadows_the_standard_library_or_a_dependency(folder):
    import sys

    taken = set(sys.stdlib_module_names) | HEAVY | BACKENDS
    taken |= {"keras", "numpy", "cv2", "typer", "rich", "pydantic", "pycocotools"}
    clash = [p.name for p in (ROOT / folder).glob("*") if p.stem in taken]
    assert not clash, f"a script in {folder}/ would import these instead: {clash}"
