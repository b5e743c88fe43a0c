"""Are the verdicts calibrated? Many simulated studies through the code that judges the real one.

A study has nine tasks (four with three seeds, five with one), three axes of four levels each, and outcomes that are correlated between the dense and the compressed model as ours are: an item has a strength of its own,
a training run shifts all of them a little, and every outcome has noise of its own. Cases:

null       compression costs nothing anywhere (claims that nothing happens are then true)
effect     the drop grows with sparsity, more on harder tasks and levels
reversed   compression helps, more on harder tasks and levels
noisy      the effect, on 40 items
margin     frozen and rounded models lose exactly the margin of the equivalence tests: 'supported' would be wrong
"""
import sys
from collections import Counter, defaultdict

import numpy as np
from common import arguments, closing
from scipy.stats import norm
from tqdm import tqdm

from junkdna_nb import claims
from junkdna_nb.claims import MARGIN, Study, judge
from junkdna_nb.difficulty import Unit

SPARSITIES = (0.2, 0.4, 0.6, 0.8, 0.9)
ALIKE, BETWEEN_RUNS = 0.7, 0.008   # correlation of outcomes of one item; standard deviation of a training run's accuracy
DENSE = np.linspace(0.9, 0.68, 9)  # easy to hard


def unit(rng, name, strength, dense, drops, chance, seeds, human=None, bits=()):
    "drops: true drop of the accuracy at each amount"
    def outcomes(p):
        p = np.clip(p + rng.normal(0, BETWEEN_RUNS) * (len(seeds) > 0), 0.001, 0.999)
        return (ALIKE ** 0.5 * strength + (1 - ALIKE) ** 0.5 * rng.normal(size=len(strength)) < norm.ppf(p)).astype(float)[:, None]
    return Unit(name, "accuracy", chance, tuple(f"{name if human else ''}{i}" for i in range(len(strength))), tuple(seeds) or (41,), SPARSITIES[-len(drops):],
                np.stack([outcomes(dense) for _ in seeds or [41]]), np.stack([[outcomes(dense - d) for _ in seeds or [41]] for d in drops]), human, "simulated", (), bits)


class Simulated(Study):
    "Units from a random generator instead of records"
    def __init__(self, case, seed, items):
        self.case, self.rng, self.n, self.records = case, np.random.default_rng(seed), items, []
        self.size = dict(null=0.0, effect=1.0, noisy=1.0, reversed=-1.0, margin=1.0)[case]

    def drops(self, hardness, room, scale=1.0):
        return [self.size * scale * room * s ** 2 * (0.15 + 0.35 * hardness) for s in SPARSITIES]

    def tasks(self, mode="sparse", method="magnitude", pattern="unstructured", **_):
        if (method, pattern) != ("magnitude", "unstructured"):
            return []
        out = []
        for i, dense in enumerate(DENSE):
            room, hard = dense - 0.5, i / 8
            if mode in ("sparse", "sparse_to_dense"):
                drops = self.drops(hard, room, 1.0 if mode == "sparse" else 0.7)
            elif self.case == "margin":
                drops = [MARGIN * room] * 5 if mode == "quantized" else [MARGIN * room * (2 * s if s == 0.2 else 1) for s in SPARSITIES]
            elif self.case == "reversed":
                drops = [4 * MARGIN * room] * 5     # what should do nothing does something
            else:
                drops = [0.0] * 5
            bits = tuple(16 * (1 - s) for s in SPARSITIES)
            out.append(unit(self.rng, f"task{i}", self.rng.normal(size=self.n), dense, drops, 0.5, (41, 42, 43) if i % 2 else (41,), 0.97, bits))
        return out

    def levels(self, experiment, method="magnitude", pattern="unstructured", **_):
        if (method, pattern) != ("magnitude", "unstructured"):
            return []
        names = {"03_options": [2, 4, 6, 8], "04_context": [0, 1, 5, 20], "05_kshot": [0, 1, 4, 8], "06_qa_format": ["choice", "open"]}[experiment]
        hard = {"03_options": [0, 1 / 3, 2 / 3, 1], "04_context": [1, 0, 0.5, 1], "05_kshot": [1, 2 / 3, 1 / 3, 0], "06_qa_format": [0, 1]}[experiment]
        strength = self.rng.normal(size=self.n)
        return [("simulated", [unit(self.rng, name, strength, 0.8 - 0.1 * h, self.drops(h, 0.6 - 0.1 * h), 0.2, ()) for name, h in zip(names, hard)])]

    def shares(self, *_):
        strength = self.rng.normal(size=self.n)
        return [("simulated", [unit(self.rng, f"{s:.0%}", strength, 0.85 - 0.1 * h, self.drops(h, 0.35 - 0.1 * h), 0.5, (41, 42, 43)) for s, h in zip((1, 0.5, 0.25, 0.1), (0, 1 / 3, 2 / 3, 1))])]

    def groups(self, *_, **__):
        return []


