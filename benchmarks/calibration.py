"""Are the verdicts calibrated? Whole studies of the planned design, with tasks redrawn, through the code that judges the real one.

Every study draws its tasks anew: a dense signal (Fisher z), a loss, items of their own strength, training runs that differ.
An item is answered right by a run if its strength and a noise of the run's own exceed what the run's accuracy asks for;
so runs of one task agree on most items, as real ones do. Worlds:

none       compression costs nothing (then claims that nothing happens are true)
log_odds   every task loses the same log-odds of accuracy, whatever its difficulty
points     every task loses the same accuracy
effect     harder tasks and levels lose more on every scale: tau 0.4 over tasks, mean effects half of those seen on old tasks
reversed   easier tasks and levels lose more, and what should cost something helps
noisy      as none, with runs that differ three times as much and one in twenty that has learnt nothing
margin     as log_odds, and frozen and rounded models lose exactly the margin of equivalence
"""

import os
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from common import arguments, closing
from scipy.stats import norm
from tqdm import tqdm

from junkdna_nb.evidence.claims import (
    CLAIMS,
    DATA_LEVELS,
    DECODER_SPARSITIES,
    MARGIN,
    PLANNED_MEAN,
    SPARSITIES,
    TRAINED_AGAIN,
    WORD_LEVELS,
    at,
    judge,
)
from junkdna_nb.evidence.measures import afc_accuracy
from junkdna_nb.evidence.study import Run, Study, TaskRuns

WORLDS = ("none", "log_odds", "points", "effect", "reversed", "noisy", "margin")

# the design, as nbs/configs/confirmatory.yaml has it after exclusions for unusable tasks; of the decoder's sets, which enter gated
# secondary rows alone, the grid has 6, 6, 6 and 7. Encoder tasks are drawn first, so their rows do not depend on these numbers
DESIGN = dict(
    tasks=68,
    shared=6,
    arm_b=25,
    small=14,
    data=13,
    words=10,
    second=13,
    criteria=10,
    options=8,
    shots=8,
    context=6,
    formats=6,
    human=22,
    items=1000,
    asked=600,
)
BITS = {"dense": 16.0, "sparse 0.6": 7.4, "sparse 0.8": 4.2, "4 bits": 4.3125}
# mean losses, Fisher z: half of those of the old tasks, so that the registered means are those the design was planned for
LOSS = {
    "sparse 0.2": 0.005,
    "sparse 0.4": 0.04,
    "sparse 0.6": 0.10,
    "sparse 0.8": 0.195,
    "sparse_to_dense 0.6": 0.095,
    "sparse_to_dense 0.8": 0.135,
    "frozen 0.4": 0.011,
    "frozen 0.6": 0.035,
    "frozen 0.8": 0.085,
    "wanda 0.6": 0.07,
    "sparsegpt 0.6": 0.09,
    "sparse 4:8": 0.065,
    "random 0.6": 0.145,
    "4 bits": 0.012,
    "3 bits": 0.03,
}
ALIKE = 0.7  # correlation of the answers to one item
BETWEEN_RUNS = 0.04  # standard deviation of a run's Fisher z; of a drop, 0.055
SPREAD = 0.8  # standard deviation of a loss between tasks, as a share of its mean
TAU = 0.4  # of difficulty and loss in world `effect`
RHO = np.sin(np.pi * TAU / 2)


class World:
    "How much a task loses"

    def __init__(self, name, rng):
        self.name, self.rng = name, rng
        self.sign = dict(effect=1.0, reversed=-1.0).get(name, 0.0)
        self.uniform = name in ("log_odds", "points", "margin")

    def losses(self, hard):
        "Condition -> true loss of one task; `hard` is its standardised difficulty. What a task has in common is the kind of run"
        kinds = {c.split()[0] if "bits" not in c else "bits" for c in LOSS}
        luck = {kind: self.rng.normal() for kind in sorted(kinds)}
        luck["random"] = 0.8 * luck["sparse"] + 0.6 * luck["random"]
        out = {}
        for condition, mean in LOSS.items():
            kind = "bits" if "bits" in condition else condition.split()[0]
            out[condition] = self.loss(mean, hard, luck[kind])
        if self.name == "margin":
            out |= {
                c: MARGIN * (1 + luck[c.split()[0] if "bits" not in c else "bits"])
                for c in (*at("frozen"), "4 bits")
            }
        return out

    def loss(self, mean, hard, luck):
        "A mean loss, its spread over tasks, and in worlds with an order what difficulty adds"
        if self.sign:
            return self.sign * mean + SPREAD * mean * (
                self.sign * RHO * hard + (1 - RHO**2) ** 0.5 * luck
            )
        return mean * (self.uniform + SPREAD * luck)

    def accuracy(self, signal, loss):
        "Of two balanced classes, after a loss; in world `points` the same accuracy for every task"
        if self.name == "points":
            return (1 + np.tanh(signal)) / 2 - 0.35 * loss
        return (1 + np.tanh(signal - loss)) / 2


