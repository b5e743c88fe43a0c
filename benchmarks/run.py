"Run all benchmarks, or those named; their closing lines make a table in benchmarks/results/."

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

from tqdm import tqdm

from junkdna_nb.base.records import environment

HERE = Path(__file__).parent
RUNS = [
    ("masks.py",),
    ("masks.py", "--levels", "9"),
    ("nm.py",),
    ("keep.py",),
    ("finetune.py", "--repeats", "2"),
    ("calibrated.py", "--repeats", "3"),
    ("scoring.py",),
    ("scoring.py", "--precision", "bf16"),
    ("scoring.py", "--context", "1", "--n", "8"),
    ("sweep.py",),
    ("calibration.py",),
    ("scale.py", "--quick", "1"),
]


def heading(target, env):
    "The first lines of a report: machine, versions, commit"
    versions = [f"{k} {env['versions'].get(k)}" for k in ("torch", "numpy", "transformers")]
    commit = env["code"]["commit"] + (" with changes" if env["code"]["dirty"] else "")
    return [
        f"# Benchmarks, {target.name[:10]}",
        "",
        f"{env['cpu']}, {env['cores']} cores, Python {env['python']}, {', '.join(versions)}",
        f"commit {commit}",
        "",
        "Ours and the anchor in one process, in turns, medians; the slow anchors take part in the "
        "first two rounds only.",
        "",
    ]


def write(target, env, rows):
    "The report on the benchmarks that are done: a table of closing lines, then all output"
    lines = [*heading(target, env), "| script | result |", "|---|---|"]
    lines += [f"| `{name}` | {out[-1].replace(' ', ', ')} |" for name, out in rows]
    for name, out in rows:
        lines += ["", f"## {name}", "", "```", *out, "```"]
    target.write_text("\n".join([*lines, ""]))


def output(words):
    "The lines that a benchmark prints, progress bars left out; the end if it fails"
    done = subprocess.run([sys.executable, *words], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    lines = done.stdout.strip().splitlines()
    return [line for line in lines if line and not re.search(r"\d%\|", line)]


if __name__ == "__main__":
    only = sys.argv[1:]
    if os.environ.get("JUNKDNA_MIRROR"):
        os.environ["JUNKDNA_MIRROR"] = str(Path(os.environ["JUNKDNA_MIRROR"]).resolve())
    env, rows = environment(), []
    target = HERE / "results" / ("-".join([str(date.today()), *only]) + ".md")
    chosen = [r for r in RUNS if not only or r[0].removesuffix(".py") in only]
    for words in tqdm(chosen, desc="benchmarks"):
        rows.append((" ".join(words), output(words)))
        write(target, env, rows)  # what is measured is not lost when a later one fails
    print(*[f"{name}: {out[-1]}" for name, out in rows], sep="\n")
    print(f"written to {target.relative_to(HERE.parent)}")
