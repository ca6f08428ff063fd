# SPDX-License-Identifier: Apache-2.0
"""Transformer checkpoint in; hardware, proof and cycle-accurate numbers out."""
