"Scores, influences and scales against scikit-learn, scipy, quadrature and finite differences."

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from junkdna_nb.base.config import StudyError
from junkdna_nb.evidence.measures import (
    METRICS,
    SCALES,
    Estimates,
    afc_accuracy,
    afc_d_prime,
    afc_signal,
    afc_slope,
    drop_estimates,
    fisher_z,
    human_gap,
    level_difficulty,
    open_signal,
    run_terms,
    score_estimates,
    signal_metric,
)

ORACLES = {
    "accuracy": accuracy_score,
    "exact_match": accuracy_score,
    "f1": f1_score,
    "macro_f1": lambda y, p: f1_score(y, p, average="macro", zero_division=0),
    "matthews": matthews_corrcoef,
    "correlation_k": matthews_corrcoef,
    "pearson": lambda y, p: stats.pearsonr(y, p).statistic,
}


def sample(metric, seed=0, n=300, runs=3):
    "Labels (n,) and predictions (runs, n) that fit the metric"
    rng = np.random.default_rng(seed)
    if metric == "pearson":
        labels = rng.normal(50, 3, n)
        return labels, labels + rng.normal(0, 4, (runs, n))
    classes = 2 if metric in ("f1", "matthews") else 7
    share = 1 / np.arange(1, classes + 1)
    labels = rng.choice(classes, n, p=share / share.sum())
    return labels, np.where(
        rng.random((runs, n)) < 0.6, labels, rng.integers(0, classes, (runs, n))
    )


@pytest.mark.parametrize("metric", list(ORACLES))
def test_scores_are_those_of_the_libraries(metric):
    labels, predictions = sample(metric)
    ours = score_estimates(metric, labels, predictions)
    assert ours.values == pytest.approx([ORACLES[metric](labels, p) for p in predictions])
    assert ours.influence.shape == predictions.shape and ours.n == 300
    assert ours.influence.mean(1) == pytest.approx(np.zeros(3), abs=1e-12)


@pytest.mark.parametrize("metric", list(ORACLES))
def test_influence_is_the_derivative_by_an_items_weight(metric):
    labels, predictions = sample(metric)
    terms = run_terms(metric, labels, predictions)[1]
    influence = score_estimates(metric, labels, predictions).influence[1]
    step, n = 1e-6, len(labels)
    for item in (0, 17, 299):
        weights = np.stack([np.full(n, (1 - s) / n) for s in (step, -step)], 1)
        weights[item] += (step, -step)
        up, down = METRICS[metric].score(terms @ weights)
        assert influence[item] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("metric", list(ORACLES))
def test_influence_agrees_with_leaving_one_out(metric):
    labels, predictions = sample(metric, n=2000, runs=1)
    e = score_estimates(metric, labels, predictions)
    kept = np.arange(2000)
    for item in (3, 1200):
        left = ORACLES[metric](labels[kept != item], predictions[0, kept != item])
        assert 1999 * (e.values[0] - left) == pytest.approx(
            e.influence[0, item], rel=0.02, abs=0.02
        )


def test_standard_errors_hold_over_new_samples():
    metrics = ("accuracy", "macro_f1", "correlation_k", "pearson")
    for metric in metrics:
        e = [score_estimates(metric, *sample(metric, seed)) for seed in range(500)]
        differences = np.array([x.values[0] - x.values[1] for x in e])
        claimed = np.mean([x.combine([1, -1, 0]).se[0] for x in e])
        assert claimed == pytest.approx(differences.std(), rel=0.1), metric


def test_classes_may_be_words_and_right_answers_fractions():
    labels, predictions = sample("macro_f1")
    words = np.array(list("gfedcba"))
    for metric in ("accuracy", "macro_f1", "correlation_k"):
        named = score_estimates(metric, words[labels], words[predictions])
        numbered = score_estimates(metric, labels, predictions)
        assert named.values == pytest.approx(numbered.values)
        assert named.influence == pytest.approx(numbered.influence)
    fractions = score_estimates("exact_match", None, [[0, 0.5, 1, 1]])
    assert fractions.values == [0.625]


