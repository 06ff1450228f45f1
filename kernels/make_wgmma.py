#!/usr/bin/env python3
"""Writes kernels/wgmma.cuh: one struct for each product width in use.

An asm statement must name every register of its accumulator, so the text is made, not written.
"""
import pathlib

WIDTHS = (64, 80, 96, 128, 176, 256)
out = ["// Made by kernels/make_wgmma.py; do not edit.",
       "//",
       "// Wgmma<N>: d[64][N] (+)= A[64][16] B[16][N] by one warpgroup; bf16 operands, fp32 sums.",
       "// ss takes A from shared memory, rs from registers; kTransB: B's rows run along N.",
       "#pragma once", "", "namespace tiercel::gpu {", "",
       "template <int kN>", "struct Wgmma;", ""]


def method(name, n, operands, inputs, order):
    regs = n // 2
    accumulators = ", ".join(f"%{i}" for i in range(regs))
    lines = [f"  template <int kTransB>",
             f"  GPU static void {name}(float (&d)[{regs}], {operands}, uint64_t b, int accumulate) {{",
             f"    asm volatile(",
             f'        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{regs + len(inputs)}, 0;\\n"',
             f'        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 "',
             f'        "{{{accumulators}}}, "',
             f'        "{order}\\n}}"',
             "        : " + ", ".join(f'"+f"(d[{i}])' for i in range(regs)),
             "        : " + ", ".join(inputs) + ', "r"(accumulate), "n"(kTransB));',
             "  }"]
    return lines


for n in WIDTHS:
    r = n // 2
    out += ["template <>", f"struct Wgmma<{n}> {{"]
    out += method("ss", n, "uint64_t a", ['"l"(a)', '"l"(b)'],
                  f"%{r}, %{r + 1}, p, 1, 1, 0, %{r + 3};")
    out += method("rs", n, "const uint32_t (&a)[4]",
                  ['"r"(a[0])', '"r"(a[1])', '"r"(a[2])', '"r"(a[3])', '"l"(b)'],
                  f"{{%{r}, %{r + 1}, %{r + 2}, %{r + 3}}}, %{r + 4}, p, 1, 1, %{r + 6};")
    out += ["};", ""]
out += ["}  // namespace tiercel::gpu", ""]
pathlib.Path(__file__).with_name("wgmma.cuh").write_text("\n".join(out))
