"Inference against a published example, statsmodels, enumeration, values by hand and simulation."

import itertools
import operator

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.api import OLS
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from junkdna_nb.base.config import StudyError
from junkdna_nb.evidence.inference import (
    Ordered,
    cluster,
    equivalence_p,
    gated,
    holm,
    leave_one_out_tau,
    mean_power,
    minimal_detectable,
    minimal_tau,
    paule_mandel,
    random_effects,
    slope_test,
    split_tau,
    tau_power,
    tau_test,
)

# Cases and others, vaccinated and not, in 13 trials (Colditz et al. 1994, JAMA 271:698).
TRIALS = [
    (4, 119, 11, 128),
    (6, 300, 29, 274),
    (3, 228, 11, 209),
    (62, 13536, 248, 12619),
    (33, 5036, 47, 5761),
    (180, 1361, 372, 1079),
    (8, 2537, 10, 619),
    (505, 87886, 499, 87892),
    (29, 7470, 45, 7232),
    (17, 1699, 65, 1600),
    (186, 50448, 141, 27197),
    (5, 2493, 3, 2338),
    (27, 16886, 29, 17825),
]


def log_risk_ratios():
    "Log risk ratios (13,) and their variances (13,)"
    a, b, c, d = np.array(TRIALS, float).T
    ratio = np.log(a / (a + b)) - np.log(c / (c + d))
    return ratio, 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_published_meta_analysis():
    "metafor on the same trials: tau2 .3181 (Paule-Mandel); tau2 .3132, mean -.7145 +- .1798 (REML)"
    values, variances = log_risk_ratios()
    meta = random_effects(values, variances)
    assert meta.tau2 == pytest.approx(0.3181, abs=5e-5)
    weights = 1 / (variances + 0.3132)
    assert 1 / np.sqrt(weights.sum()) == pytest.approx(0.1798, abs=6e-5)
    reml = weights @ values / weights.sum()
    assert reml == pytest.approx(-0.7145, abs=6e-5)
    assert meta.mean == pytest.approx(reml, abs=0.001)
    assert meta.p == pytest.approx(0.0019, abs=1e-4)
    q = (values - np.average(values, weights=1 / variances)) ** 2 / variances
    assert q.sum() == pytest.approx(152.23, abs=0.01)
    assert meta.i2 == pytest.approx(1 - 12 / 152.233, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_random_effects_are_those_of_statsmodels(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(3, 40))
    variances = rng.uniform(0.001, 0.2, k)
    values = rng.normal(0.1, np.sqrt(variances + (seed % 3) * 0.1))
    ours = random_effects(values, variances, level=0.9)

    def excess(tau2):
        "Q(tau2) minus its expectation"
        w = 1 / (variances + tau2)
        return w @ (values - np.average(values, weights=w)) ** 2 - (k - 1)

    root = optimize.brentq(excess, 0, 10, xtol=1e-12) if excess(0) > 0 else 0
    assert ours.tau2 == pytest.approx(root, abs=1e-9)
    theirs = combine_effects(values, variances, method_re="iterated", use_t=True, atol=1e-7)
    if root and not theirs.tau2:
        # with rounding of this processor statsmodels steps over the root and returns 0
        weights = 1 / (variances + root)
        assert ours.weights == pytest.approx(weights / weights.sum(), abs=1e-9)
        return
    assert ours.tau2 == pytest.approx(theirs.tau2, abs=1e-7)
    assert ours.mean == pytest.approx(theirs.mean_effect_re, abs=1e-7)
    assert ours.se == pytest.approx(theirs.sd_eff_w_re_hksj, abs=1e-7)
    assert ours.weights == pytest.approx(theirs.weights_rel_re, abs=1e-6)
    assert (ours.low, ours.high) == pytest.approx(
        stats.t.interval(0.9, k - 1, theirs.mean_effect_re, theirs.sd_eff_w_re_hksj), abs=1e-6
    )
    assert ours.p == pytest.approx(2 * stats.t.sf(abs(ours.mean) / ours.se, k - 1))
    spread = np.sqrt(ours.tau2 + ours.se**2)
    assert ours.prediction_high - ours.mean == pytest.approx(stats.t.ppf(0.95, k - 2) * spread)
    plain = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (ours.equal_low, ours.equal_high) == pytest.approx(tuple(plain))


def test_degenerate_random_effects_are_defined():
    one = random_effects([0.2], [0.1])
    assert (one.mean, one.se, one.low, one.p, one.prediction_low) == (0.2, None, None, None, None)
    assert (one.equal_mean, one.equal_low, one.tau2, one.i2) == (0.2, None, 0, 0)
    two = random_effects([0.1, 0.3], [0.01, 0.01])
    assert two.p is not None and two.prediction_low is None
    nothing = random_effects(np.zeros(5), np.zeros(5))
    assert (nothing.mean, nothing.se, nothing.p, nothing.tau2, nothing.i2) == (0, 0, 1, 0, 0)
    same = random_effects([0.2] * 4, [0.01] * 4)
    assert same.se == pytest.approx(0.05) and same.p < 0.05
    certain = random_effects([0.2] * 4, np.zeros(4))
    assert (certain.se, certain.p) == (0, None)
    exact = random_effects([0.1, 0.2, 0.6], 0)
    assert exact.tau2 == pytest.approx(np.var([0.1, 0.2, 0.6], ddof=1))
    assert (exact.low, exact.high) == pytest.approx((exact.equal_low, exact.equal_high))
    mixed = random_effects([0.1, 0.5, 0.2], [0, 0.1, 0.1])
    assert all(np.isfinite(v) for v in (mixed.mean, mixed.se, mixed.low, mixed.p, mixed.tau2))
    huge = random_effects([1e6, 3e6, 2e6, 9e6], [1e-3] * 4)
    assert huge.tau2 == pytest.approx(np.var([1e6, 3e6, 2e6, 9e6], ddof=1), rel=1e-6)


@pytest.mark.parametrize(
    "values, variances, message",
    [
        ([], [], "shape"),
        ([0.1, np.nan], [1, 1], "not finite"),
        ([0.1, 0.2], [1, np.nan], "not finite"),
        ([0.1, 0.2], [1, None], "not finite"),
        ([0.1, 0.2], [1, -1], "variance is -1"),
    ],
)
def test_unknown_effects_are_refused(values, variances, message):
    with pytest.raises(StudyError, match=message):
        random_effects(values, variances)


def test_interval_covers_when_tasks_are_redrawn():
    rng = np.random.default_rng(0)
    covered, rejected = [], []
    for _ in range(2000):
        variances = rng.uniform(0.002, 0.03, 12)
        values = rng.normal(0, np.sqrt(variances + 0.02))
        meta = random_effects(values, variances)
        covered.append(meta.low <= 0 <= meta.high)
        rejected.append(meta.p < 0.05)
    assert 0.93 < np.mean(covered) < 0.97
    assert np.mean(rejected) == pytest.approx(1 - np.mean(covered))


def test_clusters():
    found = cluster([1, 2, 6], [4, 9, 1], ["b", "a", "b"])
    assert (found.names, found.members) == (("b", "a"), ((0, 2), (1,)))
    assert found.values.tolist() == [3.5, 2]
    assert found.variances == pytest.approx([2.25, 9])
    assert found.mean([10, 20, 30]).tolist() == [20, 20]
    alone = cluster([1, 2], [4, 9], ["x", "y"])
    assert alone.variances.tolist() == [4, 9]
    with pytest.raises(StudyError, match="1 groups"):
        cluster([1, 2], [1, 1], ["x"])


def test_clusters_are_conservative():
    "Errors correlated fully: the variance is right; independent: it is too large"
    rng = np.random.default_rng(0)
    claimed = cluster(np.zeros(2), [1, 4], [0, 0]).variances[0]
    shared = rng.normal(size=(4000, 1)) * [1, 2]
    assert shared.mean(1).var() == pytest.approx(claimed, rel=0.08)
    assert (rng.normal(size=(4000, 2)) * [1, 2]).mean(1).var() < claimed


def test_tau_by_hand():
    "Pairs of 1 2 3 4 5 with 1 3 2 5 4: 8 concordant, 2 discordant"
    found = tau_test([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    assert found.estimate == pytest.approx(0.6)
    pairs = [
        stats.kendalltau(np.delete([1, 2, 3, 4, 5], i), np.delete([1, 3, 2, 5, 4], i))
        for i in range(5)
    ]
    without = np.array([p.statistic for p in pairs])
    se = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert found.se == pytest.approx(se)
    assert found.p == pytest.approx(2 * stats.t.sf(0.6 / se, 4))
    assert found.high <= 1


@pytest.mark.parametrize("seed", range(10))
def test_tau_and_its_leave_one_out_are_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, (2, 12))
    tau, without = leave_one_out_tau(x.astype(float), y.astype(float))
    assert tau == pytest.approx(stats.kendalltau(x, y).statistic)
    for i in range(12):
        left = stats.kendalltau(np.delete(x, i), np.delete(y, i)).statistic
        assert without[i] == pytest.approx(left)


def test_degenerate_orders_are_defined():
    for k in (0, 1, 2, 4):
        found = tau_test(np.arange(k), np.arange(k))
        assert (found.k, found.se, found.low, found.p) == (k, None, None, None)
        assert found.estimate == (1 if k > 1 else 0)
        assert slope_test(np.arange(k), np.arange(k)).p is None
    flat = Ordered(0.0, None, None, None, None, 9, 8)
    assert tau_test(np.arange(9), np.ones(9)) == tau_test(np.ones(9), np.arange(9)) == flat
    assert split_tau(*[np.ones(9)] * 4) == flat
    assert slope_test(np.ones(9), np.arange(9)).estimate == 0
    assert slope_test(np.arange(9), np.ones(9)).p is None
    perfect = tau_test(np.arange(9), -np.arange(9))
    assert (perfect.estimate, perfect.p) == (-1, pytest.approx(2 / 362880))
    lonely = tau_test([0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1])  # one task makes the order
    assert np.isfinite(lonely.estimate)
    assert slope_test([0, 0, 0, 0, 0, 1], np.arange(6)).p is None
    with pytest.raises(StudyError, match="3 difficulties for 2 drops"):
        tau_test([1, 2, 3], [1, 2])
    with pytest.raises(StudyError, match="not finite"):
        slope_test([1, np.nan], [1, 2])


def spread_world(rng, k, spread):
    "Difficulty (k,) and a drop (k,) unrelated to it, whose sd is a function of difficulty"
    x = rng.normal(size=k)
    return x, spread(x) * rng.normal(size=k)


SPREADS = {"equal": np.ones_like, "ends": lambda x: 0.2 + x**2, "hard": np.exp}


@pytest.mark.parametrize("name", list(SPREADS))
@pytest.mark.parametrize("test", [tau_test, slope_test])
def test_size_under_equal_and_unequal_spread(name, test):
    rng = np.random.default_rng(0)
    for k in (25, 65):
        p = [test(*spread_world(rng, k, SPREADS[name])).p for _ in range(2000)]
        assert np.mean(np.array(p) < 0.05) < 0.06 + 2.5 * np.sqrt(0.06 * 0.94 / 2000)


def test_slope_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, 30)
    y = 0.5 * x + rng.normal(size=30) * np.abs(x)
    found = slope_test(x, y, level=0.9)
    standard = (x - x.mean()) / x.std(ddof=1)
    fit = OLS(y, np.stack([np.ones(30), standard], 1)).fit(cov_type="HC3", use_t=True)
    assert (found.estimate, found.se) == pytest.approx((fit.params[1], fit.bse[1]))
    assert found.p == pytest.approx(fit.pvalues[1])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int(0.1)[1]))
    line = slope_test([0, 1, 2, 3, 4], [0, 2, 4, 6, 8.0])
    assert line.estimate == pytest.approx(2 * np.std(range(5), ddof=1))


