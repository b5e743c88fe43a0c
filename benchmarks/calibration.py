"""Are the verdicts calibrated? Whole studies of the planned design, judged as the real one is.

Every study draws its tasks anew: a dense signal (Fisher z), a loss, items of their own strength,
training runs that differ. An item is answered right by a run if its strength and a noise of the
run's own exceed what the run's accuracy asks for; so runs of one task agree on most items, as real
ones do. Worlds:

none       compression costs nothing (then claims that nothing happens are true)
log_odds   every task loses the same log-odds of accuracy, whatever its difficulty
points     every task loses the same accuracy
effect     harder tasks and levels lose more on every scale: tau 0.4 over tasks, mean effects half
           of those seen on old tasks
reversed   easier tasks and levels lose more, and what should cost something helps
noisy      as none, with runs that differ three times as much and one in twenty that has learnt
           nothing
margin     as log_odds, and frozen and rounded models lose exactly the margin of equivalence
"""

import itertools
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

# The design, as nbs/configs/confirmatory.yaml has it after exclusions for unusable tasks. Of the
# decoder's sets, which enter gated secondary rows alone, the grid has 6, 6, 6 and 7. Encoder tasks
# are drawn first, so their rows do not depend on these numbers.
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
# Mean losses, Fisher z: half of those of the old tasks, so that the registered means are those the
# design was planned for.
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


def kind_of(condition):
    "What a task's losses have in common: the kind of run"
    return "bits" if "bits" in condition else condition.split()[0]


class World:
    "How much a task loses"

    def __init__(self, name, rng):
        self.name, self.rng = name, rng
        self.sign = dict(effect=1.0, reversed=-1.0).get(name, 0.0)
        self.uniform = name in ("log_odds", "points", "margin")

    def losses(self, hard):
        "Condition -> true loss of one task; `hard` is its standardised difficulty"
        kinds = {kind_of(c) for c in LOSS}
        deviation = {kind: self.rng.normal() for kind in sorted(kinds)}
        deviation["random"] = 0.8 * deviation["sparse"] + 0.6 * deviation["random"]
        out = {c: self.loss(mean, hard, deviation[kind_of(c)]) for c, mean in LOSS.items()}
        if self.name == "margin":
            exact = (*at("frozen"), "4 bits")
            out |= {c: MARGIN * (1 + deviation[kind_of(c)]) for c in exact}
        return out

    def loss(self, mean, hard, deviation):
        "A mean loss, its spread over tasks, and in worlds with an order what difficulty adds"
        if self.sign:
            mixed = self.sign * RHO * hard + (1 - RHO**2) ** 0.5 * deviation
            return self.sign * mean + SPREAD * mean * mixed
        return mean * (self.uniform + SPREAD * deviation)

    def accuracy(self, signal, loss):
        "Of two balanced classes, after a loss; in world `points` the same accuracy for every task"
        if self.name == "points":
            return (1 + np.tanh(signal)) / 2 - 0.35 * loss
        return (1 + np.tanh(signal - loss)) / 2


def answers(rng, share, items):
    "(R, n) which items each run answers right"
    common = ALIKE**0.5 * rng.normal(size=items)
    strength = common + (1 - ALIKE) ** 0.5 * rng.normal(size=(len(share), items))
    return strength < norm.ppf(np.clip(share, 0.001, 0.999))[:, None]


# Experiment -> (its entry in the design, levels, chance at each level)
DECODERS = {
    "03_options": ("options", ("2", "3", "4", "8"), (1 / 2, 1 / 3, 1 / 4, 1 / 8)),
    "05_kshot": ("shots", ("8", "4", "1", "0"), (1 / 4,) * 4),
    "04_context": ("context", ("1", "2", "5", "0"), (0,) * 4),
    "06_qa_format": ("formats", ("choice", "open"), (1 / 4, 0)),
}


def level_step(level):
    "How much harder a level is than the main setting, in steps"
    for levels in (DATA_LEVELS, WORD_LEVELS):
        if level in levels:
            return levels.index(level)
    raise KeyError(level)


def share_right(d, chance):
    "Share of answers right at d' with this chance; a free answer is one of very many"
    if chance:
        return float(afc_accuracy(d, 1 / chance))
    return float(1 / (1 + np.exp(-(d - 1.2) * np.pi / 3**0.5)))


