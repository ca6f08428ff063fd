// SPDX-License-Identifier: Apache-2.0
// ECP5: a multiplexer behind multiplexers.
module L6MUX21 (
    input D0, D1, SD,
    output Z
);
    assign Z = SD ? D1 : D0;
endmodule
