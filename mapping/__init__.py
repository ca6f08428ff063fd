# SPDX-License-Identifier: Apache-2.0
"""Graph, importers, passes, memory placement and encoding."""
