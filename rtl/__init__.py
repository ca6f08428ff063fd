# SPDX-License-Identifier: Apache-2.0
"""Amaranth generators and the emission of Verilog."""
