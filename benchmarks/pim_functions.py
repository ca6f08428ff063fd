# SPDX-License-Identifier: Apache-2.0
"""Errors of the companion chip's functions over every bf16 input, and the speed of the bank MAC's golden values."""

import time
from typing import Any

import numpy as np

from lutra.hls_models.floats import BF16, from_float64
from lutra.hls_models.pim import function_errors, mac

__all__ = ["measure"]


def measure() -> dict[str, Any]:
    """Largest errors by function and coefficients; nanoseconds per product of whole bursts: one vector against 4,096 rows, and 512 against 512."""
    rng = np.random.default_rng(1)
    speeds = {}
    for outputs, vectors, columns in ((4096, 1, 64), (512, 512, 48)):
        weights, inputs = (mac.Operand.of(from_float64(BF16, rng.standard_normal((n, columns, 16)))) for n in (outputs, vectors))
        start = time.perf_counter()
        mac.gemv(weights, inputs)
        speeds[f"{vectors} x {columns * 16} x {outputs}"] = round((time.perf_counter() - start) * 1e9 / (outputs * vectors * columns * 16), 3)
    return {"functions": [found._asdict() for found in function_errors.measure()], "ns_per_product": speeds}
