"""Bands of the calibration risks, and the index that says how far live ones are from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guard.probe import drift
from guard.probe.bundle import Bundle


def test_bands_hold_equal_shares() -> None:
    found = drift.bands(np.linspace(0, 1, 1000, dtype=np.float32))
    assert found is not None
    assert len(found.edges) + 1 == len(found.shares) == drift.BANDS
    assert found.shares == pytest.approx([0.1] * drift.BANDS, abs=0.002)
    assert [found.of(risk) for risk in (0.0, 0.05, 0.15, 0.95, 1.0)] == [0, 0, 1, 9, 9]


def test_a_risk_at_an_edge_is_counted_as_the_calibration_counted_it() -> None:
    risks = np.random.default_rng(0).random(500).astype(np.float32)
    found = drift.bands(risks)
    assert found is not None
    counts = np.bincount([found.of(float(risk)) for risk in risks], minlength=len(found.shares))
    assert found.shares == pytest.approx(counts / len(risks))


def test_plateaus_make_fewer_bands() -> None:
    risks = np.repeat(np.array([0.1, 0.5, 0.9], np.float32), [600, 300, 100])
    found = drift.bands(risks)
    assert found is not None
    assert found.edges == pytest.approx((0.5, 0.9))
    assert found.shares == pytest.approx((0.6, 0.3, 0.1))
    same = drift.bands(np.full(200, 0.5, np.float32))
    assert same is not None
    assert same.shares == (1.0,)


def test_too_few_answers_make_none() -> None:
    assert drift.bands(np.linspace(0, 1, drift.LEAST - 1, dtype=np.float32)) is None


def test_a_bundle_without_wrong_answers_has_no_bands(bundle: Bundle) -> None:
    assert bundle.bands is None
    known = replace(bundle, wrong_risks=bundle.right_risks)
    assert known.bands is not None
    assert sum(known.bands.shares) == pytest.approx(1)


def test_psi_by_hand() -> None:
    assert drift.psi([0.5, 0.5], [0.5, 0.5]) == 0
    assert drift.psi([0.8, 0.2], [0.5, 0.5]) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))
    assert drift.psi([1.0, 0.0], [0.5, 0.5]) == pytest.approx(0.5 * np.log(2) + (1e-4 - 0.5) * np.log(2e-4), rel=1e-6)