@pytest.mark.parametrize("metric", ["matthews", "correlation_k", "pearson"])
def test_a_constant_answer_has_correlation_0(metric):
    labels, predictions = sample(metric)
    for y, p in ((labels, np.ones(300)), (np.ones(300), predictions[0]), (np.ones(300),) * 2):
        e = score_estimates(metric, y, p)
        assert e.values == [0] and not e.influence.any()
        assert fisher_z(e).values == [0] and fisher_z(e).se == [0]


def test_scores_of_constants_and_single_items():
    assert score_estimates("f1", [0, 0], [0, 0]).values == [0]
    assert score_estimates("macro_f1", [0, 0], [0, 0]).values == [1]
    assert score_estimates("correlation_k", [1], [1]).values == [0]
    assert np.isfinite(fisher_z(score_estimates("pearson", [1.0], [2.0])).values).all()
    spread = 1e6 + np.arange(50) * 1e-3
    assert score_estimates("pearson", spread, -spread).values == pytest.approx([-1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("spearman", [1], [1]), "metric is 'spearman'"),
        (("f1", None, [1]), "labels are missing"),
        (("f1", [0, 1], [[1, 0, 1]]), "2 labels"),
        (("accuracy", None, [0.5, 1.5]), "predictions reach 1.5"),
        (("accuracy", None, [0.5, np.nan]), "not finite"),
        (("pearson", [0, 1], [0, np.inf]), "not finite"),
        (("pearson", [0, np.nan], [0, 1]), "not finite"),
        (("accuracy", [], []), "runs x items"),
    ],
)
def test_input_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(StudyError, match=message):
        score_estimates(*arguments)


def test_estimates_combine_as_matrices():
    rng = np.random.default_rng(1)
    e = Estimates(rng.normal(size=3), rng.normal(size=(3, 40)))
    weights = rng.normal(size=(2, 3))
    combined = e.combine(weights)
    assert combined.covariance == pytest.approx(weights @ e.covariance @ weights.T)
    assert combined.se**2 == pytest.approx(np.diag(combined.covariance))
    both = Estimates.stack(e, combined)
    assert both.values.shape == (5,) and both.take([4]).values == combined.values[1]
    assert e.apply(e.values**2, 2 * e.values).se == pytest.approx(2 * np.abs(e.values) * e.se)
    with pytest.raises(StudyError, match="cannot be stacked"):
        Estimates.stack(e, Estimates(np.zeros(1), np.zeros((1, 3))))


def test_fisher_z_is_half_the_log_odds_of_balanced_accuracy():
    labels = np.tile([0, 1], 500)
    predictions = np.where(np.arange(1000) % 10 < 8, labels, 1 - labels)
    e = score_estimates("correlation_k", labels, predictions)
    assert fisher_z(e).values == pytest.approx([0.5 * np.log(4)])
    assert fisher_z(e).se[0] == pytest.approx(0.5 / np.sqrt(1000 * 0.8 * 0.2), rel=1e-6)
    ends = fisher_z(Estimates(np.array([1.0, -1.0]), np.zeros((2, 50))))
    assert ends.values == pytest.approx(np.arctanh([0.98, -0.98]))


def test_signal_metric_follows_the_kind_of_label():
    assert signal_metric("accuracy", 2) == signal_metric("macro_f1", 77) == "correlation_k"
    assert signal_metric("pearson", None) == signal_metric("spearman", None) == "pearson"
    with pytest.raises(StudyError, match="classes is 1"):
        signal_metric("accuracy", 1)


@pytest.mark.parametrize("m", [2, 3, 4, 5.5, 12, 100])
def test_forced_choice_is_the_integral_and_its_inverse(m):
    for d in (-1.5, 0, 0.7, 1, 3):
        by_quadrature = integrate.quad(
            lambda x, d=d: stats.norm.pdf(x - d) * stats.norm.cdf(x) ** (m - 1),
            -10,
            14,
            epsabs=1e-12,
        )[0]
        assert afc_accuracy(d, m) == pytest.approx(by_quadrature, abs=1e-10)
        assert afc_d_prime(by_quadrature, m) == pytest.approx(d, abs=1e-6)
        step = (afc_accuracy(d + 1e-4, m) - afc_accuracy(d - 1e-4, m)) / 2e-4
        assert afc_slope(d, m) == pytest.approx(step, abs=1e-8)


