# SPDX-License-Identifier: Apache-2.0
"""The PIM target: GDDR6 channels with a MAC unit in every bank, and their companion chip (docs/architecture.md, part 4)."""
