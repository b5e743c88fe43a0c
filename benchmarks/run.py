"""Run all benchmarks, or those named, and write a report for this kind of machine.

Reports are results/DATE-KIND.md. The table in README.md holds the newest figure of every kind.
"""

import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from common import features, kind
from tqdm import tqdm

from junkdna_nb.base.records import environment

HERE = Path(__file__).parent
RUNS = [
    ("masks.py",),
    ("masks.py", "--levels", "9"),
    ("nm.py",),
    ("keep.py",),
    ("finetune.py", "--repeats", "2", "--n", "640"),
    ("calibrated.py", "--method", "wanda", "--windows", "8"),
    ("calibrated.py", "--method", "sparsegpt", "--windows", "8", "--repeats", "1"),
    ("scoring.py", "--precision", "fp32", "--n", "24"),
    ("scoring.py", "--precision", "bf16", "--n", "24"),
    ("scoring.py", "--context", "1", "--n", "8", "--precision", "fp32"),
    ("sweep.py",),
    ("calibration.py", "--studies", "40"),
    ("scale.py", "--quick", "1"),
]
LIMIT = 300  # seconds that a benchmark may take
FIGURES = [  # script and its first options -> figure, what it is, what it must be
    ("masks.py", "speedup_authors", "masks of 302 M weights, against sorting them", ">= 20"),
    (
        "masks.py",
        "extra_memory",
        "memory beside weights and masks, share of the weights",
        "<= 0.10",
    ),
    ("masks.py --levels", "ratio_to_one", "nine sparsities at once, in times of one", "<= 2.0"),
    ("nm.py", "speedup", "4:8 masks, against a loop over groups of columns", ">= 5"),
    ("keep.py", "speedup", "keeping masks, against multiplying and reassigning", ">= 2"),
    ("keep.py", "share_of_step", "keeping masks, share of a training step", "<= 0.03"),
    ("finetune.py", "speedup", "fine-tuning, against the authors' way", ">= 2 (bf16)"),
    ("finetune.py", "per_second_sentences", "sentences a second in fine-tuning", ""),
    ("calibrated.py", "speedup_wanda_two_of_four", "Wanda 2:4, against the formula", ">= 1.3"),
    ("calibrated.py", "speedup_sparsegpt_half", "SparseGPT 50 %, against the formula", ""),
    ("scoring.py", "speedup", "scoring options, against lm-evaluation-harness", ">= 5"),
    ("scoring.py", "max_abs_diff", "its largest difference in fp32", "< 1e-3"),
    ("scoring.py --context", "speedup", "the same about one long passage", ">= 5"),
    ("scoring.py --context", "speedup_answers", "free answers of 04, against one by one", ">= 2"),
    ("scale.py", "time_exponent", "growth of magnitude and N:M with the weights", "<= 1.1"),
    (
        "scale.py",
        "peak_over_weights",
        "their peak memory, masks included, over bf16 weights",
        "<= 0.35",
    ),
    ("sweep.py", "overhead", "a sweep's time that is no work of its runs", "<= 0.25"),
]


def heading(target, env):
    "The first lines of a report: machine, versions, commit"
    versions = [f"{k} {env['versions'].get(k)}" for k in ("torch", "numpy", "transformers")]
    commit = env["code"]["commit"] + (" with changes" if env["code"]["dirty"] else "")
    return [
        f"# Benchmarks, {target.name[:10]}",
        "",
        f"{env['cpu']} ({' '.join(features())}), {env['cores']} cores, Python {env['python']}, "
        f"{', '.join(versions)}",
        f"kind {kind()}",
        f"commit {commit}",
        "",
        "Ours and the anchor in one process, in turns, medians; the slow anchors take part in the "
        "first two rounds only.",
        "",
    ]


def write(target, env, rows):
    "The report on the benchmarks that are done: a table of closing lines, then all output"
    lines = [*heading(target, env), "| script | seconds | result |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {took:.0f} | {out[-1].replace(' ', ', ')} |" for name, took, out in rows
    ]
    for name, _, out in rows:
        lines += ["", f"## {name}", "", "```", *out, "```"]
    target.write_text("\n".join([*lines, ""]))


