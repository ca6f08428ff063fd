# SPDX-License-Identifier: Apache-2.0
"""Tops of FPGA boards: clocks, reset, pins."""
