// SPDX-License-Identifier: Apache-2.0
// Memory with one synchronous read port (latency 1) whose contents come from a hex file, so that other contents rebuild nothing.
// Without FILE it starts at zero.
module lutra_rom #(
    parameter FILE    = "",
    parameter WIDTH   = 8,
    parameter DEPTH   = 256,
    parameter ADDRESS = 8
) (
    input  wire               clk,
    input  wire               read_en,
    input  wire [ADDRESS-1:0] read_addr,
    output reg  [WIDTH-1:0]   read_data
);
    reg [WIDTH-1:0] mem [0:DEPTH-1];

    // No default file name: synthesis elaborates the default as well.
    generate
        if (FILE != "") begin : contents
            initial $readmemh(FILE, mem);
        end else begin : zeros
            integer i;
            initial for (i = 0; i < DEPTH; i = i + 1) mem[i] = 0;
        end
    endgenerate

    always @(posedge clk) if (read_en) read_data <= mem[read_addr];
endmodule