class Simulated(Study):
    "A study of the planned design in one world"

    def __init__(self, world, seed, design=DESIGN):
        self.old, self.notes, self.records, self.design, self._found = False, [], [], design, {}
        self.rng = np.random.default_rng([seed, WORLDS.index(world)])
        self.world = World(world, self.rng)
        self.noise = BETWEEN_RUNS * (3 if world == "noisy" else 1)
        self._encoder = [self.encoder_task(i) for i in range(design["tasks"])]
        self._second = [self.encoder_task(i, second=True) for i in range(design["second"])]
        self._decoder = {}
        for experiment, (many, _, _) in DECODERS.items():
            tasks = [self.decoder_task(experiment, i) for i in range(design[many])]
            self._decoder[experiment] = tasks

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
                pairs = itertools.product(levels[1:], at("sparse", TRAINED_AGAIN))
                wanted += [(c, level) for level, c in pairs]
        return wanted

    def encoder_task(self, i, second=False):
        "A classification task: dense runs at every level of it, compressed ones as the design says"
        rng, world = self.rng, self.world
        hard = rng.normal()
        signal = np.clip(1.0 - 0.4 * hard, 0.15, 2.2)
        wanted = self.conditions(i, second)
        true = world.losses(hard)
        step = PLANNED_MEAN["C4 data"] / 2
        interaction = {}
        for _, level in wanted:
            deviation = world.sign + SPREAD * rng.normal()
            interaction[level] = step * level_step(level) * deviation
        levels = dict.fromkeys(["", *(level for _, level in wanted)])
        runs = []
        for level in levels:
            runs += [Run("dense", level, s) for s in ((41, 42, 43) if level == "" else (41, 42))]
        for condition, level in wanted:
            runs += [Run(condition, level, s) for s in (41, 42)]
        share = []
        for run in runs:
            dense = run.condition == "dense"
            lost = 0.0 if dense else true[run.condition] + interaction[run.level]
            at_level = signal - 0.15 * level_step(run.level)
            share.append(world.accuracy(at_level + self.jitter(), lost))
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
            0.97 if verified else human,
            verified,
            agreement,
            (),
            bits,
        )

    def jitter(self):
        return self.noise * self.rng.normal()

    def decoder_task(self, experiment, i):
        "A task of questions: d' falls with pruning, in world `effect` more at harder levels"
        rng, world = self.rng, self.world
        _, levels, chance = DECODERS[experiment]
        signal = 1.2 + 0.3 * rng.normal()
        spread, per_level = 0.1 * rng.normal(), 0.1 + 0.05 * rng.normal()
        amounts = ["dense", *at("sparse", DECODER_SPARSITIES)]
        runs, share, chances = [], [], []
        for level, amount, seed in itertools.product(
            range(len(levels)), range(len(amounts)), range(41, 45)
        ):
            everywhere = 0.3 * (world.uniform or world.sign) + spread
            lost = amount / 3 * (everywhere + world.sign * per_level * level)
            d = signal - lost + 0.05 * rng.normal()
            runs.append(Run(amounts[amount], levels[level], seed))
            chances.append(chance[level])
            share.append(share_right(d, chance[level]))
        items = 300 if experiment == "04_context" else self.design["asked"]
        right = answers(rng, np.array(share), items).astype(float)
        name, chances = f"{experiment} {i}", np.array(chances)
        return TaskRuns(name, tuple(runs), None, right, "accuracy", "answers", chances)


def judged(job):
    "(name, verdict, (estimate, low, high, p, k) or None) of all rows of one simulated study"
    rows = []
    for row in judge(Simulated(*job)):
        x = row.evidence.main
        known = None if x is None else (x.estimate, x.low, x.high, x.p, x.k)
        rows.append((row.claim.name, row.verdict, known))
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
        # In the other worlds something is lost, at 0.8 more than the margin.
        return world not in ("none", "noisy", "margin")
    return world == "reversed" or (world == "points" and c.interaction)


VERDICTS = (
    "supported",
    "contradicted",
    "depends on the scale",
    "equivalent",
    "inconclusive",
    "not run",
)


def true_value(world, name, truth):
    "What a registered mean is in this world; None where it is not known"
    if world == "effect":
        return truth.get(name)
    return 0.0 if world == "none" and name in truth else None


def calibrate(studies, workers=None, worlds=WORLDS, design=DESIGN):
    "(rows for the table, the closing figures)"
    counts, covered, truth = defaultdict(Counter), defaultdict(list), true_means()
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for world in worlds:
            jobs = [(world, seed, design) for seed in range(1, studies + 1)]
            found = pool.map(judged, jobs, chunksize=4)
            bar = tqdm(found, total=studies, desc=world, file=sys.stderr)
            for name, verdict, x in itertools.chain.from_iterable(bar):
                counts[world, name][verdict] += 1
                value = true_value(world, name, truth)
                if x is not None and value is not None:
                    covered[world, name].append(x[1] <= value <= x[2])
    table = []
    for (world, name), c in counts.items():
        inside = covered[world, name]
        coverage = 100 * sum(inside) / len(inside) if inside else None
        table.append((world, name, *(100 * c[v] / studies for v in VERDICTS), coverage))
    return table, summary(table)


def summary(table):
    "The closing figures, from the rows of the table"
    truth, claims = true_means(), {r[1] for r in table}
    false = [r[2] for r in table if is_false(r[0], CLAIMS[r[1]])]
    wrong = [r[3] for r in table if not is_opposite(r[0], CLAIMS[r[1]])]
    coverage = [r[8] for r in table if r[8] is not None]
    power = {r[1]: r[2] for r in table if r[0] == "effect"}
    seen = claims & set(truth) - {"C4 data"}  # of C4 nothing had been seen
    means = [power.get(n, 0) for n in seen if CLAIMS[n].role == "primary"]
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
        f"{args.studies} studies of each world; a share of 5 % has a simulation error of "
        f"{error:.1f} points\n"
    )
    header = ["world", "claim", *(f"{v} %" for v in (*VERDICTS, "coverage"))]
    print(f"| {' | '.join(header)} |\n|" + "---|" * len(header))
    for world, name, *shares in table:
        shown = ["" if x is None else f"{x:.1f}" for x in shares]
        print(f"| {' | '.join([world, name, *shown])} |")
    closing(studies=args.studies, **figures)
