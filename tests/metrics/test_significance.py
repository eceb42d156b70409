"""Tests of a difference against hand-computed values and SciPy."""

import itertools

import pytest

from megabert.errors import InputError
from megabert.metrics.calibration import Bin, expected_calibration_error, reliability_bins
from megabert.metrics.significance import mcnemar, paired_bootstrap


def test_mcnemar_by_hand():
    # 1 example that only the first has right, 4 that only the second has: 2 * (C(5, 0) + C(5, 1)) / 2^5 = 12 / 32
    first = [True, True, False, False, False, False, True, False]
    second = [True, False, True, True, True, True, True, False]
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second, result.p_value) == (1, 4, 0.375)
    assert mcnemar(second, first).p_value == 0.375
    assert mcnemar(first, first).p_value == 1.0
    with pytest.raises(InputError):
        mcnemar([], [])


@pytest.mark.parametrize(("a", "b"), [(0, 3), (10, 10), (7, 19), (480, 560), (600, 640), (0, 2000)])
def test_mcnemar_equals_scipys_binomial_test(a, b):
    stats = pytest.importorskip("scipy.stats")
    result = mcnemar([True] * a + [False] * b, [False] * a + [True] * b)
    assert result.p_value == pytest.approx(stats.binomtest(a, a + b).pvalue, rel=1e-9)


def test_the_bootstrap_by_enumeration_of_all_resamples():
    # The second system is better by 1 on two examples and worse by 1 on one.
    first, second = [(0, 1), (0, 1), (1, 1)], [(1, 1), (1, 1), (0, 1)]
    resamples = list(itertools.product((1, 1, -1), repeat=3))
    not_above = sum(sum(resample) <= 0 for resample in resamples) / len(resamples)
    assert not_above == 7 / 27
    result = paired_bootstrap(first, second, num_samples=20_000)
    assert result.difference == pytest.approx(100 / 3)
    assert (result.low, result.high) == pytest.approx((-100, 100))  # 1 of 27 resamples is all worse, more than 2.5 %
    assert result.p_value == pytest.approx(2 * not_above, abs=0.02)


def test_the_bootstrap_of_f1_and_of_a_certain_difference():
    # F1 = 2 correct / (gold + predicted): 2/4 and 4/4
    result = paired_bootstrap([(2, 2), (0, 2)], [(2, 2), (2, 2)], num_samples=999)
    assert result.difference == 50
    certain = paired_bootstrap([(0, 1)] * 20, [(1, 1)] * 20, num_samples=999)
    assert (certain.difference, certain.low, certain.high, certain.p_value) == (100, 100, 100, 0.002)
    same = paired_bootstrap([(1, 1), (0, 1)], [(1, 1), (0, 1)], num_samples=999)
    assert (same.difference, same.p_value) == (0, 1)


def test_reliability_bins_by_hand():
    predictions = [(0.05, False), (0.15, True), (0.95, True), (0.91, False), (1.0, True)]
    bins = reliability_bins(predictions)
    assert bins[:2] == [Bin(1, 0.05, 0.0), Bin(1, 0.15, 1.0)]
    assert bins[2].count == 3 and bins[2].accuracy == pytest.approx(2 / 3)
    assert bins[2].confidence == pytest.approx(2.86 / 3)
    assert expected_calibration_error(bins) == pytest.approx((0.05 + 0.85 + 0.86) / 5)
    assert expected_calibration_error([]) == 0
