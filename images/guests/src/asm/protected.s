/* 32-bit protected mode without paging, from a multiboot 1 loader (Multiboot Specification 0.6.96): prints what the loader
   hands over, then goes through segments and their limits, far transfers, a call gate from ring 3, and the TSS.

   Words on the command line: `noring3` leaves out ring 3 and the call gate, which a KVM that emulates ring 0 does not do;
   `nolimit` leaves out limits and rights of segments, which QEMU's TCG does not check. */

    .set COM1, 0x3f8
    .set CODE, 0x08
    .set DATA, 0x10
    .set SMALL, 0x18            /* 256 bytes at small_area */
    .set DOWN, 0x20             /* the same, expand-down: what is above the 256 bytes */
    .set READ_ONLY, 0x28
    .set ABSENT, 0x30
    .set BASED_CODE, 0x38       /* code whose base is based_code */
    .set USER_CODE, 0x43
    .set USER_DATA, 0x4b
    .set TSS, 0x50
    .set GATE, 0x5b
    .set STACK_SEGMENT, 0x60    /* flat up to 2 MiB */

    /* Prints a text. */
    .macro print text
    .pushsection .rodata.text, "a"
99: .asciz "\text"
    .popsection
    movl $99b, %esi
    call puts
    .endm

    /* Ends with FAIL and a text. */
    .macro fail_with text
    .pushsection .rodata.text, "a"
99: .asciz "\text"
    .popsection
    movl $99b, %esi
    jmp fail
    .endm

    /* Runs an instruction that has to end in an exception with this vector and error code. */
    .macro faults vector, error, what, instruction:vararg
    movl $97f, resume
    movl %esp, resume_stack
    movl $-1, seen_vector
    \instruction
97: cmpl $\vector, seen_vector
    jne 98f
    cmpl $\error, seen_error
    je 96f
98: fail_with "\what"
96:
    .endm

    .section .text.protected, "ax"
    .code32
    .globl _start
_start:
    movl $stack_top, %esp
    cld
    movl %eax, boot_magic
    movl %ebx, boot_info
    lgdtl gdt_pointer
    ljmpl $CODE, $1f
1:  movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl %eax, %ss
    movw $COM1 + 3, %dx         /* LCR: 8N1 */
    movb $0x03, %al
    outb %al, %dx
    movw $COM1 + 1, %dx         /* IER */
    xorl %eax, %eax
    outb %al, %dx
    movl $name, %esi
    call puts
    call newline
    cmpl $0x2badb002, boot_magic
    je 1f
    fail_with "the loader's magic number"
1:  call multiboot
    call descriptors
    call segments
    call transfers
    testb $1, without_ring3
    jnz 1f
    call privilege
1:  print "ok"
    call newline
    movw $0x604, %dx            /* PM1a_CNT: SLP_EN, SLP_TYP 0 */
    movw $0x2000, %ax
    outw %ax, %dx
stop:
    cli
    hlt
    jmp stop

/* %esi the text. */
fail:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    pushl %esi
    print "FAIL: "
    popl %esi
    call puts
    call newline
    movw $0xf4, %dx             /* isa-debug-exit */
    movl $3, %eax
    outl %eax, %dx
    jmp stop

putc:                           /* %al */
    pushl %edx
    pushl %eax
    movw $COM1 + 5, %dx
1:  inb %dx, %al
    testb $0x20, %al            /* THRE */
    jz 1b
    popl %eax
    movw $COM1, %dx
    outb %al, %dx
    popl %edx
    ret

puts:                           /* %esi */
    lodsb
    testb %al, %al
    jz 1f
    call putc
    jmp puts
1:  ret

newline:
    movb $13, %al
    call putc
    movb $10, %al
    jmp putc

puthex:                         /* %eax: 0x and eight digits */
    pushl %ecx
    pushl %eax
    movb $'0', %al
    call putc
    movb $'x', %al
    call putc
    movl $8, %ecx
1:  roll $4, (%esp)
    movl (%esp), %eax
    andl $15, %eax
    movb digits(%eax), %al
    call putc
    loop 1b
    popl %eax
    popl %ecx
    ret

/* What the loader hands over. */
multiboot:
    movl boot_info, %ebx
    print "flags "
    movl (%ebx), %eax
    call puthex
    call newline
    testl $1 << 0, (%ebx)
    jz 1f
    print "lower "
    movl 4(%ebx), %eax
    call puthex
    print " upper "
    movl 8(%ebx), %eax
    call puthex
    print " KiB"
    call newline
1:  testl $1 << 2, (%ebx)
    jz 1f
    print "command line "
    movl 16(%ebx), %esi
    call puts
    call newline
    movl $noring3, %edi
    call has_word
    movb %al, without_ring3
    movl $nolimit, %edi
    call has_word
    movb %al, without_limits
1:  testl $1 << 9, (%ebx)
    jz 1f
    print "loader "
    movl 64(%ebx), %esi
    call puts
    call newline
