# SPDX-License-Identifier: Apache-2.0
# {{ title }}
# vivado -mode batch -source create_project.tcl [-tclargs STEP [JOBS]]
# STEP: design (project and block design), synthesis, or bitstream (default); JOBS: processes at a time (default 4).

set here [file dirname [file normalize [info script]]]
set last [expr {[llength $argv] > 0 ? [lindex $argv 0] : "bitstream"}]
set jobs [expr {[llength $argv] > 1 ? [lindex $argv 1] : 4}]
if {[lsearch -exact {design synthesis bitstream} $last] < 0} {
    error "STEP must be design, synthesis or bitstream, not $last"
}
set output [file join $here output]
file mkdir $output

# Newest installed version of a board's part or of a core of the catalogue.
proc newest {what found} {
    if {[llength $found] == 0} {
        error "$what is not installed: this needs Vivado 2022.1 or newer with the board files of the KV260"
    }
    return [lindex [lsort -dictionary $found] end]
}
proc cell {name core} {
    return [create_bd_cell -type ip -vlnv [newest $core [get_ipdefs -all "$core:*"]] $name]
}

# Project
create_project {{ name }} [file join $here project] -part {{ board.part }} -force
set board_part [newest {{ board.board_part }} [get_board_parts "{{ board.board_part }}:*"]]
set_property board_part $board_part [current_project]
set carrier [newest {{ board.carrier }} [get_boards "{{ board.carrier }}:*"]]
set_property board_connections [list {{ board.connector }} {{ board.carrier }}:{{ board.connector }}:[lindex [split $carrier :] end]] [current_project]
set_property target_language Verilog [current_project]
set_property ip_repo_paths [list [file join $here ip]] [current_project]
update_ip_catalog
add_files -fileset constrs_1 -norecurse [file join $here {{ constraints }}]

# Block design
create_bd_design system
cell ps xilinx.com:ip:zynq_ultra_ps_e
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset 1} [get_bd_cells ps]
set_property -dict [list \
    CONFIG.PSU__FPGA_PL0_ENABLE {1} \
    CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ {{ '{' }}{{ mhz(oscillator_hz) }}{{ '}' }} \
    CONFIG.PSU__USE__M_AXI_GP0 {1} \
    CONFIG.PSU__MAXIGP0__DATA_WIDTH {32} \
    CONFIG.PSU__USE__M_AXI_GP1 {0} \
    CONFIG.PSU__USE__M_AXI_GP2 {0} \
    CONFIG.PSU__USE__IRQ0 {1} \
{% for port in ports %}
    CONFIG.PSU__USE__S_AXI_{{ port.group }} {1} \
    CONFIG.PSU__SAXI{{ port.group }}__DATA_WIDTH {128} \
{% endfor %}
] [get_bd_cells ps]
cell clock xilinx.com:ip:clk_wiz
set_property -dict [list \
    CONFIG.PRIM_SOURCE {No_buffer} \
    CONFIG.PRIM_IN_FREQ {{ '{' }}{{ mhz(oscillator_hz) }}{{ '}' }} \
    CONFIG.CLKOUT1_REQUESTED_OUT_FREQ {{ '{' }}{{ mhz(clock_hz) }}{{ '}' }} \
    CONFIG.RESET_TYPE {ACTIVE_LOW} \
    CONFIG.USE_LOCKED {true} \
] [get_bd_cells clock]
cell reset xilinx.com:ip:proc_sys_reset
cell control xilinx.com:ip:smartconnect
set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {1}] [get_bd_cells control]
cell core {{ vlnv }}

# Clock and reset: one clock for the core, its control and the processor's ports that it uses
connect_bd_net [get_bd_pins ps/pl_clk0] [get_bd_pins clock/clk_in1]
connect_bd_net [get_bd_pins ps/pl_resetn0] [get_bd_pins clock/resetn] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins clock/locked] [get_bd_pins reset/dcm_locked]
foreach pin {reset/slowest_sync_clk control/aclk core/{{ clock }} ps/maxihpm0_fpd_aclk{% for port in ports %} ps/saxi{{ port.name | lower }}_fpd_aclk{% endfor %}} {
    connect_bd_net [get_bd_pins clock/clk_out1] [get_bd_pins $pin]
}
connect_bd_net [get_bd_pins reset/interconnect_aresetn] [get_bd_pins control/aresetn]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins core/{{ reset }}]
connect_bd_net [get_bd_pins core/{{ interrupt }}] [get_bd_pins ps/pl_ps_irq0]

# Control, and memory: a port of the processor's memory for each of the core's, nothing in between
connect_bd_intf_net [get_bd_intf_pins ps/M_AXI_HPM0_FPD] [get_bd_intf_pins control/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins control/M00_AXI] [get_bd_intf_pins core/{{ control }}]
{% for memory, port in pairs %}
connect_bd_intf_net [get_bd_intf_pins core/{{ memory }}] [get_bd_intf_pins ps/S_AXI_{{ port.name }}_FPD]
{% endfor %}

# Addresses
assign_bd_address -offset {{ hex(board.control_base) }} -range {{ hex(window) }} \
    -target_address_space [get_bd_addr_spaces ps/Data] [get_bd_addr_segs core/{{ control }}/{{ control }}] -force
{% for memory, port in pairs %}
{% for range in board.memory %}
assign_bd_address -offset {{ hex(range.base) }} -range {{ hex(range.bytes) }} \
    -target_address_space [get_bd_addr_spaces core/{{ memory }}] [get_bd_addr_segs ps/SAXI{{ port.group }}/{{ port.name }}_{{ range.segment }}] -force
{% endfor %}
{% for other in ["LPS_OCM", "QSPI"] %}
exclude_bd_addr_seg [get_bd_addr_segs ps/SAXI{{ port.group }}/{{ port.name }}_{{ other }}] -target_address_space [get_bd_addr_spaces core/{{ memory }}]
{% endfor %}
{% endfor %}
validate_bd_design
save_bd_design

set design [get_files system.bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
if {$last eq "design"} { return }

# Synthesis, implementation, bitstream
proc finish {run} {
    wait_on_runs $run
    if {[get_property PROGRESS [get_runs $run]] ne "100%"} {
        error "$run stopped: [get_property STATUS [get_runs $run]]; its log: [get_property DIRECTORY [get_runs $run]]/runme.log"
    }
}
generate_target all $design
launch_runs synth_1 -jobs $jobs
finish synth_1
open_run synth_1 -name synth_1
report_utilization -hierarchical -file [file join $output utilization_synthesis.txt]
close_design
if {$last eq "synthesis"} { return }

set_property strategy Performance_ExplorePostRoutePhysOpt [get_runs impl_1]
launch_runs impl_1 -to_step write_bitstream -jobs $jobs
finish impl_1
open_run impl_1
report_utilization -hierarchical -file [file join $output utilization.txt]
report_timing_summary -max_paths 20 -file [file join $output timing.txt]
report_power -file [file join $output power.txt]
set slack [get_property SLACK [get_timing_paths -delay_type max]]
file copy -force [file join [get_property DIRECTORY [get_runs impl_1]] system_wrapper.bit] [file join $output {{ name }}.bit]
file copy -force [file join [get_property DIRECTORY [current_project]] {{ name }}.gen sources_1 bd system hw_handoff system.hwh] [file join $output {{ name }}.hwh]
puts "slowest path: $slack ns of slack at {{ mhz(clock_hz) }} MHz"
if {$slack < 0} {
    error "timing is not met: lutra fpga RUN --board {{ board_name }} --clock HZ makes the project for a slower clock; output/timing.txt names the paths"
}
