# SPDX-License-Identifier: Apache-2.0
"""The serial link between a host and a core."""