def test_split_runs_remove_regression_to_the_mean():
    rng = np.random.default_rng(0)
    same, split = [], []
    for _ in range(300):
        truth = rng.normal(size=40)
        dense_a, dense_b, sparse_a, sparse_b = truth + 0.7 * rng.normal(size=(4, 40))
        same.append(tau_test(-dense_a, dense_a - sparse_a).p < 0.05)
        split.append(split_tau(-dense_a, dense_b - sparse_b, -dense_b, dense_a - sparse_a).p < 0.05)
    assert np.mean(same) > 0.5 and np.mean(split) < 0.09
    x, y = rng.normal(size=(2, 20))
    assert split_tau(x, y, x, y) == tau_test(x, y)
    mean = split_tau(x, y, y, -x).estimate
    assert mean == pytest.approx(0, abs=1e-12)


def test_equivalence():
    assert equivalence_p(0.02, 0.01, 15, 0.06) == pytest.approx(stats.t.sf(4, 15))
    assert equivalence_p(-0.02, 0.01, 15, 0.06) == pytest.approx(stats.t.sf(4, 15))
    assert equivalence_p(0.1, 0.01, 15, 0.06) > 0.99
    assert (equivalence_p(0.1, 0, 5, 0.06), equivalence_p(0, 0, 5, 0.06)) == (1, 0)
    assert equivalence_p(0.1, None, 5, 0.06) is None and equivalence_p(0.1, 0.1, 0, 0.06) is None
    with pytest.raises(StudyError, match="margin is 0"):
        equivalence_p(0.1, 0.1, 5, 0)


