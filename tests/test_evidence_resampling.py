"Bootstrap, seed variance and breaking points against explicit resamples and values by hand."

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef
from test_evidence_measures import ORACLES, sample

from junkdna_nb.base.config import StudyError
from junkdna_nb.evidence.measures import score_estimates
from junkdna_nb.evidence.resampling import (
    SeedVariance,
    bootstrap,
    breaking_point,
    effect_variance,
    interval,
    resample_counts,
    seed_variances,
)


def test_counts_are_resamples():
    counts = resample_counts(50, 400, np.random.default_rng(0))
    assert counts.shape == (50, 400) and (counts.sum(0) == 50).all()
    assert counts.mean() == 1 and counts.var() == pytest.approx(49 / 50, rel=0.03)


def test_a_resample_is_the_score_of_the_drawn_items():
    for metric in ORACLES:
        labels, predictions = sample(metric, n=80, runs=2)
        ours = bootstrap(metric, labels, predictions, resamples=5, seed=3)
        counts = resample_counts(80, 5, np.random.default_rng(3)).astype(int)
        assert ours[0] == pytest.approx(score_estimates(metric, labels, predictions).values)
        for row, count in enumerate(counts.T, start=1):
            drawn = np.repeat(np.arange(80), count)
            one = [ORACLES[metric](labels[drawn], p[drawn]) for p in predictions]
            assert ours[row] == pytest.approx(one), metric


def test_resamples_are_determined_by_the_seed_and_not_by_batches():
    labels, predictions = sample("macro_f1")
    first = bootstrap("macro_f1", labels, predictions, 1200, seed=1)
    assert (first == bootstrap("macro_f1", labels, predictions, 1200, seed=1)).all()
    assert (first[:701] == bootstrap("macro_f1", labels, predictions, 700, seed=1)).all()
    assert (first[1:] != bootstrap("macro_f1", labels, predictions, 1200, seed=2)[1:]).any()
    assert first.shape == (1201, 3)


@pytest.mark.parametrize("metric", list(ORACLES))
def test_bootstrap_and_influences_agree(metric):
    labels, predictions = sample(metric, n=1500, runs=4)
    e = score_estimates(metric, labels, predictions)
    samples = bootstrap(metric, labels, predictions, 6000)[1:]
    assert samples.std(0) == pytest.approx(e.se, rel=0.04)
    differences = (samples[:, 0] - samples[:, 1]).std()
    assert differences == pytest.approx(e.combine([1, -1, 0, 0]).se[0], rel=0.04)


def test_degenerate_samples_are_finite():
    constant = bootstrap("correlation_k", np.ones(20), np.ones((2, 20)), 50)
    assert (constant == 0).all()
    rare = np.array([1] + [0] * 19)  # many resamples have one class alone
    assert np.isfinite(bootstrap("matthews", rare, rare, 200)).all()
    assert (bootstrap("accuracy", None, [[1.0]], 3) == 1).all()
    assert bootstrap("accuracy", None, [[1.0, 0.0]], 0).shape == (1, 1)


def test_interval_leaves_the_estimate_out():
    samples = np.array([[1e9], *([x] for x in range(101))], float)
    low, high = interval(samples, 0.9)
    assert (low[0], high[0]) == pytest.approx((5, 95))


def test_seed_variance_by_hand():
    groups = [
        (("sparse", "classes"), [0.0, 2.0]),
        (("sparse", "classes"), [1.0, 1.0, 4.0]),
        (("sparse", "scores"), [0.0, 1.0]),
        (("frozen", "classes"), [5.0]),
    ]
    found = seed_variances(groups)
    own, mode, overall = 8 / 3, 8.5 / 4, 8.5 / 4
    shrunk_mode = (4 * mode + 8 * overall) / 12
    sparse = found["sparse", "classes"]
    assert (sparse.own, sparse.df) == (pytest.approx(own), 3)
    assert sparse.variance == pytest.approx((3 * own + 8 * shrunk_mode) / 11)
    assert found["sparse", "scores"].own == pytest.approx(0.5)
    assert found["frozen", "classes"] == SeedVariance(pytest.approx(overall), 0, None)


def test_seed_variance_is_none_where_nothing_is_known_and_0_where_nothing_varies():
    assert seed_variances([]) == {}
    assert seed_variances([(("a", "b"), [1.0])])["a", "b"] == SeedVariance(None, 0, None)
    assert seed_variances([(("a", "b"), [])]) == {}
    same = seed_variances([(("a", "b"), [1.0, 1.0])])["a", "b"]
    assert same == SeedVariance(0.0, 1, 0.0)
    with pytest.raises(StudyError, match="not finite"):
        seed_variances([(("a", "b"), [1.0, np.nan])])


def test_seed_variance_finds_the_truth_and_does_not_mix_tasks():
    rng = np.random.default_rng(0)
    effects = 10 * rng.normal(size=(200, 1)) + 0.3 * rng.normal(size=(200, 3))
    found = seed_variances([(("sparse", "classes"), e) for e in effects])
    assert found["sparse", "classes"].variance == pytest.approx(0.09, rel=0.15)


def test_items_and_seeds_together_are_conservative():
    "Runs that err independently: the variance over seeds contains their item noise already"
    rng = np.random.default_rng(0)
    estimates, claimed = [], []
    for _ in range(400):
        right = (rng.random((2, 400)) < 0.7).astype(float)
        e = score_estimates("accuracy", None, right).combine([0.5, 0.5])
        seeds = right.mean(1).var(ddof=1)
        estimates.append(e.values[0])
        claimed.append(effect_variance(e.se[0] ** 2, seeds, 2))
    assert 1.6 < np.mean(claimed) / np.var(estimates) < 2.4


def test_effect_variance():
    assert effect_variance(0.1, SeedVariance(0.4, 3, 0.4), 4) == pytest.approx(0.2)
    assert effect_variance(0.1, None, 4) is None
    with pytest.raises(StudyError, match="seeds is 0"):
        effect_variance(0.1, 0.1, 0)


def test_breaking_points_by_hand():
    curves = [[1, 0.9], [0.9, 0.8], [1, 0.95], [0.95, 0.9], [0.5, 1.0]]
    found = breaking_point([0.4, 0.8], curves, keep=0.95)
    assert found[[0, 1, 3, 4]] == pytest.approx([0.6, 0.2, 0.4, 0.04])
    assert found[2] == np.inf
    assert breaking_point([0.4], [0.5], 0.75) == pytest.approx([0.2])
    with pytest.raises(StudyError, match="above 0, ascending"):
        breaking_point([0, 0.5], curves)


def test_many_classes_are_resampled_as_sklearn_scores_them():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 150, 300)
    predictions = np.where(rng.random((2, 300)) < 0.6, labels, rng.integers(0, 150, (2, 300)))
    drawn = np.repeat(
        np.arange(300), resample_counts(300, 1, np.random.default_rng(0))[:, 0].astype(int)
    )
    y, p = labels[drawn], predictions[1, drawn]
    r = bootstrap("correlation_k", labels, predictions, 1)[1, 1]
    f = bootstrap("macro_f1", labels, predictions, 1)[1, 1]
    assert r == pytest.approx(matthews_corrcoef(y, p))
    assert f == pytest.approx(f1_score(y, p, average="macro", zero_division=0))
