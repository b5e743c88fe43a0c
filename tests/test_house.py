"The house: what the notebooks look like, who imports whom, and what is light."

import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT
from measure_notebooks import NBS, library_notebooks, measure, report

CHAPTERS = {
    "1": {"base"},
    "2": {"compression"},
    "3": {"transfer", "decoding"},
    "4": {"evidence"},
    "5": {"machinery"},
}
HEAVY = {"torch", "transformers", "datasets", "pandas", "scipy", "pyarrow", "papermill", "dask"}
LIGHT = "config storage records packages models tasks questions experiments runner grid sweep cli"


def exports(path):
    "The module a notebook exports to, as `chapter.name`; None if it exports nothing"
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    found = re.search(r"^#\|\s*default_exp\s+(\S+)", text, re.M)
    return found and found[1]


def modules(folder=NBS):
    "module -> number of its notebook"
    numbers = {exports(p): int(p.name[:2]) for p in library_notebooks(folder)}
    return {module: number for module, number in numbers.items() if module}


def imported(source, module):
    "(line, module of the package) of every import in a file, lazy ones inside functions too"
    package = ["junkdna_nb", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith("junkdna_nb."):
                yield node.lineno, name.removeprefix("junkdna_nb.")


def upward(source, module, numbers):
    "Imports of a module that do not go to a notebook with a lower number"
    return [
        f"{module}, line {line}: {name} is {numbers[name]}, not below {numbers[module]}"
        for line, name in imported(source, module)
        if name != module and numbers.get(name, -1) >= numbers[module]
    ]


def test_notebooks_keep_to_the_rules():
    table, faults = report()
    print(table)
    assert not faults, "\n".join(faults)


def test_a_notebook_exports_to_its_chapter():
    wrong = [
        (path.name, exports(path))
        for path in library_notebooks()
        if (exports(path) or "?").split(".")[0] not in CHAPTERS[path.name[0]]
        or (exports(path) or "?").split(".")[-1] != path.stem[3:]
    ]
    assert not wrong


def test_imports_go_to_lower_numbers_only():
    numbers, wrong = modules(), []
    for module in numbers:
        path = ROOT / "junkdna_nb" / (module.replace(".", "/") + ".py")
        wrong += upward(path.read_text(), module, numbers)
    assert not wrong, "\n".join(wrong)


def loaded_by(code):
    "What of the heavy packages a fresh process has loaded after this code"
    code += f"\nimport sys; print(*sorted({HEAVY} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert told.returncode == 0, told.stderr
    return told.stdout.split()


def test_light_modules_import_nothing_heavy():
    files = sorted((ROOT / "junkdna_nb").rglob("*.py"))
    names = [p.relative_to(ROOT).with_suffix("") for p in files if p.stem in LIGHT.split()]
    assert len(names) >= 8
    assert not loaded_by("\n".join(f"import {'.'.join(n.parts)}" for n in names))


def test_a_configuration_loads_nothing_heavy():
    code = "from junkdna_nb.base.experiments import GlueConfig; GlueConfig()\n"
    code += "from junkdna_nb.base.tasks import TASKS; len(TASKS)"
    assert not loaded_by(code)


@pytest.mark.parametrize(
    "line, faults",
    [
        ("from .warm import Slot", 0),
        ("from ..base.config import StudyError", 0),
        ("def later():\n    from ..machinery import sweep", 1),
        ("def later():\n    import junkdna_nb.machinery.sweep", 1),
        ("from junkdna_nb.machinery.cli import main", 1),
        ("from .sweep import run_tasks", 1),
        ("import json", 0),
    ],
)
def test_upward_imports_are_found(line, faults):
    numbers = {"base.config": 10, "machinery.warm": 51, "machinery.grid": 52}
    numbers |= {"machinery.sweep": 53, "machinery.cli": 54}
    assert len(upward(line, "machinery.grid", numbers)) == faults


EXPORTED = "#| export\ndef area(r):\n    return 3 * r * r"
NESTED = "#| export\ndef flat(rows):\n    return [x for row in rows for x in row]"
CHAINED = '#| export\ndef sign(x):\n    return "+" if x > 0 else "-" if x else "0"'
LONG = "#| export\ndef much():\n" + "    x = 1\n" * 40
PROSE = "word " * 30
TABLE = {"output_type": "display_data", "data": {"text/html": "<table></table>"}, "metadata": {}}


def written(folder, *cells, prose=PROSE, outputs=(TABLE,)):
    "The measure of a notebook of these code cells, the outputs at the last one"
    v4 = nbformat.v4
    cells = [v4.new_code_cell(c) for c in cells]
    cells[-1].outputs = [nbformat.from_dict(o) for o in outputs]
    nb = v4.new_notebook(cells=[v4.new_markdown_cell(prose), *cells])
    nbformat.write(nb, folder / "20_toy.ipynb")
    return measure(folder / "20_toy.ipynb")


@pytest.mark.parametrize(
    "cells, fault",
    [
        ((EXPORTED, "area(2)"), None),
        ((EXPORTED, "!junkdna area"), None),
        ((EXPORTED, "#| hide\narea(2)", "1 + 1"), "no visible cell uses it"),
        ((EXPORTED, "from x import area  # area\n1 + 1"), "no visible cell uses it"),
        ((EXPORTED, "print(area(2))", "area(1)"), "no stored output"),
        ((EXPORTED, "area(2) + 1", "area(1)"), "no stored output"),
        ((EXPORTED, "area(2) + 1;", "area(1)"), None),
        ((NESTED, "flat([])"), "nested comprehension"),
        ((CHAINED, "sign(1)"), "nested conditional expression"),
        ((LONG, "much()"), "41 exported lines"),
        ((EXPORTED, "area(2)  # " + "x" * 100), "111 columns"),
    ],
)
def test_measure_finds_the_fault(tmp_path, cells, fault):
    faults = "\n".join(written(tmp_path, *cells).faults)
    assert fault in faults if fault else not faults


def test_measure_finds_faults_of_the_whole(tmp_path):
    def faults(**how):
        return "\n".join(written(tmp_path, EXPORTED, "area(2)", **how).faults)

    assert "words for an exported cell" in faults(prose="few words")
    assert "neither picture nor table" in faults(outputs=())
    failed = {"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}
    assert "KeyError in a stored output" in faults(outputs=(TABLE, failed))
    large = {"output_type": "display_data", "data": {"image/png": "A" * 120_000}, "metadata": {}}
    assert "a figure of 90,000 bytes" in faults(outputs=(large,))
