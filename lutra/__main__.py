# SPDX-License-Identifier: Apache-2.0
"""``python -m lutra``."""

from lutra.cli import main

if __name__ == "__main__":
    main()
