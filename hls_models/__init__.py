# SPDX-License-Identifier: Apache-2.0
"""Configurations, errors, number formats, instruction set, layout, golden and cycle models."""