def closed_test(pvalues, alpha):
    "Rejections by the closed test with Bonferroni for every intersection, enumerated"
    rows = range(len(pvalues))
    kept = set()  # rows of an intersection that is not rejected
    for size in rows:
        for some in itertools.combinations(rows, size + 1):
            if min(pvalues[i] for i in some) > alpha / len(some):
                kept.update(some)
    return [i not in kept for i in rows]


@pytest.mark.parametrize("seed", range(40))
def test_holm_is_the_closed_test(seed):
    rng = np.random.default_rng(seed)
    pvalues = list(rng.random(5) ** 4)
    assert [p <= 0.05 for p in holm(pvalues)] == closed_test(pvalues, 0.05)
    assert holm(pvalues) == pytest.approx(multipletests(pvalues, method="holm")[1])
    pvalues[2] = None
    with_one = closed_test([1.0 if p is None else p for p in pvalues], 0.05)
    assert [p is not None and p <= 0.05 for p in holm(pvalues)] == with_one


def fixed_sequence(pvalues, level):
    "Rejections in a fixed order until the first that is not"
    small = [p is not None and p <= level for p in pvalues]
    return list(itertools.accumulate(small, operator.and_))


@pytest.mark.parametrize("seed", range(40))
def test_gated_families_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    claims = [f"C{i}" for i in range(4)]
    primary = {c: float(rng.random() ** 5) for c in claims}
    chains = {}
    for c in claims[1:]:
        chains[c] = [(f"{c}.{i}", float(rng.random() ** 5)) for i in range(3)]
    rows = gated(primary, chains)
    first = dict(zip(claims, closed_test(list(primary.values()), 0.05), strict=True))
    for claim in claims:
        assert rows[claim].rejected == first[claim]
        chain = chains.get(claim, [])
        expected = fixed_sequence([p for _, p in chain], 0.05 / 4)
        for (name, _), one in zip(chain, expected, strict=True):
            assert rows[name].rejected == (one and first[claim])
            adjusted = rows[name].p_adjusted
            assert rows[name].rejected == (adjusted is not None and adjusted <= 0.05)
            assert rows[name].claim == claim


