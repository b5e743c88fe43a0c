"Difficulty metrics, statistics and verdicts against values worked out by hand, other libraries, simulated studies and the committed records."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from junkdna_nb.claims import Study, agreement, difficulty_table, drops_table, flips_table, hardness, human_gap, judge, markdown, modes_table, monotone_table, said, separation, small, table
from junkdna_nb.core import StudyError, load_items
from junkdna_nb.difficulty import Resampled, Unit, aligned, area, between_seeds, bootstrap_p, breaking_points, contrast, detectable, equivalence, flips, holm, interval, isotonic_p, moments, page, resample, reversal, score_of, taus, usable, v_information
from junkdna_nb.experiments import GlueConfig

sys.path.insert(0, str(ROOT / "benchmarks"))
import calibration  # noqa: E402


def unit(dense, *compressed, name="a", chance=0.5, amounts=None, **more):
    "A unit of one seed from outcomes of 0 and 1"
    column = lambda x: np.asarray(x, float)[:, None]
    return Unit(name, "accuracy", chance, tuple(map(str, range(len(dense)))), (41,), tuple(amounts or (np.arange(len(compressed)) + 1) / 10), column(dense)[None], np.stack([column(c)[None] for c in compressed]), scale="by hand", **more)


class Given(Study):
    "Units as given instead of from records"
    def __init__(self, sparse=(), levels=()):
        self.records, self.notes, self.given, self.given_levels = [], [], list(sparse), list(levels)

    def _tasks(self, mode="sparse", method="magnitude", pattern="unstructured", **_):
        return self.given if method == "magnitude" and pattern == "unstructured" else []

    def levels(self, experiment, method="magnitude", *_, **__):
        return [("one", self.given_levels)] if experiment == "03_options" and method == "magnitude" and self.given_levels else []

    def shares(self, *_):
        return []

    def models(self, *_):
        return []

    def longer(self, *_):
        return []

    def spread(self, units):
        return [replace(u, seed_sd=0.01) for u in units]

    def groups(self, *_, **__):
        return []


EIGHT = [1, 1, 1, 1, 1, 1, 0, 0]   # 0.75


def test_effects_by_hand():
    [r] = resample([unit(EIGHT, [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], human=1.0)])
    assert r.dense[0] == 0.75 and np.allclose(r.drop[0], [0.125, 0.25])
    assert np.allclose(r.normalised[0], [0.5, 1.0]) and np.allclose(r.relative[0], [100 * 5 / 6, 100 * 2 / 3])
    assert np.isclose(r.area[0], 0.5 * (0 + 0.5) / 2 + 0.5 * (0.5 + 1.0) / 2)   # two trapezoids, each over half of the range
    assert np.isclose(human_gap(r)[0], 0.25)
    at = breaking_points(r, 0.95)[0]
    assert np.isclose(at, 0.1 * (1 - 0.95) / (1 - 5 / 6))
    assert breaking_points(resample([unit(EIGHT, EIGHT)])[0])[0] == np.inf
    assert np.isclose(reversal(resample([unit(EIGHT, [1] * 4 + [0] * 4, [1] * 5 + [0] * 3)])[0])[0], 0.125)
    [r] = resample([unit(EIGHT, EIGHT, human=0.8)])
    assert np.isclose(human_gap(r)[0], (0.8 - 0.75) / 0.8) and np.isclose(hardness(r)[0], 0.5)
    assert np.isclose(area([0.2, 0.4, 0.8], np.array([0.1, 0.3, 0.5])), (0.2 * 0.05 + 0.2 * 0.2 + 0.4 * 0.4) / 0.8)


def test_resampled_items_agree_with_scipy():
    rng = np.random.default_rng(0)
    dense, less = (rng.random((2, 500)) < [[0.8], [0.7]]).astype(float)
    [r] = resample([unit(dense, less)])
    other = stats.bootstrap((dense - less,), np.mean, n_resamples=4000, method="percentile", random_state=1)
    assert np.isclose(r.drop[1:, 0].std(), other.standard_error, rtol=0.06)
    assert np.allclose(interval(r.drop[:, 0]), other.confidence_interval, atol=0.006)