def answers(rng, share, items):
    "(R, n) which items each run answers right"
    strength = ALIKE**0.5 * rng.normal(size=items) + (1 - ALIKE) ** 0.5 * rng.normal(
        size=(len(share), items)
    )
    return strength < norm.ppf(np.clip(share, 0.001, 0.999))[:, None]


class Simulated(Study):
    "A study of the planned design in one world"

    def __init__(self, world, seed, design=DESIGN):
        self.old, self.notes, self.records, self.design, self._found = False, [], [], design, {}
        self.rng = np.random.default_rng([seed, WORLDS.index(world)])
        self.world, self.noise = (
            World(world, self.rng),
            BETWEEN_RUNS * (3 if world == "noisy" else 1),
        )
        self._encoder = [self.encoder_task(i) for i in range(design["tasks"])]
        self._second = [self.encoder_task(i, second=True) for i in range(design["second"])]
        self._decoder = {
            e: [self.decoder_task(e, i) for i in range(design[n])]
            for e, n in (
                ("03_options", "options"),
                ("05_kshot", "shots"),
                ("04_context", "context"),
                ("06_qa_format", "formats"),
            )
        }

    def encoder(self, model="minilm"):
        return self._encoder if model == "minilm" else self._second

    def decoder(self, experiment, model="smollm2"):
        return self._decoder[experiment]

    def conditions(self, i, second):
        "(condition, level) of all compressed runs of the i-th task"
        if second:
            return [(c, "") for c in at("sparse_to_dense", TRAINED_AGAIN)]
        wanted = [(c, "") for c in at("sparse")]
        if i < self.design["arm_b"]:
            more = [*at("frozen"), *at("sparse_to_dense", TRAINED_AGAIN), "4 bits", "3 bits"]
            wanted += [(c, "") for c in more]
        if i < self.design["criteria"]:
            wanted += [("wanda 0.6", ""), ("sparsegpt 0.6", ""), ("sparse 4:8", "")]
        if i < self.design["small"]:
            wanted += [("random 0.6", ""), ("sparse 0.2", "")]
        for levels, many in ((DATA_LEVELS, "data"), (WORD_LEVELS, "words")):
            if i < self.design[many]:
                wanted += [(c, lv) for lv in levels[1:] for c in at("sparse", TRAINED_AGAIN)]
        return wanted

    def level_step(self, level):
        "How much harder a level is than the main setting, in steps"
        return {lv: j for levels in (DATA_LEVELS, WORD_LEVELS) for j, lv in enumerate(levels)}[
            level
        ]

    def encoder_task(self, i, second=False):
        rng, world = self.rng, self.world
        hard = rng.normal()
        signal = np.clip(1.0 - 0.4 * hard, 0.15, 2.2)
        wanted = self.conditions(i, second)
        true = world.losses(hard)
        step = PLANNED_MEAN["C4 data"] / 2
        interaction = {
            lv: step * self.level_step(lv) * (world.sign + SPREAD * rng.normal())
            for _, lv in wanted
        }
        runs, share = [], []
        for level in dict.fromkeys(["", *(lv for _, lv in wanted)]):
            at_level = signal - 0.15 * self.level_step(level)
            for s in (41, 42, 43) if level == "" else (41, 42):
                runs.append(Run("dense", level, s))
                share.append(world.accuracy(at_level + self.jitter(), 0.0))
        for condition, level in wanted:
            at_level = signal - 0.15 * self.level_step(level)
            for s in (41, 42):
                runs.append(Run(condition, level, s))
                share.append(
                    world.accuracy(at_level + self.jitter(), true[condition] + interaction[level])
                )
        n = int(rng.choice([500, self.design["items"]], p=[0.25, 0.75]))
        labels = np.arange(n) % 2
        share = np.array(share)
        if world.name == "noisy":
            share[rng.random(len(share)) < 0.05] = 0.5
        right = answers(rng, share, n)
        alone = i < self.design["tasks"] - 2 * self.design["shared"]
        group = f"task {i}" if alone else f"source {(i - self.design['tasks']) // 2}"
        human = 0.97 if i % 2 == 0 else None
        verified = i % 3 == 0 and i // 3 < self.design["human"]
        agreement = 0.8 - 0.05 * hard + 0.05 * rng.normal() if verified else None
        bits = tuple(BITS.get(r.condition, np.nan) for r in runs)
        return TaskRuns(
            f"task {i}",
            tuple(runs),
            labels,
            np.where(right, labels, 1 - labels),
            "accuracy",
            "correlation_k",
            np.full(len(runs), 0.5),
            group,
            i % 4 < 2,
            human if not verified else 0.97,
            verified,
            agreement,
            (),
            bits,
        )

    def jitter(self):
        return self.noise * self.rng.normal()

    def decoder_task(self, experiment, i):
        "d' of options (or of a free answer, as one of very many) that falls with pruning, more at harder levels in world `effect`"
        rng, world = self.rng, self.world
        levels, chance = {
            "03_options": (("2", "3", "4", "8"), (1 / 2, 1 / 3, 1 / 4, 1 / 8)),
            "05_kshot": (("8", "4", "1", "0"), (1 / 4,) * 4),
            "04_context": (("1", "2", "5", "0"), (0,) * 4),
            "06_qa_format": (("choice", "open"), (1 / 4, 0)),
        }[experiment]
        signal, spread, per_level = (
            1.2 + 0.3 * rng.normal(),
            0.1 * rng.normal(),
            0.1 + 0.05 * rng.normal(),
        )
        runs, share, chances = [], [], []
        for j, (level, c) in enumerate(zip(levels, chance, strict=True)):
            for amount, condition in enumerate(["dense", *at("sparse", DECODER_SPARSITIES)]):
                for seed in (41, 42, 43, 44):
                    lost = (
                        amount
                        / 3
                        * (
                            0.3 * (world.uniform or world.sign)
                            + spread
                            + world.sign * per_level * j
                        )
                    )
                    d = signal - lost + 0.05 * rng.normal()
                    runs.append(Run(condition, level, seed))
                    chances.append(c)
                    share.append(
                        float(afc_accuracy(d, 1 / c))
                        if c
                        else float(1 / (1 + np.exp(-(d - 1.2) * np.pi / 3**0.5)))
                    )
        right = answers(
            rng, np.array(share), self.design["asked"] if experiment != "04_context" else 300
        )
        return TaskRuns(
            f"{experiment} {i}",
            tuple(runs),
            None,
            right.astype(float),
            "accuracy",
            "answers",
            np.array(chances),
        )


