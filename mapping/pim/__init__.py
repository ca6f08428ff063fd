# SPDX-License-Identifier: Apache-2.0
"""GPT models on a PIM system: shapes, importer, placement in the banks, programs (docs/architecture.md, 4.7)."""
