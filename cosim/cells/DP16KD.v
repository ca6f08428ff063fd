// SPDX-License-Identifier: Apache-2.0
// ECP5: a block RAM of 2,048 x 9 bits with two ports of 1, 2, 4, 9, 18 or 36 bits; one of 36 writes through both ports' inputs, or reads through both outputs.
// Its rows of INITVAL hold 16 words of 18 bits each, two spare bits behind each. The lowest address bits of a wide port enable its bytes.
module DP16KD #(
    parameter [319:0] INITVAL_00 = 0, parameter [319:0] INITVAL_01 = 0, parameter [319:0] INITVAL_02 = 0, parameter [319:0] INITVAL_03 = 0, parameter
    [319:0] INITVAL_04 = 0, parameter [319:0] INITVAL_05 = 0, parameter [319:0] INITVAL_06 = 0, parameter [319:0] INITVAL_07 = 0, parameter [319:0]
    INITVAL_08 = 0, parameter [319:0] INITVAL_09 = 0, parameter [319:0] INITVAL_0A = 0, parameter [319:0] INITVAL_0B = 0, parameter [319:0] INITVAL_0C
    = 0, parameter [319:0] INITVAL_0D = 0, parameter [319:0] INITVAL_0E = 0, parameter [319:0] INITVAL_0F = 0, parameter [319:0] INITVAL_10 = 0,
    parameter [319:0] INITVAL_11 = 0, parameter [319:0] INITVAL_12 = 0, parameter [319:0] INITVAL_13 = 0, parameter [319:0] INITVAL_14 = 0, parameter
    [319:0] INITVAL_15 = 0, parameter [319:0] INITVAL_16 = 0, parameter [319:0] INITVAL_17 = 0, parameter [319:0] INITVAL_18 = 0, parameter [319:0]
    INITVAL_19 = 0, parameter [319:0] INITVAL_1A = 0, parameter [319:0] INITVAL_1B = 0, parameter [319:0] INITVAL_1C = 0, parameter [319:0] INITVAL_1D
    = 0, parameter [319:0] INITVAL_1E = 0, parameter [319:0] INITVAL_1F = 0, parameter [319:0] INITVAL_20 = 0, parameter [319:0] INITVAL_21 = 0,
    parameter [319:0] INITVAL_22 = 0, parameter [319:0] INITVAL_23 = 0, parameter [319:0] INITVAL_24 = 0, parameter [319:0] INITVAL_25 = 0, parameter
    [319:0] INITVAL_26 = 0, parameter [319:0] INITVAL_27 = 0, parameter [319:0] INITVAL_28 = 0, parameter [319:0] INITVAL_29 = 0, parameter [319:0]
    INITVAL_2A = 0, parameter [319:0] INITVAL_2B = 0, parameter [319:0] INITVAL_2C = 0, parameter [319:0] INITVAL_2D = 0, parameter [319:0] INITVAL_2E
    = 0, parameter [319:0] INITVAL_2F = 0, parameter [319:0] INITVAL_30 = 0, parameter [319:0] INITVAL_31 = 0, parameter [319:0] INITVAL_32 = 0,
    parameter [319:0] INITVAL_33 = 0, parameter [319:0] INITVAL_34 = 0, parameter [319:0] INITVAL_35 = 0, parameter [319:0] INITVAL_36 = 0, parameter
    [319:0] INITVAL_37 = 0, parameter [319:0] INITVAL_38 = 0, parameter [319:0] INITVAL_39 = 0, parameter [319:0] INITVAL_3A = 0, parameter [319:0]
    INITVAL_3B = 0, parameter [319:0] INITVAL_3C = 0, parameter [319:0] INITVAL_3D = 0, parameter [319:0] INITVAL_3E = 0, parameter [319:0] INITVAL_3F
    = 0,
    parameter DATA_WIDTH_A = 18, parameter DATA_WIDTH_B = 18,
    parameter REGMODE_A = "NOREG", parameter REGMODE_B = "NOREG",
    parameter RESETMODE = "SYNC", parameter ASYNC_RESET_RELEASE = "SYNC",
    parameter CSDECODE_A = "0b000", parameter CSDECODE_B = "0b000",
    parameter WRITEMODE_A = "NORMAL", parameter WRITEMODE_B = "NORMAL",
    parameter CLKAMUX = "CLKA", parameter CLKBMUX = "CLKB",
    parameter GSR = "AUTO"
) (
    input CLKA, CEA, OCEA, WEA, RSTA, CSA2, CSA1, CSA0,
    input ADA0, ADA1, ADA2, ADA3, ADA4, ADA5, ADA6, ADA7, ADA8, ADA9, ADA10, ADA11, ADA12, ADA13,
    input DIA0, DIA1, DIA2, DIA3, DIA4, DIA5, DIA6, DIA7, DIA8, DIA9, DIA10, DIA11, DIA12, DIA13, DIA14, DIA15, DIA16, DIA17,
    output DOA0, DOA1, DOA2, DOA3, DOA4, DOA5, DOA6, DOA7, DOA8, DOA9, DOA10, DOA11, DOA12, DOA13, DOA14, DOA15, DOA16, DOA17,
    input CLKB, CEB, OCEB, WEB, RSTB, CSB2, CSB1, CSB0,
    input ADB0, ADB1, ADB2, ADB3, ADB4, ADB5, ADB6, ADB7, ADB8, ADB9, ADB10, ADB11, ADB12, ADB13,
    input DIB0, DIB1, DIB2, DIB3, DIB4, DIB5, DIB6, DIB7, DIB8, DIB9, DIB10, DIB11, DIB12, DIB13, DIB14, DIB15, DIB16, DIB17,
    output DOB0, DOB1, DOB2, DOB3, DOB4, DOB5, DOB6, DOB7, DOB8, DOB9, DOB10, DOB11, DOB12, DOB13, DOB14, DOB15, DOB16, DOB17
);
    localparam [20479:0] INITIAL = {
        INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35,
        INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A,
        INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F,
        INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14,
        INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09,
        INITVAL_08, INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00
    };
    reg [8:0] bytes [0:2047];
    integer i;
    initial for (i = 0; i < 2048; i = i + 1) bytes[i] = INITIAL[(i / 2) * 20 + (i % 2) * 9+:9];
    generate
        if (REGMODE_A != "NOREG" || REGMODE_B != "NOREG" || CSDECODE_A != "0b000" || CSDECODE_B != "0b000" || CLKAMUX != "CLKA"
            || CLKBMUX != "CLKB" || (WRITEMODE_A != "NORMAL" && WRITEMODE_A != "READBEFOREWRITE")
            || (WRITEMODE_B != "NORMAL" && WRITEMODE_B != "READBEFOREWRITE")) begin : lacking
            DP16KD_has_no_model_of_this_mode none ();
        end
    endgenerate
    wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire [17:0] dia =
        {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
    wire [17:0] dib =
        {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
    wire ena = CEA & ~(CSA2 | CSA1 | CSA0), enb = CEB & ~(CSB2 | CSB1 | CSB0);
    reg [35:0] qa = 0, qb = 0;
    // Byte of a port's word, or the one that holds its few bits.
    wire [10:0] at_a = DATA_WIDTH_A == 36 ? {ada[13:5], 2'b00} : DATA_WIDTH_A == 18 ? {ada[13:4], 1'b0} : ada[13:3];
    wire [10:0] at_b = DATA_WIDTH_B == 36 ? {adb[13:5], 2'b00} : DATA_WIDTH_B == 18 ? {adb[13:4], 1'b0} : adb[13:3];
    localparam [8:0] FEW_A = DATA_WIDTH_A < 9 ? (1 << DATA_WIDTH_A) - 1 : 0, FEW_B = DATA_WIDTH_B < 9 ? (1 << DATA_WIDTH_B) - 1 : 0;
    wire [8:0] few_a = FEW_A << ada[2:0], few_b = FEW_B << adb[2:0];
    wire [35:0] word_a = {bytes[at_a | 3], bytes[at_a | 2], bytes[at_a | 1], bytes[at_a]};
    wire [35:0] word_b = {bytes[at_b | 3], bytes[at_b | 2], bytes[at_b | 1], bytes[at_b]};
    always @(posedge CLKA) begin
        if (RESETMODE != "SYNC" && (RSTA | RSTB)) $fatal(1, "DP16KD has no model of an asynchronous reset");
        if (ena & WEA & ~RSTA) begin
            if (DATA_WIDTH_A == 36) begin
                if (ada[0]) bytes[at_a] <= dia[8:0];
                if (ada[1]) bytes[at_a | 1] <= dia[17:9];
                if (ada[2]) bytes[at_a | 2] <= dib[8:0];
                if (ada[3]) bytes[at_a | 3] <= dib[17:9];
            end else if (DATA_WIDTH_A == 18) begin
                if (ada[0]) bytes[at_a] <= dia[8:0];
                if (ada[1]) bytes[at_a | 1] <= dia[17:9];
            end else if (DATA_WIDTH_A == 9) bytes[at_a] <= dia[8:0];
            else bytes[at_a] <= bytes[at_a] & ~few_a | (dia[8:0] & FEW_A) << ada[2:0];
        end
        if (RSTA) qa <= 0;
        else if (ena & (~WEA | WRITEMODE_A == "READBEFOREWRITE")) qa <= DATA_WIDTH_A < 9 ? (word_a[8:0] >> ada[2:0]) & FEW_A : word_a;
    end
    always @(posedge CLKB) begin
        if (enb & WEB & ~RSTB) begin
            if (DATA_WIDTH_B == 18) begin
                if (adb[0]) bytes[at_b] <= dib[8:0];
                if (adb[1]) bytes[at_b | 1] <= dib[17:9];
            end else if (DATA_WIDTH_B == 9) bytes[at_b] <= dib[8:0];
            else bytes[at_b] <= bytes[at_b] & ~few_b | (dib[8:0] & FEW_B) << adb[2:0];
        end
        if (RSTB) qb <= 0;
        else if (enb & (~WEB | WRITEMODE_B == "READBEFOREWRITE")) qb <= DATA_WIDTH_B < 9 ? (word_b[8:0] >> adb[2:0]) & FEW_B : word_b;
    end
    assign {
        DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0
    } = DATA_WIDTH_B == 36 ? qb[17:0] : qa[17:0];
    assign {
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
    } = DATA_WIDTH_B == 36 ? qb[35:18] : qb[17:0];
endmodule
