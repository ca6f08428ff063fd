# SPDX-License-Identifier: Apache-2.0
"""TeLLMe v2's schedule on our cycle models comes out near what its authors measured, and moves with what it rests on."""

import pytest

from benchmarks.tellme import PUBLISHED, token


@pytest.mark.smoke
def test_the_serial_schedule_is_near_what_was_measured() -> None:
    found = token()
    assert found["tokens_per_second"] == pytest.approx(PUBLISHED["tokens_per_second"], rel=0.08)
    assert found["bits_per_weight"] == pytest.approx(PUBLISHED["bits_per_weight"], rel=0.001)
    assert found["bytes"]["weights"] == pytest.approx(PUBLISHED["weight_bytes"], rel=0.001)
    assert found["lookup_share"] == pytest.approx(PUBLISHED["lookup_share"], abs=0.02)


@pytest.mark.smoke
def test_it_follows_ports_and_context() -> None:
    rates = [token(ports=ports)["tokens_per_second"] for ports in (1, 2, 4)]
    assert rates == sorted(rates) and rates[0] < 0.7 * rates[1]
    assert token(context=1024)["tokens_per_second"] < token(context=128)["tokens_per_second"]
