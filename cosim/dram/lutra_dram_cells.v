// SPDX-License-Identifier: Apache-2.0
// Cells of a DRAM channel for simulation: one open row per bank, obeys ACT(A), PRE(A), RD, WR, MAC and WRA. The columns that a MAC reads appear in the cycle
// after it; the column of a RD is on `read` READ_LATENCY cycles after it, for that cycle only (NaNs at all other times).
// The first contents come from NAME.cells ($readmemh; zeros elsewhere), word address ((bank * ROWS) + row) * COLUMNS + column. If NAME.dump exists, all
// words are written there at the end, 32 bits at a time, lowest first. Timing is checked elsewhere; a closed row reads as NaNs and is not written, a row
// beyond ROWS ends the simulation.
module lutra_dram_cells #(
    parameter NAME        = "",
    parameter BANKS       = 4,
    parameter LANES       = 16,
    parameter ROWS        = 16,
    parameter COLUMNS     = 64,
    parameter BANK_BITS   = 2,
    parameter ROW_BITS    = 14,
    parameter COLUMN_BITS = 6,
    parameter ELEMENT_BITS = 4,
    parameter READ_LATENCY = 1
) (
    input  wire                      clk,
    input  wire                      valid,
    input  wire [4:0]                command,
    input  wire [BANK_BITS-1:0]      bank,
    input  wire [ROW_BITS-1:0]       row,
    input  wire [COLUMN_BITS-1:0]    column,
    input  wire [ELEMENT_BITS-1:0]   element,
    input  wire [16*LANES-1:0]       data,
    output reg  [16*LANES*BANKS-1:0] columns,
    output reg  [16*LANES-1:0]       read
);
    localparam ACT = 0, ACTA = 1, PRE = 2, PREA = 3, RD = 4, WR = 5, MAC = 6, WRA = 7;
    localparam WIDTH = 16 * LANES;
    localparam WORDS = BANKS * ROWS * COLUMNS;

    reg [WIDTH-1:0] mem [0:WORDS-1];
    integer         open_row [0:BANKS-1];
    reg [WIDTH-1:0] pins [0:READ_LATENCY-1]; // slot t % READ_LATENCY: what a RD in cycle t returns
    integer         slot;
    integer         file;
    integer         i;

    localparam [WIDTH-1:0] NANS = {LANES{16'h7fc0}};

    function automatic integer place(input integer in_bank);
        place = (in_bank * ROWS + open_row[in_bank]) * COLUMNS + {{(32-COLUMN_BITS){1'b0}}, column};
    endfunction

    initial begin
        for (i = 0; i < WORDS; i = i + 1) mem[i] = 0;
        for (i = 0; i < BANKS; i = i + 1) open_row[i] = -1;
        for (i = 0; i < READ_LATENCY; i = i + 1) pins[i] = NANS;
        columns = 0;
        read = NANS;
        slot = 0;
        file = $fopen({NAME, ".cells"}, "r");
        if (file != 0) begin
            $fclose(file);
            $readmemh({NAME, ".cells"}, mem);
        end
    end

    always @(posedge clk) if (valid) begin
        if ((command == ACT || command == ACTA) && row >= ROWS) $fatal(1, "%s: row %0d of %0d modelled rows", NAME, row, ROWS);
        for (i = 0; i < BANKS; i = i + 1) begin
            if (command == ACTA || (command == ACT && i == {{(32-BANK_BITS){1'b0}}, bank})) open_row[i] = {{(32-ROW_BITS){1'b0}}, row};
            if (command == PREA || (command == PRE && i == {{(32-BANK_BITS){1'b0}}, bank})) open_row[i] = -1;
            if (command == MAC) columns[WIDTH*i +: WIDTH] <= open_row[i] < 0 ? NANS : mem[place(i)];
            if (open_row[i] >= 0) begin
                if (command == WR && i == {{(32-BANK_BITS){1'b0}}, bank}) mem[place(i)] = data;
                if (command == WRA) begin
                    mem[place(i)][16*element +: 16] = data[16*i +: 16];
                    open_row[i] = -1;
                end
            end
        end
    end

    always @(posedge clk) begin
        pins[slot] = NANS;
        if (valid && command == RD && open_row[bank] >= 0) pins[slot] = mem[place({{(32-BANK_BITS){1'b0}}, bank})];
        slot = slot == READ_LATENCY - 1 ? 0 : slot + 1;
        read <= pins[slot];
    end

    final begin
        file = $fopen({NAME, ".dump"}, "r");
        if (file != 0) begin
            $fclose(file);
            file = $fopen({NAME, ".dump"}, "wb");
            for (i = 0; i < WORDS; i = i + 1) $fwrite(file, "%u", mem[i]);
            $fclose(file);
        end
    end
endmodule
