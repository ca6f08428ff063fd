# SPDX-License-Identifier: Apache-2.0
"""Search for cores that fit a device: a space of sizes, bounds that prune it, exact cycles on many processes or machines, the Pareto front."""
