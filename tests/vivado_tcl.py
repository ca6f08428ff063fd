# SPDX-License-Identifier: Apache-2.0
"""A Tcl interpreter in the place of Vivado, and rules for the block design that a script makes in it."""

import itertools
import tkinter
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ip_component import SPIRIT, every, one

PS_PINS = {
    *("pl_clk0", "pl_resetn0", "pl_ps_irq0", "maxihpm0_fpd_aclk"),
    *(f"saxihp{port}_fpd_aclk" for port in range(4)),
    *(f"saxihpc{port}_fpd_aclk" for port in range(2)),
}
PS_INTERFACES = {"M_AXI_HPM0_FPD", *(f"S_AXI_HP{port}_FPD" for port in range(4)), *(f"S_AXI_HPC{port}_FPD" for port in range(2))}
PS_GROUPS = {"HP0": "GP2", "HP1": "GP3", "HP2": "GP4", "HP3": "GP5", "HPC0": "GP0", "HPC1": "GP1"}
"""Of AMD UG1085 and PG201: what a Zynq UltraScale+ processor system has towards the logic."""
CELL_PINS = {
    "xilinx.com:ip:zynq_ultra_ps_e": (PS_PINS, PS_INTERFACES),
    "xilinx.com:ip:clk_wiz": ({"clk_in1", "clk_out1", "resetn", "locked"}, set()),
    "xilinx.com:ip:proc_sys_reset": ({"slowest_sync_clk", "ext_reset_in", "dcm_locked", "interconnect_aresetn", "peripheral_aresetn"}, set()),
    "xilinx.com:ip:smartconnect": ({"aclk", "aresetn"}, {"S00_AXI", "M00_AXI"}),
}
OUTPUTS = {"ps/pl_clk0", "ps/pl_resetn0", "clock/clk_out1", "clock/locked", "reset/interconnect_aresetn", "reset/peripheral_aresetn", "core/interrupt"}
COMMANDS = [
    "create_project",
    "set_property",
    "update_ip_catalog",
    "add_files",
    "create_bd_design",
    "create_bd_cell",
    "apply_bd_automation",
    "connect_bd_net",
    "connect_bd_intf_net",
    "assign_bd_address",
    "exclude_bd_addr_seg",
    "validate_bd_design",
    "save_bd_design",
    "update_compile_order",
    "generate_target",
    "launch_runs",
    "wait_on_runs",
    "open_run",
    "close_design",
    "report_utilization",
    "report_timing_summary",
    "report_power",
    "create_clock",
]
"""The vendor's, in effect; anything else that Tcl does not know is an error."""