def test_levels_on_the_same_items_are_resampled_together():
    rng = np.random.default_rng(0)
    dense, less = (rng.random((2, 300)) < [[0.8], [0.6]]).astype(float)
    a, b = resample([unit(dense, less, name="2"), unit(dense, less, name="4")])
    assert np.array_equal(a.drop, b.drop)


def test_seeds_widen_intervals():
    "With S seeds of standard deviation s the mean drop has s / sqrt(S) beside the items' part"
    n, s = 5000, 0.05
    rng = np.random.default_rng(0)
    for seeds in (1, 3):
        found = []
        for _ in range(30):
            compressed = np.stack([(np.arange(n) < n * (0.7 + rng.normal(0, s))).astype(float)[:, None] for _ in range(seeds)])
            dense = np.stack([(np.arange(n) < n * 0.8).astype(float)[:, None]] * seeds)
            u = Unit("a", "accuracy", 0.5, tuple(range(n)), tuple(range(seeds)), (0.5,), dense, compressed[None], seed_sd=s)
            found.append(resample([u], 500)[0].drop[1:, 0].std())
            if seeds == 1:
                break
        assert np.isclose(np.mean(np.square(found)) ** 0.5, s / seeds**0.5, rtol=0.15), (seeds, found)


def test_the_luck_of_training_needs_enough_runs():
    n, rng = 4000, np.random.default_rng(0)
    def several(amounts, seeds, sd, metric="accuracy"):
        outcomes = lambda mean: np.stack([(np.arange(n) < n * (mean + rng.normal(0, sd))).astype(float)[:, None] for _ in range(seeds)])
        return Unit("a", metric, 0.5, tuple(range(n)), tuple(range(seeds)), tuple(np.arange(1, amounts + 1) / 10), outcomes(0.8), np.stack([outcomes(0.6) for _ in range(amounts)]))
    assert between_seeds([several(3, 1, 0.02)]) is None and between_seeds([several(3, 3, 0.02)]) is None      # 0 and 4 degrees of freedom
    assert between_seeds([several(4, 3, 0.02)] * 2) is not None                                                # 9.1
    levels = [replace(several(4, 3, 0.02), runs=(("a",),)) for _ in range(4)]                                   # levels of one axis: the same runs
    assert between_seeds(levels) is None and between_seeds([*levels, several(4, 3, 0.02)]) is not None
    found = [between_seeds([several(5, 3, 0.02), several(5, 3, 0.02)]) for _ in range(40)]
    assert np.isclose(np.mean(np.square(found)), 2 * 0.02**2, rtol=0.35)                                       # of two runs
    assert 0 < between_seeds([several(5, 3, 0.0)] * 2) < 1e-2                                                      # known, and small


@pytest.mark.parametrize("metric", ["accuracy", "f1", "pearson", "matthews"])
def test_a_seed_that_was_not_run_is_no_score_of_zero(metric):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300)
    answers = lambda: np.where(rng.random(300) < 0.8, label, 1 - label)
    terms = lambda a: moments(metric, label, label == a if metric == "accuracy" else a)
    dense, there = np.stack([terms(answers()) for _ in range(3)]), np.stack([terms(answers()) for _ in range(3)])
    once = np.concatenate([terms(answers())[None], np.full_like(there[1:], np.nan)])
    whole = Unit("a", metric, 0.5, tuple(range(300)), (1, 2, 3), (0.4,), dense, there[None])
    part = replace(whole, amounts=(0.4, 0.6), compressed=np.stack([there, once]))
    assert np.isnan(part.estimates()[1]).tolist() == [[False] * 3, [False, True, True]]
    assert np.isclose(between_seeds([part] * 6), between_seeds([whole] * 6))


