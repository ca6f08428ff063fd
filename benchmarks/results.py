# SPDX-License-Identifier: Apache-2.0
"""Stored results of benchmarks."""

import json
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "newest", "token_runs"]

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def newest(name: str) -> dict[str, Any] | None:
    """The newest stored result of a benchmark."""
    stored = sorted(RESULTS.glob(f"{name}-2*.json"))
    return json.loads(stored[-1].read_text()) if stored else None


def token_runs() -> dict[str, dict[str, Any]]:
    """The newest result of ``benchmarks.token`` for every core that it ran, by ``lutra.proofs.sizes_hash``."""
    stored = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("token-*.json"))]
    return {result["core"]: result for result in sorted(stored, key=lambda result: str(result["date"]))}