def test_gates_say_why():
    chains = {"A": [("a", 0.9), ("b", 0.001)], "B": [("c", None), ("d", 0.001)], "C": [("e", 0.1)]}
    rows = gated({"A": 0.001, "B": 0.002, "C": None}, chains)
    reasons = {name: row.reason for name, row in rows.items()}
    assert reasons == {
        "A": "",
        "B": "",
        "C": "not run",
        "a": "not rejected",
        "b": "closed gate",
        "c": "not run",
        "d": "closed gate",
        "e": "closed gate",
    }
    assert rows["A"].p_adjusted == pytest.approx(0.003)
    assert rows["a"].p_adjusted == 1 and rows["b"].p_adjusted is None and rows["b"].p == 0.001
    assert gated({}, {}) == {}
    with pytest.raises(StudyError, match="claim is 'Z'"):
        gated({"A": 0.1}, {"Z": []})
    with pytest.raises(StudyError, match="'A' is given twice"):
        gated({"A": 0.1}, {"A": [("A", 0.1)]})
    with pytest.raises(StudyError, match="p values reach"):
        holm([0.1, 1.2])
    with pytest.raises(StudyError, match="p values reach"):
        holm([0.1, float("nan")])


def test_primary_and_chain_errors_are_controlled_each():
    "All null: primaries at .05 together, all chains together at .05"
    rng = np.random.default_rng(0)
    first, second = [], []
    for _ in range(3000):
        p = rng.random((4, 3))
        p[:, 0] *= [1, 1, 0, 0]  # two primaries are false null hypotheses
        primary = {str(i): p[i, 0] for i in range(4)}
        chains = {str(i): [(f"{i}a", p[i, 1]), (f"{i}b", p[i, 2])] for i in range(4)}
        rows = gated(primary, chains)
        first.append(rows["0"].rejected or rows["1"].rejected)
        second.append(any(row.rejected for name, row in rows.items() if len(name) > 1))
    assert np.mean(first) < 0.062 and np.mean(second) < 0.062


