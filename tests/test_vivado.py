# SPDX-License-Identifier: Apache-2.0
"""Vivado projects, checked without Vivado: Tcl in an interpreter that records the vendor's commands, IP against the rules of IP-XACT and its Verilog."""

import json
import re
import shutil
import tkinter
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from ip_component import PORTS, check_component
from processor_case import CONFIG, SHAPE, small_program
from vivado_tcl import Vivado, check_design

from lutra import api
from lutra.cli import main
from lutra.fpga_flows.vivado.project import without_primitives
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.control import control_map
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.rtl.verilog import LIBRARY
from lutra.runs import Run, create_run, open_run
from lutra.vivado import ProjectReport


def compiled_run(path: Path, config: CoreConfig, program: Any) -> Run:
    with create_run(path, command="compile", config=config) as draft:
        program.save(draft.path / "program")
    return open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = compiled_run(tmp_path_factory.mktemp("vivado") / "run", CONFIG, small_program())
    api.fpga(run.path, "kv260")
    return run


@pytest.fixture(scope="module")
def folder(run: Run) -> Path:
    return run.path / "fpga" / "kv260-core"


# What lutra fpga says and refuses


def test_the_command(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as caught:
        main(["fpga", str(run.path), "--board", "kv260", "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    report = ProjectReport.model_validate_json((folder / "report.json").read_bytes())
    assert json.loads(out) == {"run": str(run.path), **report.model_dump(mode="json")}
    assert {path.relative_to(folder).as_posix() for path in before} == {*report.files, "report.json"}
    assert {path: path.read_bytes() for path in before} == before  # the same bytes again
    assert report.ports == {"m_axi_memory0": "S_AXI_HP0_FPD", "m_axi_memory1": "S_AXI_HP1_FPD"} and report.clock_hz == 250e6
    assert 0 < report.used["lut"] < report.available["lut"] == 117120
    assert report.tokens_per_second["24"] > 1000
    assert open_run(run.path).manifest.commands[-1] == "fpga kv260-core"
    with pytest.raises(SystemExit) as caught:
        main(["fpga", str(run.path), "--board", "kv260", "--clock", "200e6"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and "clock 200 MHz, Vivado project" in shown and "create_project.tcl" in shown and "README.md tells how" in shown
    assert "-period 5.000" in (folder / "ip/lutra_core/lutra_core_ooc.xdc").read_text()
    api.fpga(run.path, "kv260")
    assert {path: path.read_bytes() for path in before} == before


def test_what_does_not_fit_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    program = small_program()
    big = CONFIG.model_copy(update={"name": "big", "tables": 96, "columns": 40, "lanes": 8, "ring_rows": 4096, "chunk": 8})
    large = compiled_run(tmp_path / "large", big, compile_model(TernaryModel.random(SHAPE, 1), big))
    with pytest.raises(ConfigError, match=r"config big for small does not fit kv260: .*lut [\d,]+ of 99,552 \(85 % of 117,120\), [\d,]+ too many"):
        api.fpga(large.path, "kv260")
    memory = MemoryConfig(ports=8, burst_beats=8, outstanding=2, latency=16, write_latency=8)
    shape = SHAPE.model_copy(update={"head_dim": 128})
    wide = CONFIG.model_copy(update={"name": "wide", "draft_lanes": 1, "beat_bytes": 128, "memory": memory, "max_tile_columns": 128, "rope_rows": 128})
    many = compiled_run(tmp_path / "many", wide, compile_model(TernaryModel.random(shape, 1), wide))
    with pytest.raises(ConfigError, match=r"config wide does not fit kv260: ports 8 of 6 \(all there are\), 2 too many"):
        api.fpga(many.path, "kv260")
    chip = CONFIG.model_copy(update={"name": "chip", "memory": None})
    alone = compiled_run(tmp_path / "alone", chip, compile_model(TernaryModel.random(SHAPE, 1), chip))
    with pytest.raises(ConfigError, match="config chip must have a shared memory for board kv260, which holds the model in its DDR; nearest: kv260"):
        api.fpga(alone.path, "kv260")
    for one in (large, many, alone):
        assert not (one.path / "fpga").exists()
    for given, what in (
        ({"block": "tlmm"}, "block tlmm"),
        ({"seeds": 3}, "3 seeds"),
        *(({"clock_hz": clock}, r"must be one that the board's MMCM makes, 6.25 to 725 MHz") for clock in (-1.0, 0.0, float("nan"), 1e15)),
    ):
        with pytest.raises(ConfigError, match=what):
            api.fpga(run.path, "kv260", **given)  # type: ignore[arg-type]
    assert program.image is not None


# IP


def test_the_ip(folder: Path) -> None:
    check_component(folder / "ip/lutra_core/component.xml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (">m_axi_memory1_araddr<", ">m_axi_memory1_aradr<"),
        (">WDATA<", ">WDATE<"),
        ("<spirit:left>127<", "<spirit:left>63<"),
        ("<spirit:direction>out<", "<spirit:direction>in<"),
        (">s_axi_control:m_axi_memory0:", ">s_axi_control:"),
        (">0x10c<", ">0x110<"),
        (">hdl/lutra_core.v<", ">hdl/lutra.v<"),
        ("<spirit:version>1.0</spirit:version>", ""),
        ("<spirit:slave>", "<spirit:slave /><spirit:slave>"),
        ("</spirit:component>", ""),
    ],
)
def test_a_wrong_ip_is_caught(folder: Path, tmp_path: Path, old: str, new: str) -> None:
    copy = tmp_path / "ip"
    shutil.copytree(folder / "ip/lutra_core", copy)
    text = (copy / "component.xml").read_text()
    assert old in text
    (copy / "component.xml").write_text(text.replace(old, new, 1))
    with pytest.raises((AssertionError, ElementTree.ParseError, KeyError)):
        check_component(copy / "component.xml")


def test_the_verilog_leaves_the_devices_cells_to_the_vendor() -> None:
    model = (LIBRARY / "DSP48E2.v").read_text()
    text = f"module a; DSP48E2 b(); endmodule\n\n{model}\nmodule c; endmodule\n"
    assert without_primitives(text, frozenset({"DSP48E2"})) == "module a; DSP48E2 b(); endmodule\n\nmodule c; endmodule\n"


# Tcl


def copied(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "project")
    return tmp_path / "project"


def test_the_tcl_builds_the_design(folder: Path, tmp_path: Path) -> None:
    project = copied(folder, tmp_path)
    vivado = Vivado(project)
    vivado.source()
    component = project / "ip/lutra_core/component.xml"
    check_design(vivado, component)
    ((name, path, *rest),) = vivado.named("create_project")
    assert (name, path, rest) == ("lutra", str(project / "project"), ["-part", "xck26-sfvc784-2LV-c", "-force"])
    properties = vivado.named("set_property")
    assert ("board_part", "xilinx.com:kv260_som:part0:1.4", "current_project") in properties
    assert ("board_connections", "som240_1_connector xilinx.com:kv260_carrier:som240_1_connector:1.3", "current_project") in properties
    (repository,) = [words[1] for words in properties if words[0] == "ip_repo_paths"]
    assert component.is_relative_to(Path(repository))
    constraints, wrapper = vivado.named("add_files")
    assert Path(constraints[-1]).is_file() and constraints[:2] == ("-fileset", "constrs_1") and wrapper[-1] == "/project/system_wrapper.v"
    order = [name for name, *_ in vivado.calls]
    for before, after in (
        ("update_ip_catalog", "create_bd_cell"),
        ("assign_bd_address", "validate_bd_design"),
        ("validate_bd_design", "save_bd_design"),
        ("save_bd_design", "generate_target"),
        ("generate_target", "launch_runs"),
    ):
        assert max(i for i, name in enumerate(order) if name == before) < min(i for i, name in enumerate(order) if name == after)
    assert [words[0] for words in vivado.named("launch_runs")] == ["synth_1", "impl_1"] == [words[0] for words in vivado.named("wait_on_runs")]
    reports = {
        Path(words[words.index("-file") + 1]) for name in ("report_utilization", "report_timing_summary", "report_power") for words in vivado.named(name)
    }
    assert {path.name for path in reports} == {"utilization_synthesis.txt", "utilization.txt", "timing.txt", "power.txt"}
    assert {path.parent for path in reports} == {project / "output"}
    assert (project / "output/lutra.bit").read_text() == "system_wrapper.bit" and (project / "output/lutra.hwh").read_text() == "system.hwh"


def test_the_tcl_stops_where_it_is_told_or_has_to(folder: Path, tmp_path: Path) -> None:
    project = copied(folder, tmp_path)
    for step, runs in (("design", 0), ("synthesis", 1)):
        vivado = Vivado(project)
        vivado.source("create_project.tcl", step, "8")
        check_design(vivado, project / "ip/lutra_core/component.xml")
        assert [words[-2:] for words in vivado.named("launch_runs")] == [("-jobs", "8")] * runs
    for changes, step, message in (
        ({"progress": "40%"}, "bitstream", "synth_1 stopped: synth_design ERROR; its log: "),
        ({"slack": "-0.2"}, "bitstream", "timing is not met"),
        ({"installed": False}, "design", "xilinx.com:ip:zynq_ultra_ps_e is not installed"),
        ({}, "bitstreem", "STEP must be design, synthesis or bitstream, not bitstreem"),
    ):
        with pytest.raises(tkinter.TclError, match=message):
            Vivado(project, **changes).source("create_project.tcl", step)  # type: ignore[arg-type]


def test_the_constraints(folder: Path) -> None:
    vivado = Vivado(folder)
    vivado.source("constraints/lutra.xdc")
    assert vivado.calls == [("set_property", "BITSTREAM.GENERAL.COMPRESS", "TRUE", "current_design")]
    vivado.source("ip/lutra_core/lutra_core_ooc.xdc")
    assert vivado.calls[1:] == [("create_clock", "-name", "aclk", "-period", "4.000", "aclk")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[get_bd_pins core/aresetn]", "[get_bd_pins core/aresetnn]"),
        ("core/m_axi_memory1] [get_bd_intf_pins ps/S_AXI_HP1_FPD]", "core/m_axi_memory1] [get_bd_intf_pins ps/S_AXI_HP0_FPD]"),
        ("connect_bd_intf_net [get_bd_intf_pins core/m_axi_memory1]", "#"),
        ("CLKOUT1_REQUESTED_OUT_FREQ {250.000}", "CLKOUT1_REQUESTED_OUT_FREQ {25.000}"),
        (" ps/saxihp1_fpd_aclk", ""),
        ("PSU__USE__S_AXI_GP3 {1}", "PSU__USE__S_AXI_GP4 {1}"),
        ("-offset 0x800000000 ", "-offset 0x40000000 "),
        ("validate_bd_design", "validate_bd_desing"),
        ("    CONFIG.PSU__USE__IRQ0 {1} \\", "    CONFIG.PSU__USE__IRQ0 {1} "),
        ("connect_bd_net [get_bd_pins core/interrupt]", "connect_bd_net [get_bd_pins core/busy]"),
    ],
)
def test_a_wrong_line_of_tcl_is_caught(folder: Path, tmp_path: Path, old: str, new: str) -> None:
    project = copied(folder, tmp_path)
    script = project / "create_project.tcl"
    assert old in script.read_text()
    script.write_text(script.read_text().replace(old, new, 1))
    with pytest.raises((AssertionError, tkinter.TclError, KeyError)):
        vivado = Vivado(project)
        vivado.source()
        check_design(vivado, project / "ip/lutra_core/component.xml")


# The folder


def test_the_address_map_and_the_readme(folder: Path, run: Run) -> None:
    found = json.loads((folder / "address_map.json").read_text())
    assert found["control"]["base"] == "0xa0000000" and found["control"]["bytes"] == 4096
    assert [(one["name"], int(one["offset"], 0)) for one in found["control"]["registers"]] == [(entry.name, entry.offset) for entry in control_map(PORTS)]
    image = (run.path / "program/memory.bin").stat().st_size
    assert found["memory"]["regions"] * found["memory"]["region_bytes"] == image
    text = (folder / "README.md").read_text()
    assert f"{image:,} bytes" in text and len(text.splitlines()) < 60
    for name in re.findall(r"`([\w./]+)`", text):
        assert (folder / name).exists() or list(folder.rglob(name)) or name.startswith(("output/", "program/", "tokenizer/", "lutra.", ".py")), name