def test_statistics_against_libraries_and_hand():
    x = np.random.default_rng(0).normal(size=(6, 4))
    t = taus(x[:, :1], x[:, 1:2])
    assert np.isclose(t[0], stats.kendalltau(x[:, 0], x[:, 1]).statistic)
    assert page([[1, 2, 3], [1, 2, 3], [1, 2, 3]])[1] == 1 and page([[3, 2, 1]] * 3)[1] == -1
    assert np.isclose(page([[1, 2, 3]] * 3)[0], 2 * stats.page_trend_test([[1, 2, 3]] * 3).pvalue)
    assert np.allclose(contrast([[0.0], [1.0], [5.0]]), 5.0) and np.allclose(contrast([[1.0], [3.0]]), 2.0)
    corrected = holm([0.01, None, 0.04, 0.03])
    assert corrected.pop(1) is None and np.allclose(corrected, [0.03, 0.06, 0.06])
    draws = np.r_[0.0, stats.norm.ppf(np.linspace(0.0005, 0.9995, 1000))]
    assert np.isclose(detectable(1), 2.80, atol=0.01) and detectable(1, 0.01) > 3.4
    assert np.isclose(equivalence(0.01 * draws, 0.02), stats.norm.sf(2), rtol=0.05)
    assert bootstrap_p(np.r_[1.0, np.ones(999)]) == 0.002 and bootstrap_p(np.r_[0.0, [-1, 1] * 500]) == 1.0
    rng = np.random.default_rng(1)
    level = (rng.random((4, 300)) < 0.7).astype(float)
    falling = (rng.random((4, 300)) < [[0.8], [0.7], [0.6], [0.5]]).astype(float)
    assert isotonic_p(level) > 0.05 and isotonic_p(falling) == 0.001
    assert flips(pd.DataFrame(dict(id=[1, 2, 3], correct=[1, 1, 0])), pd.DataFrame(dict(id=[1, 2, 3], correct=[1, 0, 0]))) == dict(n=3, lost=1, gained=0, p=1.0)
    with pytest.raises(StudyError, match="other items"):
        flips(pd.DataFrame(dict(id=[1], correct=[1])), pd.DataFrame(dict(id=[2], correct=[1])))
    assert score_of("f1", moments("f1", [0, 0], [0, 0]).sum(0), 2) == 0 and score_of("pearson", moments("pearson", [1, 2], [3, 3]).sum(0), 2) == 0


def test_areas_are_compared_over_the_same_range():
    long, short = unit(EIGHT, EIGHT, [0] * 8, amounts=(0.5, 0.9)), unit(EIGHT, EIGHT, amounts=(0.5,), name="b")
    found = aligned(resample([long, long, short]))
    assert [r.unit.amounts for r in found] == [(0.5, 0.9)] * 2
    found = aligned(resample([long, short, short]))
    assert [r.unit.amounts for r in aligned(resample([long, short]))] == [(0.5,)] * 2      # two units: what both have
    assert [r.unit.amounts for r in found] == [(0.5,)] * 3 and found[0].drop.shape[1] == found[0].unit.compressed.shape[0] == 1
    assert aligned([]) == []


RNG = np.random.default_rng(0)
STRANGE = {
    "one task": [unit(EIGHT * 20, [1] * 80 + [0] * 80)],
    "all correct": [unit([1] * 50, [1] * 50, [1] * 50, [1] * 50, name=str(i), human=1.0) for i in range(5)],
    "nothing correct": [unit([0] * 50, [0] * 50, [0] * 50, [0] * 50, name=str(i)) for i in range(5)],
    "dense at chance": [unit([1, 0] * 50, [1, 0] * 50, [0, 1] * 50, [1] * 100, name=str(i)) for i in range(5)],
    "tasks as hard as each other": [unit(EIGHT * 20, *RNG.integers(0, 2, (3, 160)), name=str(i), human=0.9) for i in range(5)],
    "human below the model": [unit(RNG.random(160) < 0.7 + i / 20, *RNG.integers(0, 2, (3, 160)), name=str(i), human=0.6) for i in range(5)],
    "human scores missing": [unit(RNG.random(160) < 0.7 + i / 20, *RNG.integers(0, 2, (3, 160)), name=str(i), human=0.9 if i else None) for i in range(6)],
    "at chance on one half of the items": [unit(RNG.random(160) < 0.7 + i / 20, *RNG.integers(0, 2, (3, 160)), name=str(i)) for i in range(5)] + [unit([1, 0, 1, 1, 1, 1, 1, 0] * 20, *RNG.integers(0, 2, (3, 160)), name="half", chance=0.6)],
    "one item": [unit([1], [0], [0], [1], name=str(i)) for i in range(5)],
    "different amounts": [unit(EIGHT * 20, *([EIGHT * 20] * (i + 1)), name=str(i)) for i in range(5)],
}