def judged(job):
    "(name, verdict, estimate, low, high, k) of all rows of one simulated study"
    world, seed, design = job
    rows = []
    for row in judge(Simulated(world, seed, design)):
        x = row.evidence.main
        rows.append(
            (
                row.claim.name,
                row.verdict,
                None if x is None else (x.estimate, x.low, x.high, x.p, x.k),
            )
        )
    return rows


def true_means():
    "Mean of each registered mean over tasks in world `effect`, Fisher z"
    share = (BITS["4 bits"] - BITS["sparse 0.8"]) / (BITS["sparse 0.6"] - BITS["sparse 0.8"])

    def mean(how, amounts):
        return float(np.mean([LOSS[c] for c in at(how, amounts)]))

    again = mean("sparse_to_dense", TRAINED_AGAIN)
    return {
        "C2 irreversible": again,
        "C7 second encoder": again,
        "C3 values": mean("sparse", SPARSITIES) - mean("frozen", SPARSITIES),
        "C6 bits": share * LOSS["sparse 0.6"] + (1 - share) * LOSS["sparse 0.8"] - LOSS["4 bits"],
        "C4 data": PLANNED_MEAN["C4 data"],
        "C7 small": LOSS["random 0.6"] - LOSS["sparse 0.6"],
        "C1 grows": LOSS["sparse 0.8"] - LOSS["sparse 0.4"],
    }


