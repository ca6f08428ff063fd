# SPDX-License-Identifier: Apache-2.0
"""Golden and cycle models of the ternary core (docs/architecture.md, part 2)."""
