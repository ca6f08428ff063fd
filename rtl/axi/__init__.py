# SPDX-License-Identifier: Apache-2.0
"""A core's way to a shared memory: AXI4 masters of 128 bits."""