NOTHING = tuple(c.name for c in CLAIMS.values() if c.kind == "nothing")


def is_false(world, c):
    "Is a claim false in this world?"
    if c.name in NOTHING:
        return world == "margin"
    if world in ("log_odds", "points", "margin"):
        return c.interaction
    return world in ("none", "noisy", "reversed")


def is_opposite(world, c):
    "Is the opposite of a claim true in this world, so that 'contradicted' is right?"
    if c.name in NOTHING:
        return world not in (
            "none",
            "noisy",
            "margin",
        )  # something is lost, at 0.8 more than the margin
    return world == "reversed" or (world == "points" and c.interaction)


def calibrate(studies, workers=os.cpu_count(), worlds=WORLDS, design=DESIGN):
    "(rows for the table, the closing figures)"
    counts, covered, truth = defaultdict(Counter), Counter(), true_means()
    with ProcessPoolExecutor(workers) as pool:
        for world in worlds:
            jobs = [(world, seed, design) for seed in range(1, studies + 1)]
            for rows in tqdm(
                pool.map(judged, jobs, chunksize=4), total=studies, desc=world, file=sys.stderr
            ):
                for name, verdict, x in rows:
                    counts[world, name][verdict] += 1
                    value = {"effect": truth.get(name), "none": 0.0 if name in truth else None}.get(
                        world
                    )
                    if x is not None and value is not None:
                        covered[world, name, x[1] <= value <= x[2]] += 1
    table = []
    for (world, name), c in counts.items():
        yes, no = covered[world, name, True], covered[world, name, False]
        shares = [
            100 * c[v] / studies
            for v in (
                "supported",
                "contradicted",
                "depends on the scale",
                "equivalent",
                "inconclusive",
                "not run",
            )
        ]
        table.append((world, name, *shares, 100 * yes / (yes + no) if yes + no else None))
    return table, summary(table)


def summary(table):
    "The closing figures, from the rows of the table"
    truth, claims = true_means(), {r[1] for r in table}
    false = [r[2] for r in table if is_false(r[0], CLAIMS[r[1]])]
    wrong = [r[3] for r in table if not is_opposite(r[0], CLAIMS[r[1]])]
    coverage = [r[8] for r in table if r[8] is not None]
    power = {r[1]: r[2] for r in table if r[0] == "effect"}
    means = [
        power.get(n, 0)
        for n in truth
        if n in claims and CLAIMS[n].role == "primary" and n != "C4 data"
    ]  # of C4 nothing had been seen
    return dict(
        false_supported_max=max(false, default=0),
        false_contradicted_max=max(wrong, default=0),
        coverage_low=min(coverage, default=0),
        coverage_high=max(coverage, default=0),
        power_tau04=power.get("C1 steeper", 0),
        power_means=min(means, default=0),
        power_gap=power.get("C5 gap", 0),
        power_data=power.get("C4 data", 0),
    )


if __name__ == "__main__":
    args = arguments(repeats=1, studies=400, workers=os.cpu_count())
    os.environ["OMP_NUM_THREADS"] = "1"
    table, figures = calibrate(args.studies, args.workers)
    error = 100 * (0.05 * 0.95 / args.studies) ** 0.5
    print(
        f"{args.studies} studies of each world; a share of 5 % has a simulation error of {error:.1f} points\n"
    )
    print(
        "| world | claim | supported % | contradicted % | depends on the scale % | equivalent % | inconclusive % | not run % | coverage % |\n|"
        + "---|" * 9
    )
    for world, name, *shares, cover in table:
        print(
            f"| {world} | {name} | "
            + " | ".join(f"{x:.1f}" for x in shares)
            + f" | {'' if cover is None else f'{cover:.1f}'} |"
        )
    closing(studies=args.studies, **figures)
