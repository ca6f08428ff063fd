# SPDX-License-Identifier: Apache-2.0
"""Programs for the processor beside a core: what runs on the board, without anything of ours but what the project's folder holds."""
