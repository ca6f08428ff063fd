// SPDX-License-Identifier: Apache-2.0
// Top of every bench: makes reset and the cycle number (0 in the first cycle after reset) and raises `stop` when all recorders have had
// their beats for +drain cycles, or +max_cycles have passed. cocotb drives clk and waits for stop; nothing else is visible to it.
module top (
    input  wire clk,
    output reg  stop
);
    localparam RESET_CYCLES = 4;
    reg        rst;
    reg [2:0]  reset_count;
    reg [63:0] cycle;
    reg [63:0] idle;
    reg [63:0] drain;
    reg [63:0] max_cycles;
    wire       done;

    bench bench (.clk(clk), .rst(rst), .cycle(cycle), .done(done));

    initial begin
        stop = 0;
        rst = 1;
        reset_count = 0;
        cycle = 0;
        idle = 0;
        if (!$value$plusargs("drain=%d", drain)) drain = 16;
        if (!$value$plusargs("max_cycles=%d", max_cycles)) max_cycles = 64'hffffffffffffffff;
    end

    always @(posedge clk) begin
        if (rst) begin
            reset_count <= reset_count + 1;
            if (reset_count == RESET_CYCLES - 1) rst <= 0;
        end else begin
            cycle <= cycle + 1;
            idle  <= done ? idle + 1 : 0;
            if ((done && idle >= drain) || cycle + 1 >= max_cycles) stop <= 1;
        end
    end
endmodule
