# SPDX-License-Identifier: Apache-2.0
"""Measurements that are no tests: ``python -m benchmarks`` runs all, ``python -m benchmarks NAME`` one; results are kept in docs/results/."""
