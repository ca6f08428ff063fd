// SPDX-License-Identifier: Apache-2.0
// A named stream boundary: plain wires. With LUTRA_TAPS (simulation only) every handshake is recorded as the consumer sees it, and one beat can be disturbed
// on its way (lutra_recorder, lutra_saboteur).
module lutra_tap #(
    parameter NAME  = "",
    parameter WIDTH = 1
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             i_valid,
    output wire             i_ready,
    input  wire [WIDTH-1:0] i_payload,
    output wire             o_valid,
    input  wire             o_ready,
    output wire [WIDTH-1:0] o_payload
);
`ifdef LUTRA_TAPS
    localparam WORDS = (WIDTH + 31) / 32;
    reg  [63:0]         cycle;
    wire [32*WORDS-1:0] disturbed;
    wire                done;
    initial cycle = 0;
    always @(posedge clk) cycle <= rst ? 64'd0 : cycle + 64'd1;
    lutra_saboteur #(.NAME(NAME), .WORDS(WORDS)) saboteur (
        .clk(clk), .rst(rst), .i_payload({{(32*WORDS-WIDTH){1'b0}}, i_payload}), .i_valid(i_valid), .i_ready(i_ready),
        .o_payload(disturbed), .o_valid(o_valid), .o_ready(o_ready));
    lutra_recorder #(.NAME(NAME), .WORDS(WORDS)) recorder (
        .clk(clk), .rst(rst), .cycle(cycle), .payload(disturbed), .valid(o_valid), .ready(o_ready), .done(done));
    assign o_payload = disturbed[WIDTH-1:0];
`else
    assign o_valid   = i_valid;
    assign i_ready   = o_ready;
    assign o_payload = i_payload;
`endif
endmodule
