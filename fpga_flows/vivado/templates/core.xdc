# SPDX-License-Identifier: Apache-2.0
# The core by itself (out of context): its one clock.
create_clock -name {{ clock }} -period {{ "%.3f" | format(1e9 / clock_hz) }} [get_ports {{ clock }}]
