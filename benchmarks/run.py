"Run every benchmark, or those whose names are given, and write a table of their closing lines to benchmarks/results/."
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

from tqdm import tqdm

from junkdna_nb.base.records import environment

HERE = Path(__file__).parent
RUNS = [("masks.py",), ("masks.py", "--levels", "9"), ("nm.py",), ("keep.py",), ("finetune.py", "--repeats", "2"), ("calibrated.py", "--repeats", "3"),
        ("scoring.py",), ("scoring.py", "--precision", "bf16"), ("scoring.py", "--context", "1", "--n", "8"), ("sweep.py",), ("calibration.py",)]
ONLY = sys.argv[1:]
if os.environ.get("JUNKDNA_MIRROR"):
    os.environ["JUNKDNA_MIRROR"] = str(Path(os.environ["JUNKDNA_MIRROR"]).resolve())
env, rows = environment(), []
target = HERE / "results" / ("-".join([str(date.today()), *ONLY]) + ".md")


def write():
    lines = [f"# Benchmarks, {target.name[:10]}", "",
             f"{env['cpu']}, {env['cores']} cores, Python {env['python']}, " + ", ".join(f"{k} {v}" for k, v in env["versions"].items() if k in ("torch", "numpy", "transformers")),
             f"commit {env['code']['commit']}{' with changes' if env['code']['dirty'] else ''}", "",
             "Ours and the anchor in one process, in turns, medians; the slow anchors take part in the first two rounds only.", ""]
    lines += ["| script | result |", "|---|---|", *[f"| `{name}` | {out[-1].replace(' ', ', ')} |" for name, out in rows], ""]
    for name, out in rows:
        lines += [f"## {name}", "", "```", *out, "```", ""]
    target.write_text("\n".join(lines))


for words in tqdm([r for r in RUNS if not ONLY or r[0].removesuffix(".py") in ONLY], desc="benchmarks"):
    done = subprocess.run([sys.executable, *words], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    rows.append((" ".join(words), [line for line in done.stdout.strip().splitlines() if line and not re.search(r"\d%\|", line)]))   # no progress bars
    write()   # what is measured is not lost when a later one fails

print(*[f"{name}: {out[-1]}" for name, out in rows], f"written to {target.relative_to(HERE.parent)}", sep="\n")