def test_forced_choice_of_known_values():
    "Two alternatives: Phi(d / sqrt 2), .76 at d' = 1 in the tables (Hacker & Ratcliff 1979)."
    assert round(float(afc_accuracy(1, 2)), 2) == 0.76
    p = np.array([0.55, 0.76, 0.93])
    assert afc_d_prime(p, 2) == pytest.approx(np.sqrt(2) * stats.norm.ppf(p), abs=1e-6)
    assert afc_d_prime([1 / 3, 1 / 4.2], 3)[0] == pytest.approx(0, abs=1e-8)
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(200_000, 4))
    evidence[:, 0] += 1
    assert (evidence.argmax(1) == 0).mean() == pytest.approx(afc_accuracy(1, 4), abs=0.004)


def test_forced_choice_at_the_ends_is_finite_and_wrong_input_is_refused():
    ends = afc_signal(Estimates(np.array([0.0, 1.0, 0.25]), np.ones((3, 100))), 4)
    assert ends.values == pytest.approx(afc_d_prime([1 / 200, 1 - 1 / 200, 0.25], 4))
    assert np.isfinite(ends.se).all()
    assert np.isfinite(afc_d_prime([0, 1], 2)).all()
    for wrong in (1, 0, np.nan, np.inf):
        with pytest.raises(StudyError, match="m is"):
            afc_accuracy(0, wrong)
    with pytest.raises(StudyError, match="accuracy reaches"):
        afc_d_prime(1.2, 4)


@pytest.mark.parametrize("transform", [lambda e: afc_signal(e, 4), open_signal, fisher_z])
def test_transforms_have_the_right_derivative(transform):
    value, step = 0.6, 1e-6
    e = Estimates(np.array([value]), np.ones((1, 200)))
    up, down = (
        transform(Estimates(np.array([value + s]), e.influence)).values[0] for s in (step, -step)
    )
    assert transform(e).influence[0, 0] == pytest.approx((up - down) / (2 * step), rel=1e-5)


def test_open_signal_is_0_when_nothing_is_right():
    e = open_signal(Estimates(np.array([0, 0.5, 1]), np.zeros((3, 99))))
    unit = np.sqrt(3) / np.pi
    assert e.values == pytest.approx(unit * np.log([1, 199, 199**2]))


def two_runs():
    values = np.array([0.8, 0.7, 0.5])
    return Estimates(values, np.random.default_rng(0).normal(size=(3, 100)))


def test_drops_on_four_scales_by_hand():
    metric = two_runs()
    signal = metric.apply(10 * metric.values, np.full(3, 10.0))
    expected = {"signal": [1, 3], "points": [0.1, 0.3], "normalised": [0.2, 0.6]}
    expected["relative"] = [0.125, 0.375]
    for scale in SCALES:
        drops = drop_estimates(scale, signal, metric, [0, 0], [1, 2], chance=0.3)
        assert drops.values == pytest.approx(expected[scale])


@pytest.mark.parametrize("scale", SCALES)
def test_influences_of_drops_are_derivatives(scale):
    metric = two_runs()
    step = 1e-6
    drops = drop_estimates(scale, metric, metric, [0], [1], 0.3)
    moved = Estimates(metric.values + step * metric.influence[:, 5], metric.influence)
    change = drop_estimates(scale, moved, moved, [0], [1], 0.3).values - drops.values
    assert drops.influence[0, 5] == pytest.approx(change[0] / step, rel=1e-4)


def test_ratios_without_a_positive_denominator_are_nan_without_influence():
    metric = two_runs()
    drops = drop_estimates("normalised", None, metric, [0, 2], [1, 1], chance=0.5)
    assert drops.values[0] == pytest.approx(1 / 3) and np.isnan(drops.values[1])
    assert not drops.influence[1].any() and np.isfinite(drops.influence).all()
    none = Estimates(np.zeros(2), np.zeros((2, 10)))
    assert np.isnan(drop_estimates("relative", None, none, [0], [1]).values).all()
    assert drop_estimates("points", None, none, [0], [1]).values == [0]
    with pytest.raises(StudyError, match="scale is 'odds'"):
        drop_estimates("odds", none, none, [0], [1])


def test_difficulty():
    assert level_difficulty([1, -2]).tolist() == [-1, 2]
    assert human_gap([0.45], [0.9]) == pytest.approx([0.5])
    with pytest.raises(StudyError, match="human score is -1"):
        human_gap(0.5, [-1])