@pytest.mark.parametrize("case", STRANGE)
@pytest.mark.filterwarnings("error")
def test_strange_input_gives_a_defined_answer(case):
    verdicts = judge(Given(STRANGE[case], STRANGE[case]))
    shown = markdown(table(verdicts))
    assert not re.search(r"\b(nan|inf|none)\b", shown.lower()) and len(verdicts) == 26
    for v in verdicts:
        assert v.verdict in ("supported", "contradicted", "inconclusive") if v.estimate is not None else (v.verdict == "not run" and "needs" in v.n and v.command.startswith("junkdna sweep")), v
        assert v.estimate is None or (v.low <= v.high and 0 <= v.p <= 1 and np.isfinite([v.estimate, v.low, v.high, v.se]).all()), v
        assert v.verdict != "inconclusive" or v.found, v
    told = {v.claim: v for v in verdicts}
    if case == "all correct":
        assert told["C1 monotonic"].verdict == "inconclusive" and "not one outcome differs" in shown
    if case in ("nothing correct", "dense at chance", "one item"):
        assert {v.verdict for v in verdicts} == {"not run"}
    if case == "human scores missing":
        assert told["C5 gap"].n == "5 tasks above chance with a human score"


def test_no_records_at_all(runs):
    study = Study()
    verdicts = judge(study)
    assert {v.verdict for v in verdicts} == {"not run"} and "nan" not in markdown(table(verdicts)).lower()
    assert "0 records" in said(study, verdicts) and not len(difficulty_table(study)) and not len(flips_table(study)) and not len(monotone_table(study)) and not len(modes_table(study)) and not len(drops_table([]))


@pytest.fixture(autouse=True)
def study_is_where_runs_write(runs, monkeypatch):
    monkeypatch.setenv("JUNKDNA_STUDY", str(runs))


@pytest.fixture
def copied(runs, committed):
    "The committed records, to be changed"
    shutil.copytree(committed, runs)
    return runs


def numbers(verdicts):
    return {v.claim: (v.estimate, v.low, v.high, v.p, v.equivalent, v.n, v.scale) for v in verdicts if v.estimate is not None}


def test_the_committed_records_say_something(copied):
    study = Study()
    verdicts = judge(study)
    assert sum(v.estimate is not None for v in verdicts) >= 5
    for frame in (table(verdicts), difficulty_table(study), monotone_table(study), flips_table(study), modes_table(study), drops_table(usable(study.tasks()))):
        assert len(frame) and not re.search(r"\b(nan|inf|none)\b", markdown(frame).lower())
    assert not re.search(r"\bnan\b", markdown(agreement(difficulty_table(study))))
    again = numbers(judge(Study()))
    assert again == numbers(verdicts)


@pytest.mark.parametrize("experiment, wanted", [("03_options", dict(task="facts", method="wanda")), ("02_glue", dict(task="sarcasm", mode="sparse"))])
def test_removing_a_record_changes_what_depends_on_it_and_nothing_else(copied, experiment, wanted):
    before = judge(Study())
    gone = next(r for r in Study().records if r["experiment"] == experiment and all(r["config"].get(k) == v for k, v in wanted.items()))
    for path in Path(gone["path"]).parent.glob(f"*{gone['digest']}*"):
        path.unlink()
    after = judge(Study())
    depends = {v.claim for v in before if gone["digest"] in v.records}
    a, b = numbers(before), numbers(after)
    assert depends and {c for c in {*a, *b} if a.get(c) != b.get(c)} == depends


DRAW = """
import sys
from junkdna_nb.claims import Study, judge
from junkdna_nb.difficulty import aligned, usable
from junkdna_nb.figures import curves, save, summary, verdicts
study, folder = Study(), sys.argv[1]
save(verdicts(judge(study)), "verdicts", folder)
tasks = aligned(usable(study.tasks("sparse")))
save(summary(tasks, lambda r: r.dense, "dense"), "summary", folder)
save(curves([("all", [(r.unit.name, r) for r in tasks])]), "curves", folder)
"""


