"""Measure the notebooks as one reads them, print the table, name every fault.

`python tests/measure_notebooks.py` exits with 1 when a notebook breaks a rule.
The rules are those of CONTRIBUTING.md; ruff holds the others. Library notebooks are 10 to 59;
the pages (index, 00 to 09, 60) export nothing and must have their outputs stored.
"""

import ast
import json
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"
MEDIAN, MOST, COLUMNS, WORDS, IMAGE = 12, 40, 100, 25, 80_000
PAGE_IMAGE = 120_000  # a figure of many panels

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
RICH = {"image/png", "image/svg+xml", "text/html", "text/markdown"}


@dataclass
class Measure:
    "What was counted in one notebook"

    name: str
    lines: list = field(default_factory=list)  # of each exported cell
    words: int = 0  # of prose
    public: set = field(default_factory=set)  # names that the exported cells define
    shown: set = field(default_factory=set)  # names that the visible cells use
    outputs: int = 0
    rich: int = 0  # pictures and tables among the outputs
    faults: list = field(default_factory=list)

    @property
    def is_page(self) -> bool:
        return not re.match("[1-5]", self.name)

    @property
    def hidden(self) -> list:
        return sorted(self.public - self.shown)

    @property
    def median(self) -> float:
        return statistics.median(self.lines or [0])

    @property
    def words_per_cell(self) -> float:
        return self.words / max(1, len(self.lines))

    def row(self) -> str:
        "One line of the table"
        counts = (len(self.lines), self.median, max(self.lines or [0]), self.words_per_cell)
        counts += (len(self.public), len(self.hidden), self.outputs, self.rich, len(self.faults))
        return f"{self.name:26}" + "".join(f"{n:9.4g}" for n in counts)


HEADER = ("exported", "median", "longest", "words", "public", "hidden", "outputs", "rich", "faults")


def library_notebooks(folder=NBS) -> list:
    "Paths of the notebooks 10 to 59, by number"
    return sorted(folder.glob("[1-5][0-9]_*.ipynb"))


def pages(folder=NBS) -> list:
    "Paths of the notebooks that are read and not imported"
    return [*sorted(folder.glob("[06][0-9]_*.ipynb")), *folder.glob("index.ipynb")]


def parse(source):
    "The tree of a cell without its magic lines, and the words of those"
    magic = [line for line in source.splitlines() if line.lstrip().startswith(("!", "%"))]
    if magic and magic[0].startswith("%%"):
        return ast.parse(""), set(re.findall(r"\w+", source))
    source = re.sub(r"^(\s*)[!%].*$", r"\1pass", source, flags=re.M)
    return ast.parse(source), set(re.findall(r"\w+", " ".join(magic)))


def grows_private_class(node) -> bool:
    "Is this function a method, by `@patch`, of a class whose name begins with an underscore?"
    if not isinstance(node, ast.FunctionDef) or not node.args.args:
        return False
    of = getattr(node.args.args[0].annotation, "id", "")
    patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
    return patched and of.startswith("_")


def defined(tree) -> set:
    "Public names that the top level of a cell defines"
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not grows_private_class(node):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return {n for n in names if not n.startswith("_")}


def used(tree) -> set:
    "Names and attributes that occur in a cell; what is only imported or mentioned does not count"
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return names | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def holds(node, kinds) -> bool:
    "Is there a node of one of these kinds inside this one?"
    return any(isinstance(sub, kinds) for sub in ast.walk(node) if sub is not node)


def dense(tree):
    "(line, what) of every nested comprehension and nested conditional expression"
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            one = len(node.generators) == 1 and len(node.generators[0].ifs) < 2
            if not one or holds(node, COMPREHENSIONS):
                yield node.lineno, "nested comprehension"
        elif isinstance(node, ast.IfExp) and holds(node, ast.IfExp):
            yield node.lineno, "nested conditional expression"


def displays(source, tree) -> bool:
    "Does a cell certainly show something: a printed line, or a last expression that is no call?"
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Constant)):
        return not source.rstrip().endswith(";")
    statements = [n for n in tree.body if isinstance(n, ast.Expr)]
    calls = [n.value.func for n in statements if isinstance(n.value, ast.Call)]
    return any(isinstance(f, ast.Name) and f.id in ("print", "display") for f in calls)


def measure_exported(found, cell, source, tree):
    "Count the lines of an exported cell, the names it defines, and what is dense in it"
    if all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body):
        return
    at = f"{found.name}, cell {cell}"
    lines = [x for x in source.splitlines() if x.strip() and not x.startswith("#|")]
    found.lines.append(len(lines))
    found.public |= defined(tree)
    if len(lines) > MOST:
        found.faults.append(f"{at}: {len(lines)} exported lines, at most {MOST}")
    found.faults += [f"{at}, line {line}: {what}" for line, what in dense(tree)]


def measure_visible(found, cell, source, tree, outputs):
    "Count the outputs of a visible cell; note one that is missing, failed or large"
    at = f"{found.name}, cell {cell}"
    found.outputs += bool(outputs)
    if displays(source, tree) and not outputs:
        found.faults.append(f"{at}: shows something and has no stored output (make execute)")
    for output in outputs:
        data = output.get("data", {})
        found.rich += bool(RICH & set(data))
        if output["output_type"] == "error":
            found.faults.append(f"{at}: {output['ename']} in a stored output")
        size = len(data.get("image/png", "")) * 3 // 4
        most = PAGE_IMAGE if found.is_page else IMAGE
        if size > most:
            found.faults.append(f"{at}: a figure of {size:,} bytes, at most {most:,}")


def measure(path) -> Measure:
    "Everything that is counted in one notebook, with its faults"
    found = Measure(path.stem)
    for i, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            found.words += len(source.split())
        if cell["cell_type"] != "code":
            continue
        tree, magic = parse(source)
        found.faults += [
            f"{found.name}, cell {i}: {len(line)} columns, at most {COLUMNS}"
            for line in source.splitlines()
            if len(line) > COLUMNS
        ]
        if re.search(r"^#\|\s*exporti?\b", source, re.M):
            measure_exported(found, i, source, tree)
        elif not re.search(r"^#\|\s*hide\b", source, re.M):
            found.shown |= used(tree) | magic
            measure_visible(found, i, source, tree, cell.get("outputs", []))
    found.faults += whole(found)
    return found


def whole(found) -> list:
    "Faults of a notebook as a whole"
    faults = [f"{name} is public and no visible cell uses it" for name in found.hidden]
    if found.median > MEDIAN:
        faults.append(f"median of {found.median:g} lines in an exported cell, at most {MEDIAN}")
    if found.words_per_cell < WORDS:
        faults.append(f"{found.words_per_cell:.0f} words for an exported cell, at least {WORDS}")
    machinery = found.name.startswith("5")
    if not (found.outputs if machinery else found.rich):
        faults.append("shows " + ("no output" if machinery else "neither picture nor table"))
    return [f"{found.name}: {fault}" for fault in faults]


def report(folder=NBS) -> tuple:
    "The table as text, and the faults of all notebooks"
    measures = [measure(path) for path in pages(folder) + library_notebooks(folder)]
    table = [f"{'notebook':26}" + "".join(f"{h:>9}" for h in HEADER)]
    table += [m.row() for m in measures]
    faults = []
    for m in measures:
        faults += m.faults
    return "\n".join(table), faults


if __name__ == "__main__":
    table, faults = report()
    print(table, *faults, sep="\n")
    sys.exit(bool(faults))
