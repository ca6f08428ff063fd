// SPDX-License-Identifier: Apache-2.0
// Clocks a bench (lutra_top.v) until it raises `stop`, with nothing else around it: for runs that are too long under cocotb.
// Writes "CYCLES SECONDS" to the standard error about every +progress seconds (10 if not given) and at the end.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "Vtop.h"
#include "verilated.h"

namespace {

constexpr int BETWEEN = 4096;  // cycles between two looks at the time
constexpr char PROGRESS[] = "progress=";

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
    VerilatedContext context;
    context.commandArgs(argc, argv);
    const std::string given = context.commandArgsPlusMatch(PROGRESS);
    const double interval = given.empty() ? 10 : std::atof(given.c_str() + sizeof PROGRESS);
    const auto top = std::make_unique<Vtop>(&context);
    const auto start = std::chrono::steady_clock::now();
    double told = 0;
    uint64_t cycles = 0;
    const auto tell = [&] { std::fprintf(stderr, "%llu %.3f\n", static_cast<unsigned long long>(cycles), seconds_since(start)); };
    top->clk = 0;
    top->eval();
    while (!top->stop && !context.gotFinish()) {
        top->clk = 1;
        top->eval();
        context.timeInc(1);
        top->clk = 0;
        top->eval();
        context.timeInc(1);
        if (++cycles % BETWEEN == 0 && seconds_since(start) - told >= interval) {
            told = seconds_since(start);
            tell();
        }
    }
    top->final();
    tell();
    return top->stop ? 0 : 1;
}
