# SPDX-License-Identifier: Apache-2.0
"""A DRAM channel as its pins see it: timing rules, cells and what its banks compute. Imports nothing of lutra, so that no mistake is shared."""
