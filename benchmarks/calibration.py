"""Are the verdicts calibrated? Many simulated studies through the code that judges the real one.

A study has nine tasks (four with three seeds, five with one; the hardest is 10 points above chance), three axes of four levels each, and outcomes that are correlated between the dense and the compressed model as ours are: an item has a strength of its own,
a training run shifts all of them a little, and every outcome has noise of its own. Cases:

null       compression costs nothing anywhere (claims that nothing happens are then true)
effect     the drop grows with sparsity, more on harder tasks and levels
reversed   compression helps, more on harder tasks and levels
noisy      the effect, on 40 items
margin     frozen and rounded models lose exactly the margin of the equivalence tests: 'supported' would be wrong
equal      as null, and all tasks are equally difficult: a lucky dense run makes its task look easy and the drop look large
one seed   as null, and no task has several seeds: what depends on the luck of training cannot be decided
"""
import os
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from common import arguments, closing
from statistics import NormalDist
from tqdm import tqdm

from junkdna_nb import claims
from junkdna_nb.claims import MARGIN, Study, judge
from junkdna_nb.difficulty import Unit, pooled, resample, task_weights

CASES = "null", "effect", "reversed", "noisy", "margin", "equal", "one seed"
SPARSITIES = (0.2, 0.4, 0.6, 0.8, 0.9)
BITS = (0.5, 0.625, 0.75, 0.8125, 0.875)   # of 16 bits removed: 8, 6, 4, 3, 2 bits
ALIKE = 0.7                        # correlation of the outcomes of one item
BETWEEN_RUNS = 0.008               # standard deviation of a training run's accuracy
DENSE = np.linspace(0.9, 0.6, 9)   # easy to hard


def unit(rng, name, strength, dense, drops, chance, seeds, human=None, amounts=SPARSITIES, between_runs=BETWEEN_RUNS):
    "drops: true drop of the accuracy at each amount; without seeds nothing is trained"
    def outcomes(p):
        p = np.clip(p + rng.normal(0, between_runs) * (len(seeds) > 0), 0.001, 0.999)
        return (ALIKE ** 0.5 * strength + (1 - ALIKE) ** 0.5 * rng.normal(size=len(strength)) < NormalDist().inv_cdf(p)).astype(float)[:, None]
    return Unit(name, "accuracy", chance, tuple(f"{name if human else ''}{i}" for i in range(len(strength))), tuple(seeds) or (41,), amounts,
                np.stack([outcomes(dense) for _ in seeds or [41]]), np.stack([[outcomes(dense - d) for _ in seeds or [41]] for d in drops]), human, "simulated", (), tuple(16 * (1 - a) for a in amounts))


class Simulated(Study):
    "Units from a random generator instead of records"
    def __init__(self, case, seed, items, between_runs=BETWEEN_RUNS):
        self.case, self.n, self.records, self.notes, self.between_runs = case, items, [], [], between_runs
        self.rng = np.random.default_rng([seed, CASES.index(case)])
        self.size = dict(effect=1.0, noisy=1.0, reversed=-1.0, margin=1.0).get(case, 0.0)

    def drops(self, hardness, room, scale=1.0):
        return [self.size * scale * room * s ** 2 * (0.15 + 0.35 * hardness) for s in SPARSITIES]

    def _tasks(self, mode="sparse", method="magnitude", pattern="unstructured", **_):
        if (method, pattern) != ("magnitude", "unstructured"):
            return []
        out = []
        for i, dense in enumerate(np.full(9, 0.78) if self.case == "equal" else DENSE):
            room, hard = dense - 0.5, i / 8
            if mode in ("sparse", "sparse_to_dense"):
                drops = self.drops(hard, room, 1.0 if mode == "sparse" else 0.7)
            elif self.case == "margin":
                drops = [MARGIN * room] * 5
            elif self.case == "reversed":
                drops = [4 * MARGIN * room] * 5     # what should do nothing does something
            else:
                drops = [0.0] * 5
            if self.case == "effect" and mode == "quantized":
                drops = [0.0, 0.0, 0.0, 0.15 * room, 0.3 * room]   # fewest bits cost the same share everywhere
            seeds = (41, 42, 43) if i % 2 and self.case != "one seed" else (41,)
            out.append(unit(self.rng, f"task{i}", self.rng.normal(size=self.n), dense, drops, 0.5, seeds, 0.97, BITS if mode == "quantized" else SPARSITIES, self.between_runs))
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
        units = [unit(self.rng, f"{s:.0%}", strength, 0.85 - 0.1 * h, self.drops(h, 0.35 - 0.1 * h), 0.5, (41, 42, 43), between_runs=self.between_runs) for s, h in zip((1, 0.5, 0.25, 0.1), (0, 1 / 3, 2 / 3, 1))]
        return [("simulated", self.spread(units))]

    def models(self, *_):
        return []

    def longer(self, *_):
        return []

    def groups(self, *_, **__):
        return []