def output(words):
    "(seconds, the lines that a benchmark prints without progress bars); the end if it fails"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=HERE, capture_output=True, text=True)
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    if took > LIMIT:
        print(f"{' '.join(words)} took {took:.0f} s (allowed: {LIMIT})", file=sys.stderr)
    lines = done.stdout.strip().splitlines()
    return took, [line for line in lines if line and not re.search(r"\d%\|", line)]


def reported(path):
    "(kind, words of a script and its options -> closing figures) of a report"
    text, found = path.read_text(), {}
    for name, result in re.findall(r"^\| `([^`]+)` \|(?: [0-9]+ \|)? (\S+=.*) \|$", text, re.M):
        found[name] = dict(pair.split("=", 1) for pair in result.split(", "))
    machine = re.search(r"^kind (\w+)$", text, re.M)
    return machine and machine[1], found


def newest(reports, script, figure):
    "The newest of a figure in the reports of one kind; in fp32 where a script has both"
    for found in reports:
        for name, figures in found.items():
            fits = name == script or name.startswith(f"{script} ")
            other = "--" not in script and ("--levels" in name or "--context" in name)
            if (
                fits
                and not other
                and figures.get("precision", "fp32") == "fp32"
                and figure in figures
            ):
                return figures[figure]
    return ""


def marked(value, must, machine):
    "A figure, in bold if it misses what it must on this kind of machine"
    found = re.match(r"(>=|<=|<) ([\de.+-]+)(?: \((\w+)\))?$", must)
    if not value or not found or found[3] not in (None, machine):
        return value
    sign, limit = found[1], float(found[2])
    good = float(value) >= limit if sign == ">=" else float(value) <= limit
    return value if good else f"**{value}**"


def table():
    "benchmarks/README.md: the figures of all kinds of machines side by side"
    kinds = {}
    # the newest first, and of one day the repetition of a single script
    for path in sorted((HERE / "results").glob("*.md"), key=lambda p: p.stem, reverse=True):
        machine, found = reported(path)
        if machine:
            kinds.setdefault(machine, []).append(found)
    names = sorted(kinds)
    lines = [
        "# Benchmarks",
        "",
        "`make bench` runs them all and `make bench ONLY=masks` one, most in under five minutes, "
        "and writes this table from the reports in `results/`. Machines are grouped by their best "
        "instruction set: bf16 products, else AVX-512 or AVX2. All had two cores. Anchors are "
        "re-implementations of the described methods, or the tools named. A figure in bold misses "
        "what it must.",
        "",
        f"| what | must | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for script, figure, what, must in FIGURES:
        values = [marked(newest(kinds[name], script, figure), must, name) for name in names]
        lines.append(f"| {what} (`{script}`, `{figure}`) | {must} | {' | '.join(values)} |")
    (HERE / "README.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    only = sys.argv[1:]
    if os.environ.get("JUNKDNA_MIRROR"):
        os.environ["JUNKDNA_MIRROR"] = str(Path(os.environ["JUNKDNA_MIRROR"]).resolve())
    env, rows = environment(), []
    target = HERE / "results" / ("-".join([str(date.today()), kind(), *only]) + ".md")
    chosen = [r for r in RUNS if not only or r[0].removesuffix(".py") in only]
    if kind() not in ("bf16", "gpu"):  # where bf16 is emulated the product does not use it
        chosen = [r for r in chosen if "bf16" not in r]
    for words in tqdm(chosen, desc="benchmarks"):
        rows.append((" ".join(words), *output(words)))
        write(target, env, rows)  # what is measured is not lost when a later one fails
    table()
    print(*[f"{name}: {out[-1]}" for name, _, out in rows], sep="\n")
    print(f"written to {target.relative_to(HERE.parent)} and benchmarks/README.md")