def truth(case):
    "The value each interval should cover: from one study with very many items"
    global BETWEEN_RUNS
    claims.resample.__defaults__, noise, BETWEEN_RUNS = (20, 0, 0.0), BETWEEN_RUNS, 0.0
    found = {v.claim: v.estimate for v in judge(Simulated(case, 0, 300_000)) if v.estimate is not None}
    BETWEEN_RUNS = noise
    return found


args = arguments(repeats=1, studies=200, items=400, resamples=1000)
exact = {case: truth(case) for case in ("null", "effect", "reversed")}
claims.resample.__defaults__ = (args.resamples, 0, 0.0)
counts, raw, covered = defaultdict(Counter), defaultdict(Counter), defaultdict(Counter)
for case in ("null", "effect", "reversed", "noisy", "margin"):
    for study in tqdm(range(args.studies), desc=case, file=sys.stderr):
        for v in judge(Simulated(case, [study, len(case)], 40 if case == "noisy" else args.items)):
            if v.estimate is None:
                continue
            counts[case, v.claim][v.verdict] += 1
            p = v.p if v.equivalent is None else v.equivalent
            raw[case, v.claim]["supported"] += p < 0.05 and (v.equivalent is not None or v.estimate > 0)
            if case in exact and "tau" not in v.statistic:
                covered[case, v.claim]["yes" if v.low <= exact[case][v.claim] <= v.high else "no"] += 1

print(f"{args.studies} studies of each case, {args.items} items a task ({40} when noisy), {args.resamples} resamples; a share of 5 % has a simulation error of {100 * (0.05 * 0.95 / args.studies) ** 0.5:.1f} points\n")
print("| case | claim | supported % | contradicted % | inconclusive % | supported % before Holm | coverage of the 95 % interval % |\n|---|---|---|---|---|---|---|")
for (case, claim), c in counts.items():
    n, cover = sum(c.values()), covered[case, claim]
    print(f"| {case} | {claim} | {100 * c['supported'] / n:.1f} | {100 * c['contradicted'] / n:.1f} | {100 * c['inconclusive'] / n:.1f} | {100 * raw[case, claim]['supported'] / n:.1f} | {100 * cover['yes'] / sum(cover.values()):.1f} |" if cover else
          f"| {case} | {claim} | {100 * c['supported'] / n:.1f} | {100 * c['contradicted'] / n:.1f} | {100 * c['inconclusive'] / n:.1f} | {100 * raw[case, claim]['supported'] / n:.1f} | |")
nothing = ("C3 frozen", "C6 flat")
false_alarm = max([raw["null", k]["supported"] / args.studies for c, k in counts if c == "null" and k not in nothing] + [raw["margin", k]["supported"] / args.studies for k in nothing if ("margin", k) in raw])
coverage = [c["yes"] / sum(c.values()) for c in covered.values()]
power = [counts["effect", k]["supported"] / args.studies for c, k in counts if c == "effect"]
closing(studies=args.studies, false_supported=false_alarm, coverage_low=min(coverage), coverage_high=max(coverage), power_median=float(np.median(power)))
