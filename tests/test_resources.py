# SPDX-License-Identifier: Apache-2.0
"""The fit of the resource model, without synthesis: what its samples must be, and its least squares."""

import numpy as np
import pytest

from benchmarks import resources


@pytest.mark.smoke
def test_samples_determine_the_fit_and_held_out_blocks_are_others() -> None:
    resources.check_samples()


def test_a_sample_cannot_be_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "HELD_OUT", {**resources.HELD_OUT, "loader": [resources.SAMPLES["loader"][1]]})
    with pytest.raises(ValueError, match=r"held-out configurations of loader must differ from its samples, not be beat_bytes=24 "):
        resources.check_samples()


def test_too_few_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SAMPLES", {**resources.SAMPLES, "vector": resources.SAMPLES["vector"][:3]})
    with pytest.raises(ValueError, match=r"samples of vector must tell its 5 features apart, not 3 of them"):
        resources.check_samples()


def test_least_squares_without_negative_coefficients() -> None:
    """Where the free solution has a negative coefficient, the best of all subsets of columns is meant."""
    random = np.random.default_rng(1)
    for _ in range(20):
        rows, values = random.random((9, 4)), random.normal(size=9)
        found = resources.non_negative(rows, values)
        best = np.inf
        for chosen in range(16):
            columns = [i for i in range(4) if chosen >> i & 1]
            part = np.linalg.lstsq(rows[:, columns], values, rcond=None)[0]
            if (part >= 0).all():
                best = min(best, float(np.square(rows[:, columns] @ part - values).sum()))
        assert (found >= 0).all() and np.square(rows @ found - values).sum() == pytest.approx(best)