def test_power_of_a_mean():
    for effect, k in ((0.3, 20), (0.6, 12), (0.0, 8)):
        theirs = TTestPower().power(effect, k, 0.05)
        assert mean_power(effect, 1 / np.sqrt(k), k - 1) == pytest.approx(theirs, abs=1e-6)
    for df, alpha, power in ((1, 0.05, 0.8), (6, 0.05 / 7, 0.9), (64, 0.05, 0.3)):
        least = minimal_detectable(0.02, df, alpha, power)
        assert mean_power(least, 0.02, df, alpha) == pytest.approx(power, abs=1e-5)
        assert mean_power(-least, 0.02, df, alpha) == pytest.approx(power, abs=1e-5)
    assert (minimal_detectable(0, 5), minimal_detectable(None, 5)) == (0, None)
    assert minimal_detectable(0.1, 0) is None
    assert mean_power([0, 1e3], 1, 5).tolist() == pytest.approx([0.05, 1])
    with pytest.raises(StudyError, match="se is 0"):
        mean_power(1, 0, 5)
    with pytest.raises(StudyError, match="power is 1"):
        minimal_detectable(1, 5, power=1)


def test_power_of_tau_is_near_that_of_simulated_studies():
    rng = np.random.default_rng(0)
    for tau, k in ((0.3, 40), (0.4, 25), (0.2, 65)):
        r = np.sin(np.pi / 2 * tau)
        x = rng.normal(size=(1000, k))
        y = r * x + np.sqrt(1 - r**2) * rng.normal(size=(1000, k))
        seen = np.mean([tau_test(a, b).p < 0.05 for a, b in zip(x, y, strict=True)])
        assert seen == pytest.approx(float(tau_power(tau, k)), abs=0.06)
    assert tau_power(0, 30) == pytest.approx(0.05)
    assert tau_power(minimal_tau(50, 0.01, 0.9), 50, 0.01) == pytest.approx(0.9, abs=1e-4)
    with pytest.raises(StudyError, match="k is 1"):
        tau_power(0.3, 1)


def test_paule_mandel_solves_its_equation():
    values, variances = log_risk_ratios()
    tau2 = paule_mandel(values, variances)
    weights = 1 / (variances + tau2)
    q = weights @ (values - np.average(values, weights=weights)) ** 2
    assert q == pytest.approx(12, abs=1e-8)
    assert paule_mandel(np.array([0.1, 0.11]), np.array([1.0, 1.0])) == 0