1:  testl $1 << 3, (%ebx)
    jz 3f
    movl 20(%ebx), %ecx         /* modules: start, end, text, 0 */
    movl 24(%ebx), %edi
    jecxz 3f
2:  call module
    addl $16, %edi
    loop 2b
3:  testl $1 << 6, (%ebx)
    jz 5f
    movl 44(%ebx), %ecx         /* map: size of the rest, base, length, type */
    movl 48(%ebx), %edi
    addl %edi, %ecx
4:  cmpl %ecx, %edi
    jae 5f
    print "map base "
    movl 8(%edi), %eax
    call puthex
    print " "
    movl 4(%edi), %eax
    call puthex
    print " length "
    movl 16(%edi), %eax
    call puthex
    print " "
    movl 12(%edi), %eax
    call puthex
    print " type "
    movl 20(%edi), %eax
    call puthex
    call newline
    addl (%edi), %edi
    addl $4, %edi
    jmp 4b
5:  ret

has_word:                       /* %edi: eight characters; in %al whether the command line has them somewhere */
    movl boot_info, %esi
    movl 16(%esi), %esi
1:  xorl %eax, %eax
    cmpb (%esi), %al
    je 2f
    incl %esi
    movl -1(%esi), %eax
    cmpl %eax, (%edi)
    jne 1b
    movl 3(%esi), %eax
    xorl 4(%edi), %eax
    shll $8, %eax               /* seven characters */
    jnz 1b
    movb $1, %al
2:  ret

module:                         /* %edi: its entry; its checksum is that of `sum -r`, in 16 bits */
    pushl %ecx
    print "module "
    movl 8(%edi), %esi
    testl %esi, %esi
    jz 1f
    call puts
1:  print " size "
    movl 4(%edi), %ecx
    movl (%edi), %esi
    subl %esi, %ecx
    movl %ecx, %eax
    call puthex
    xorl %edx, %edx
    xorl %eax, %eax
    jecxz 3f
2:  rorw $1, %dx
    lodsb
    addw %ax, %dx
    loop 2b
3:  print " sum "
    movzwl %dx, %eax
    call puthex
    call newline
    popl %ecx
    ret

/* Bases of descriptors, gates of the IDT, the TSS. */
descriptors:
    movl $small_area, %eax
    movl $SMALL, %esi
    call set_base
    movl $DOWN, %esi
    call set_base
    movl $based_code, %eax
    movl $BASED_CODE, %esi
    call set_base
    movl $tss, %eax
    movl $TSS, %esi
    call set_base
    movl $gate_target, %eax
    movw %ax, gdt + (GATE & ~7)
    shrl $16, %eax
    movw %ax, gdt + (GATE & ~7) + 6
    movl $stubs, %eax
    movl $idt, %edi
    movl $32, %ecx
1:  movl %eax, %edx
    movw %dx, (%edi)
    movw $CODE, 2(%edi)
    movw $0x8e00, 4(%edi)       /* 32-bit interrupt gate */
    shrl $16, %edx
    movw %dx, 6(%edi)
    addl $8, %edi
    addl $16, %eax
    loop 1b
    lidtl idt_pointer
    movl $TSS, %eax
    ltr %ax
    xorl %eax, %eax
    str %eax
    cmpw $TSS, %ax
    je 1f
    fail_with "STR after LTR"
1:  testb $2, gdt + TSS + 5
    jnz 1f
    fail_with "LTR leaves the TSS not busy"
1:  faults 13, TSS, "LTR of a busy TSS", ltr %ax
    print "TSS loaded, busy"
    jmp newline

set_base:                       /* %eax the base, %esi the selector; %eax stays */
    pushl %eax
    movw %ax, gdt + 2(%esi)
    shrl $16, %eax
    movb %al, gdt + 4(%esi)
    movb %ah, gdt + 7(%esi)
    popl %eax
    ret

segments:
    movl $SMALL, %eax
    movl %eax, %es
    movl $0x12345678, %es:0xfc
    cmpl $0x12345678, small_area + 0xfc
    je 1f
    fail_with "a segment's base"
1:  movl $ABSENT, %ecx
    faults 11, ABSENT, "the load of a segment that is not present", movl %ecx, %es
    movl $0x7f8, %ecx
    faults 13, 0x7f8, "the load of a selector outside of the GDT", movl %ecx, %es
    movl $CODE, %ecx
    faults 13, CODE, "the load of a code segment into SS", movl %ecx, %ss
    print "segments: base, loads"
    call newline
    testb $1, without_limits
    jz limits
    movl $DATA, %eax
    movl %eax, %es
    ret

