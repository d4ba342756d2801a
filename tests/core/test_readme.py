"""README's tables are what the registry says."""

import importlib.util


def test_tables_are_current(root):
    path = root / "tools" / "convert" / "make_readme.py"
    spec = importlib.util.spec_from_file_location("make_readme", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (root / "README.md").read_text("utf-8")
    assert script.render(text) == text, "run: make readme"


def test_benchmark_page_is_rendered_from_its_data(root):
    path = root / "benchmarks" / "page.py"
    spec = importlib.util.spec_from_file_location("page", path)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    import json

    stored = json.loads((root / "docs" / "benchmarks.json").read_text("utf-8"))
    shown = (root / "docs" / "benchmarks.md").read_text("utf-8")
    assert page.render(stored) == shown, "run: python benchmarks/page.py"