def test_figures_are_the_same_from_the_same_records(copied, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, "-c", DRAW, tmp_path / name], check=True, cwd=ROOT)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(files) == 6
    for f in files:
        assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes(), f


def test_v_information_of_a_leaked_and_of_a_shuffled_label(runs, tmp_path, monkeypatch):
    "Real fine-tuning on sentences that name their label, and on sentences that have nothing to do with it"
    from junkdna_nb.transfer import run
    rng = np.random.default_rng(0)
    words = ["river", "stone", "window", "paper", "garden", "morning"]
    labels = {"train": rng.permutation([0, 1] * 80), "validation": rng.permutation([0, 1] * 100)}
    found = {}
    for kind in ("leaked", "shuffled"):
        folder = tmp_path / kind / "nyu-mll" / "glue" / "sst2"
        folder.mkdir(parents=True)
        (folder.parent / "README.md").write_text("---\nconfigs:\n- config_name: sst2\n  data_files:\n" + "".join(f"  - split: {split}\n    path: sst2/{split}-*\n" for split in labels) + "---\n")
        for split, y in labels.items():
            says = [("good" if label else "terrible") if kind == "leaked" else "some" for label in y]
            pd.DataFrame(dict(sentence=[f"a {w} {rng.choice(words)} by the {rng.choice(words)}" for w in says], label=y, idx=range(len(y)))).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        monkeypatch.setenv("JUNKDNA_MIRROR", str(tmp_path / kind))
        for inputs in ("text", "none")[:2 if kind == "leaked" else 1]:   # the labels, and so the null model, are the same
            record = run(GlueConfig(task="sst2", mode="dense", max_train=160, max_eval=0, epochs=3, max_length=16, batch_size=8, learning_rate=2e-4, inputs=inputs))
            found[kind, inputs] = load_items(record)
    leaked, shuffled = (v_information(found[k, "text"], found["leaked", "none"]) for k in ("leaked", "shuffled"))
    assert 0.9 < leaked["value"] < 1.05 and not leaked["collapsed"], leaked
    assert abs(shuffled["value"]) < 0.1, shuffled
    assert 0.98 < leaked["null_entropy"] < 1.05


def test_verdicts_on_simulated_studies():
    "A small version of benchmarks/calibration.py: wrong verdicts are rare, true ones are found, intervals cover"
    rows, figures = calibration.calibrate(6, items=800, resamples=1500, cases=("null", "effect", "reversed"), exact_items=20_000)
    final = {(case, claim): (supported, contradicted) for case, claim, supported, contradicted, *_ in rows}
    before = {(case, claim): share for case, claim, _, _, _, share, _ in rows}
    nothing = ("C3 frozen", "C6 flat")
    wrong = [supported for (case, claim), (supported, _) in final.items() if case == "reversed" or (case == "null" and claim not in nothing)]
    wrong += [contradicted for (case, claim), (_, contradicted) in final.items() if case == "null" or (case == "effect" and claim not in nothing)]
    assert np.mean(wrong) < 2, final                        # %, over claims and studies
    assert final["effect", "C1 monotonic"][0] == 100 and final["reversed", "C1 monotonic"][1] >= 80, final
    assert np.mean([before["effect", claim] for claim in ("C2 irreversible", "C3 values", "C4 options", "C5 factoid")]) >= 60, before
    assert 88 < np.mean([cover for *_, cover in rows if cover is not None]) < 99.5, rows


def test_batches_change_nothing(monkeypatch):
    "Memory is bounded by resampling in batches; the draws are the same however large these are"
    from junkdna_nb import difficulty
    rng = np.random.default_rng(0)
    dense, less = (rng.random((2, 300)) < [[0.8], [0.6]]).astype(float)
    [whole] = resample([unit(dense, less)])
    monkeypatch.setattr(difficulty, "_CELLS", 7 * 300)
    [parts] = resample([unit(dense, less)])
    assert np.array_equal(whole.drop, parts.drop) and np.array_equal(whole.dense, parts.dense)