def judged(case, seed, items, resamples, between_runs=BETWEEN_RUNS):
    """(verdicts on one simulated study, {claim: (weights of the tasks, their values)} of the means over tasks)"""
    means = []
    def noted(samples):
        means.append((task_weights(samples), np.asarray(samples)[:, 0]))
        return pooled(samples)
    before, resample.__defaults__, claims.pooled = resample.__defaults__, (resamples, 0), noted
    try:
        verdicts = [v for v in judge(Simulated(case, seed, items, between_runs)) if v.estimate is not None]
    finally:
        resample.__defaults__, claims.pooled = before, pooled   # a test of the real records may come next
    return verdicts, {v.claim: m for v in verdicts for m in means if np.isclose(m[0] @ m[1], v.estimate, rtol=1e-9, atol=0)}


def truth(case, items):
    "What each interval should cover, from one study with very many items and no luck in training: an estimate, or the values of the tasks that are to be averaged"
    verdicts, means = judged(case, 0, items, 20, 0.0)
    return {v.claim: means[v.claim][1] if v.claim in means else v.estimate for v in verdicts}


def one(job):
    os.environ["OMP_NUM_THREADS"] = "1"
    return judged(*job)


def calibrate(studies, items=400, resamples=1000, workers=os.cpu_count(), cases=CASES, exact_items=60_000):
    "(rows for the table, the closing figures)"
    exact = {case: truth(case, exact_items) for case in cases if case in ("null", "effect", "reversed")}
    counts, raw, covered = defaultdict(Counter), defaultdict(Counter), defaultdict(Counter)
    with ProcessPoolExecutor(workers) as pool:
        for case in cases:
            jobs = [(case, seed, 40 if case == "noisy" else items, resamples) for seed in range(1, studies + 1)]
            for verdicts, means in tqdm(pool.map(one, jobs), total=studies, desc=case, file=sys.stderr):
                for v in verdicts:
                    counts[case, v.claim][v.verdict] += 1
                    p = v.p if v.equivalent is None else v.equivalent
                    raw[case, v.claim]["supported"] += p < 0.05 and not v.unknown and (v.equivalent is not None or v.estimate > 0)
                    if v.claim in exact.get(case, ()) and "tau" not in v.statistic and not v.unknown:
                        value = exact[case][v.claim]
                        if np.ndim(value):
                            if v.claim not in means or len(means[v.claim][0]) != len(value):
                                continue   # a task was not above chance in this study
                            value = means[v.claim][0] @ value
                        covered[case, v.claim]["yes" if v.low <= value <= v.high else "no"] += 1
    share = lambda c, k: 100 * c[k] / studies
    rows = [(case, claim, *(share(c, k) for k in ("supported", "contradicted", "inconclusive")), share(raw[case, claim], "supported"), 100 * covered[case, claim]["yes"] / covered[case, claim].total() if covered[case, claim] else None) for (case, claim), c in counts.items()]
    nothing = ("C3 frozen", "C6 flat")   # claims that nothing happens
    false = [(r[2], r[5]) for r in rows if (r[0] in ("null", "equal", "one seed") and r[1] not in nothing) or (r[0] == "margin" and r[1] in nothing)]
    wrong = [r[3] for r in rows if r[0] in ("null", "equal", "one seed")] + [r[3] for r in rows if r[0] == "effect" and r[1] not in nothing]
    coverage = [r[6] for r in rows if r[6] is not None]
    return rows, dict(false_supported=max(f for f, _ in false), false_contradicted=max(wrong), false_before_holm=max(f for _, f in false), false_before_holm_mean=float(np.mean([f for _, f in false])), coverage_low=min(coverage), coverage_high=max(coverage), coverage_median=float(np.median(coverage)), power_median=float(np.median([r[2] for r in rows if r[0] == "effect"])))


if __name__ == "__main__":
    args = arguments(repeats=1, studies=200, items=400, resamples=2000, workers=os.cpu_count())
    rows, figures = calibrate(args.studies, args.items, args.resamples, args.workers)
    print(f"{args.studies} studies of each case, {args.items} items a task (40 when noisy), {args.resamples} resamples; a share of 5 % has a simulation error of {100 * (0.05 * 0.95 / args.studies) ** 0.5:.1f} points\n")
    print("| case | claim | supported % | contradicted % | inconclusive % | supported % before Holm | coverage of the 95 % interval % |\n|---|---|---|---|---|---|---|")
    for case, claim, *shares, cover in rows:
        print(f"| {case} | {claim} | " + " | ".join(f"{x:.1f}" for x in shares) + f" | {'' if cover is None else f'{cover:.1f}'} |")
    closing(studies=args.studies, **figures)
