# SPDX-License-Identifier: Apache-2.0
"""Co-simulation: harness, recorders, build cache and benches."""