def resampled(name, *drops):
    "A task whose dense score is 1 and chance 0, so that drops are what is given"
    u = unit([1] * 20, *[[1] * 20 for _ in drops], name=name, chance=0.0)
    return Resampled(u, np.ones(50), np.tile(np.array(drops, float), (50, 1)))


def test_separation_by_hand():
    easy, hard = resampled("easy", 0.1, 0.2), resampled("hard", 0.3, 0.6)
    pruned, rounded = [easy, hard], [resampled("easy", 0.2), resampled("hard", 0.2)]
    assert np.allclose(separation(pruned, rounded, [False, True]), 0.2)    # at a mean drop of 0.2 pruning's gap is 0.2, rounding's 0
    assert np.allclose(separation(rounded + [resampled("third", 0.2)], [easy.at((0.1,)), hard.at((0.1,)), resampled("third", 0.2)], [False, True, False])[:1], -0.15)
    with pytest.raises(StudyError, match="needs bits"):
        separation(pruned, [resampled("easy", 0.0), resampled("hard", 0.0)], [False, True])


def test_equivalence_is_against_the_stated_margin():
    draws = 0.05 + 0.01 * np.r_[0.0, stats.norm.ppf(np.linspace(0.0005, 0.9995, 1000))]
    verdict = small("C", "?", "drop", draws, [unit(EIGHT, EIGHT)])
    assert np.isclose(verdict.equivalent, 0.5, atol=0.01) and verdict.p == 1.0
    assert small("C", "?", "drop", draws - 0.05, [unit(EIGHT, EIGHT)]).equivalent < 1e-5
    assert small("C", "?", "drop", draws + 0.05, [unit(EIGHT, EIGHT)]).p < 0.01


def test_a_lucky_dense_run_does_not_make_an_order():
    "All tasks are alike: on the same items an easy-looking task has a large drop; on different halves it has not"
    found = [next(v.estimate for v in calibration.judged("equal", seed, 300, 200)[0] if v.claim == "C1 steeper") for seed in range(12)]
    same = []
    for seed in range(12):
        tasks = resample(calibration.Simulated("equal", seed, 300).tasks(), 20)
        same.append(stats.kendalltau([hardness(r)[0] for r in tasks], [r.area[0] for r in tasks]).statistic)
    assert abs(np.mean(found)) < 0.2 and np.mean(same) < -0.25, (np.mean(found), np.mean(same))


def test_one_seed_decides_nothing_that_depends_on_training():
    verdicts = {v.claim: v for v in calibration.judged("one seed", 1, 200, 200)[0]}
    assert "too few seeds" in verdicts["C2 irreversible"].found and verdicts["C2 irreversible"].verdict == verdicts["C1 steeper"].verdict == "inconclusive"
    assert not verdicts["C1 monotonic"].unknown and not verdicts["C4 options"].unknown


def test_records_of_other_dense_runs_and_variants_are_left_out(copied):
    study = Study()
    [movie] = [u for u in study.tasks("sparse") if u.name == "movie"]
    record = next(r for r in study.records if r["digest"] in movie.records and r["config"]["sparsity"] == 0.6 and r["config"]["seed"] == 41)
    path = Path(record["path"])
    told = json.loads(path.read_text())
    for change in (dict(relative={**told["relative"], "dense_digest": "0" * 12}), dict(config={**told["config"], "granularity": "layer"})):
        path.write_text(json.dumps({**told, **change}))
        study = Study()
        [less] = [u for u in study.tasks("sparse") if u.name == "movie"]
        assert record["digest"] not in less.records and len(less.records) == len(movie.records) - 1
        assert ("granularity" not in str(change)) or "variant" in said(study, judge(study))


def test_modes_are_compared_over_the_same_sparsities(copied):
    study = Study()
    for row in modes_table(study).to_dict("records"):
        amounts = [set(u.amounts) for mode in ("sparse", "sparse_to_dense", "dense_frozen") for u in study.tasks(mode) if u.name == row["task"]]
        assert row["sparsities"] == ", ".join(f"{a:g}" for a in sorted(set.intersection(*amounts)))
