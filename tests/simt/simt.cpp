#include "tests/simt/simt.h"

#if !defined(__x86_64__)
#error "the emulator's fibers switch by hand on x86-64 only; build with -DTIERCEL_BUILD_TESTS=OFF"
#endif

asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size simt_switch,.-simt_switch
)");