class Vivado:
    """A Tcl interpreter in which the vendor's commands are recorded."""

    def __init__(self, folder: Path, *, progress: str = "100%", slack: str = "0.1", installed: bool = True) -> None:
        self.folder, self.calls = folder, list[tuple[str, ...]]()
        self.tcl = tkinter.Tcl()
        for name in COMMANDS:
            self.tcl.createcommand(name, lambda *words, name=name: self._record(name, *words))
        answers: dict[str, Any] = {
            "get_ipdefs": lambda *words: (
                f"{words[-1].removesuffix(':*')}:1.0 {words[-1].removesuffix(':*')}:10.0 {words[-1].removesuffix(':*')}:9.0" if installed else ""
            ),
            "get_board_parts": lambda pattern: "xilinx.com:kv260_som:part0:1.3 xilinx.com:kv260_som:part0:1.4",
            "get_boards": lambda pattern: "xilinx.com:kv260_carrier:1.3",
            "get_files": lambda name: f"/project/{name}",
            "make_wrapper": lambda *words: "/project/system_wrapper.v",
            "get_timing_paths": lambda *words: "path",
            "get_property": lambda name, thing: {"PROGRESS": progress, "STATUS": "synth_design ERROR", "SLACK": slack, "DIRECTORY": f"{folder}/runs"}[name],
        }
        for name in ("current_project", "current_fileset", "current_design"):
            answers[name] = lambda name=name: name
        for name in ("get_bd_pins", "get_bd_intf_pins", "get_bd_cells", "get_bd_addr_spaces", "get_bd_addr_segs", "get_runs", "get_ports"):
            answers[name] = lambda thing: thing
        for name, answer in answers.items():
            self.tcl.createcommand(name, answer)

    def _record(self, name: str, *words: str) -> str:
        self.calls.append((name, *words))
        if name == "launch_runs" and "write_bitstream" in words:
            runs = self.folder / "runs"
            for path in (runs / "system_wrapper.bit", runs / "lutra.gen/sources_1/bd/system/hw_handoff/system.hwh"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(path.name)
        return ""

    def source(self, script: str = "create_project.tcl", *arguments: str) -> None:
        # puts would write to this process's output
        self.tcl.eval("proc puts {text} {}")
        self.tcl.eval(f"set argv [list {' '.join(arguments)}]")
        self.tcl.call("source", str(self.folder / script))

    def named(self, name: str) -> list[tuple[str, ...]]:
        return [words[1:] for words in self.calls if words[0] == name]

    def options(self, cell: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for words in self.named("set_property"):
            if words[0] == "-dict" and words[-1] == cell:
                flat = self.tcl.splitlist(words[1])
                found |= dict(zip(flat[::2], flat[1::2], strict=True))
        return found


def check_design(vivado: Vivado, component: Path) -> None:
    """Files exist, pins and interfaces exist and are driven once, the clock is right, memory ports are all connected, addresses do not overlap."""
    root = ElementTree.parse(component).getroot()
    vlnv = ":".join(one(root, part) for part in ("vendor", "library", "name"))
    interfaces = {one(bus, "name"): bus for bus in every(root, "busInterfaces/busInterface")}
    axi = {name for name in interfaces if "_axi_" in name}
    known = CELL_PINS | {vlnv: ({one(port, "name") for port in every(root, "model/ports/port")}, axi)}
    cells = {}
    for words in vivado.named("create_bd_cell"):
        assert words[:3] == ("-type", "ip", "-vlnv")
        core, _, version = words[3].rpartition(":")
        assert version == "10.0" and core in known  # the newest, not the last by letters
        cells[words[4]] = core
    pins = {f"{cell}/{pin}" for cell, core in cells.items() for pin in known[core][0]}
    driver: dict[str, str] = {}
    for source, *loads in vivado.named("connect_bd_net"):
        assert source in OUTPUTS and {source, *loads} <= pins, f"no such pin: {({source, *loads} - pins) | ({source} - OUTPUTS)}"
        for load in loads:
            assert load not in driver and load not in OUTPUTS
            driver[load] = source
    memories = sorted(name for name, bus in interfaces.items() if "_axi_" in name and bus.find(SPIRIT + "master") is not None)
    pairs = [tuple(words) for words in vivado.named("connect_bd_intf_net")]
    there = {f"{cell}/{interface}" for cell, core in cells.items() for interface in known[core][1]}
    assert all({*pair} <= there for pair in pairs) and len({end for pair in pairs for end in pair}) == 2 * len(pairs)
    assert ("ps/M_AXI_HPM0_FPD", "control/S00_AXI") in pairs and ("control/M00_AXI", "core/s_axi_control") in pairs
    ports = {own.removeprefix("core/"): port.removeprefix("ps/S_AXI_").removesuffix("_FPD") for own, port in pairs if own.startswith("core/m_axi")}
    assert sorted(ports) == memories and len(set(ports.values())) == len(memories) and all(port.startswith("HP") for port in ports.values())
    # One clock for everything that is connected, and its reset.
    clocked = ["reset/slowest_sync_clk", "control/aclk", "core/aclk", "ps/maxihpm0_fpd_aclk", *(f"ps/saxi{port.lower()}_fpd_aclk" for port in ports.values())]
    assert {load for load, source in driver.items() if source == "clock/clk_out1"} == set(clocked)
    assert (driver["clock/clk_in1"], driver["clock/resetn"], driver["reset/ext_reset_in"]) == ("ps/pl_clk0", "ps/pl_resetn0", "ps/pl_resetn0")
    assert (driver["reset/dcm_locked"], driver["control/aresetn"]) == ("clock/locked", "reset/interconnect_aresetn")
    assert (driver["core/aresetn"], driver["ps/pl_ps_irq0"]) == ("reset/peripheral_aresetn", "core/interrupt")
    clock, ps = vivado.options("clock"), vivado.options("ps")
    assert float(clock["CONFIG.CLKOUT1_REQUESTED_OUT_FREQ"]) == 250
    assert float(clock["CONFIG.PRIM_IN_FREQ"]) == float(ps["CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"]) == 100
    slaves = {PS_GROUPS[port] for port in ports.values()}
    assert {name for name in PS_GROUPS.values() if ps.get(f"CONFIG.PSU__USE__S_AXI_{name}") == "1"} == slaves
    assert all(ps[f"CONFIG.PSU__SAXI{name}__DATA_WIDTH"] == "128" for name in slaves)
    assert (ps["CONFIG.PSU__USE__M_AXI_GP0"], ps["CONFIG.PSU__USE__IRQ0"], ps["CONFIG.PSU__FPGA_PL0_ENABLE"]) == ("1", "1", "1")
    _check_addresses(vivado, ports)


def _check_addresses(vivado: Vivado, ports: dict[str, str]) -> None:
    spaces: dict[str, list[tuple[int, int, str]]] = {}
    for words in vivado.named("assign_bd_address"):
        assert (words[0], words[2], words[4], words[-1]) == ("-offset", "-range", "-target_address_space", "-force")
        base, size = int(words[1], 0), int(words[3], 0)
        assert size & (size - 1) == 0 and base % size == 0  # as the vendor demands
        spaces.setdefault(words[5], []).append((base, base + size, words[6]))
    for ranges in spaces.values():
        ranges.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges)) and ranges[-1][1] <= 1 << 40
    assert set(spaces) == {"ps/Data", *(f"core/{name}" for name in ports)}
    ((base, end, segment),) = spaces["ps/Data"]
    assert 0xA0000000 <= base < end <= 0xB0000000 and segment == "core/s_axi_control/s_axi_control"  # the window of HPM0_FPD
    for name, port in ports.items():
        segments = [f"ps/SAXI{PS_GROUPS[port]}/{port}_{part}" for part in ("DDR_LOW", "DDR_HIGH")]
        assert spaces[f"core/{name}"] == [(0, 1 << 31, segments[0]), (1 << 35, (1 << 35) + (1 << 31), segments[1])]  # 4 GiB
    left = {words[0] for words in vivado.named("exclude_bd_addr_seg")}
    assert left == {f"ps/SAXI{PS_GROUPS[port]}/{port}_{part}" for port in ports.values() for part in ("LPS_OCM", "QSPI")}