limits:                         /* %es is SMALL */
    faults 13, 0, "a write of 32 bits across the limit", movl %eax, %es:0xfd
    faults 13, 0, "a read of a byte above the limit", movb %es:0x100, %al
    movl $DOWN, %eax
    movl %eax, %es
    movl %es:0x100, %eax
    faults 13, 0, "a read below the start of an expand-down segment", movb %es:0xff, %al
    movl $READ_ONLY, %eax
    movl %eax, %es
    movl %es:small_area, %eax
    faults 13, 0, "a write to a read-only segment", movl %eax, %es:small_area
    xorl %eax, %eax
    movl %eax, %es
    faults 13, 0, "an access through the null selector", movl %es:small_area, %eax
    faults 13, 0, "a write to a code segment", movl %eax, %cs:small_area
    movl $STACK_SEGMENT, %eax
    movl %eax, %ss
    faults 12, 0, "a read through SS above its limit", movl %ss:0x200000, %eax
    movl $DATA, %eax
    movl %eax, %ss
    movl %eax, %es
    print "segments: limits, expand-down, rights"
    jmp newline

transfers:
    ljmpl $BASED_CODE, $based_jump - based_code
1:  fail_with "a far jump"
based_code:
based_jump:
    movl %cs, %eax
    cmpw $BASED_CODE, %ax
    jne 1b
    ljmpl $CODE, $1f
1:  lcalll $BASED_CODE, $based_function - based_code
    cmpl $0x5a5a, %eax
    je 1f
    fail_with "a far call"
1:  faults 13, DATA, "a far jump to a data segment", ljmpl $DATA, $0
    print "far: jump, call, return"
    jmp newline
based_function:
    movl $0x5a5a, %eax
    lretl

privilege:
    movl $DATA, tss + 8         /* ss0, and esp0 below what is in use */
    leal -64(%esp), %eax
    movl %eax, tss + 4
    movl $0, gate_sum
    movl $user_end, resume
    movl %esp, resume_stack
    movl $-1, seen_vector
    pushl $USER_DATA
    pushl $user_stack_top
    pushfl
    pushl $USER_CODE
    pushl $user
    iretl
user:                           /* in ring 3 */
    movl $USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    pushl $0x1100
    pushl $0x22
    lcalll $GATE, $0
    cmpl $user_stack_top, %esp
    je 1f
    ud2
1:  movw %cs, user_selector
    cli                         /* #GP */
user_end:
    cmpl $13, seen_vector
    je 1f
    fail_with "CLI in ring 3"
1:  cmpl $USER_CODE, user_selector
    je 1f
    fail_with "the code selector in ring 3"
1:  cmpl $0x1122, gate_sum
    je 1f
    fail_with "the call gate's parameters"
1:  print "ring 3: call gate with parameters, #GP"
    jmp newline

gate_target:                    /* return address, CS, two parameters, the stack of ring 3 */
    movl 8(%esp), %eax
    addl 12(%esp), %eax
    movl %eax, gate_sum
    lretl $8

/* Exceptions: notes vector and error code, and goes on at `resume` with the stack that was there. */
    .balign 16
stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
    pushl $0
    .endif
    pushl $vector
    jmp caught
    .set vector, vector + 1
    .endr
caught:
    movl $DATA, %eax
    movl %eax, %ds
    popl seen_vector
    popl seen_error
    movl %eax, %ss
    movl resume_stack, %esp
    jmpl *resume
    .code64

    .section .rodata.protected, "a"
name:
    guest_name
noring3:
    .asciz "noring3"
nolimit:
    .asciz "nolimit"
digits:
    .ascii "0123456789abcdef"

    .section .data.protected, "aw"
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    /* CODE */
    .quad 0x00cf93000000ffff    /* DATA */
    .quad 0x00409300000000ff    /* SMALL */
    .quad 0x00409700000000ff    /* DOWN */
    .quad 0x00cf91000000ffff    /* READ_ONLY */
    .quad 0x00cf13000000ffff    /* ABSENT */
    .quad 0x00cf9b000000ffff    /* BASED_CODE */
    .quad 0x00cffb000000ffff    /* USER_CODE */
    .quad 0x00cff3000000ffff    /* USER_DATA */
    .quad 0x0000890000000067    /* TSS: 104 bytes, available */
    .quad 0x0000ec0200080000    /* GATE: to CODE, for ring 3, 2 parameters */
    .quad 0x00c09300000001ff    /* STACK_SEGMENT: 2 MiB */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
idt_pointer:
    .word 32 * 8 - 1
    .long idt

    .section .bss.protected, "aw", @nobits
    .balign 16
boot_magic:
    .skip 4
boot_info:
    .skip 4
resume:
    .skip 4
resume_stack:
    .skip 4
seen_vector:
    .skip 4
seen_error:
    .skip 4
user_selector:
    .skip 4
gate_sum:
    .skip 4
without_ring3:
    .skip 1
without_limits:
    .skip 1
    .balign 16
idt:
    .skip 32 * 8
tss:
    .skip 112
small_area:
    .skip 512
    .skip 4096
user_stack_top:
    .skip 4096
stack_top:
