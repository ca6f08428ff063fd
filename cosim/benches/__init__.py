# SPDX-License-Identifier: Apache-2.0
"""Benches: one per block, RTL against golden values and cycle model."""
