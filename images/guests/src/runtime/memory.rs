//! The memory functions that compiled code calls. There is no C library here to have them.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.memory, "ax"
    .globl memset
memset:
    movq %rdi, %r8
    movq %rdx, %rcx
    movl %esi, %eax
    rep stosb
    movq %r8, %rax
    retq

    .globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    retq

    .globl memcmp
    .globl bcmp
memcmp:
bcmp:
    movq %rdx, %rcx
    xorl %eax, %eax
    xorl %edx, %edx             /* equal, if there is nothing to compare */
    repe cmpsb
    je 1f
    movzbl -1(%rdi), %edx
    movzbl -1(%rsi), %eax
1:  subl %edx, %eax
    retq
"#,
    options(att_syntax)
);
