// SPDX-License-Identifier: Apache-2.0
// lutra_rom with a write port. A read of the address written in the same cycle returns the old word.
module lutra_ram #(
    parameter FILE    = "",
    parameter WIDTH   = 8,
    parameter DEPTH   = 256,
    parameter ADDRESS = 8
) (
    input  wire               clk,
    input  wire               read_en,
    input  wire [ADDRESS-1:0] read_addr,
    output reg  [WIDTH-1:0]   read_data,
    input  wire               write_en,
    input  wire [ADDRESS-1:0] write_addr,
    input  wire [WIDTH-1:0]   write_data
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

    always @(posedge clk) begin
        if (read_en) read_data <= mem[read_addr];
        if (write_en) mem[write_addr] <= write_data;
    end
endmodule
