/* 16-bit real mode, from the reset vector of a ROM: segment arithmetic, string instructions, far transfers, 32-bit operands,
   protected mode and back, the interrupt vector table by software, by an exception and by IRQ 0 through the PIC. */

    .set COM1, 0x3f8
    .set SCRATCH, 0x2000        /* segment of memory to play with */
    .set TICKS, 0x500           /* in segment 0 */
    .set DIVIDED, 0x502
    .set CALLED, 0x504

    .macro print text
    .pushsection .rodata.text, "a"
99: .asciz "\text"
    .popsection
    movw $99b, %si
    call puts
    .endm

    /* Ends with FAIL and a text unless the condition holds. */
    .macro require condition, text
    j\condition 98f
    .pushsection .rodata.text, "a"
99: .asciz "\text"
    .popsection
    movw $99b, %si
    jmp fail
98:
    .endm

    .section .reset, "ax"
    .code16
    .globl reset
reset:
    ljmpw $0xf000, $start

    .section .text.realmode, "ax"
start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ss
    movw $0x7000, %sp
    movw %ax, %ds
    movw %ax, %es
    movw $COM1 + 3, %dx         /* LCR: 8N1 */
    movb $0x03, %al
    outb %al, %dx
    movw $COM1 + 1, %dx         /* IER */
    xorb %al, %al
    outb %al, %dx
    print "realmode"
    call newline
    movw %cs, %ax
    cmpw $0xf000, %ax
    require e, "CS after the first far jump"

    call segments
    call strings
    call transfers
    call protected
    call interrupts
    print "ok"
    call newline
    jmp power_off

/* %si the text. */
fail:
    pushw %si
    print "FAIL: "
    popw %si
    call puts
    call newline
    movw $0xf4, %dx             /* isa-debug-exit */
    movl $3, %eax
    outl %eax, %dx
stop:
    cli
    hlt
    jmp stop

power_off:
    /* QEMU's q35 leaves it to firmware to place the PM block: PMBASE and ACPI_CNTL of the LPC bridge, 00:1f.0. */
    movl $0x8000f800, %eax
    call pci_select
    inl %dx, %eax
    cmpl $0x29188086, %eax
    jne 1f
    movl $0x8000f840, %eax
    call pci_select
    movl $0x601, %eax
    outl %eax, %dx
    movl $0x8000f844, %eax
    call pci_select
    movb $0x80, %al
    outb %al, %dx
1:  movw $0x604, %dx            /* PM1a_CNT: SLP_EN, SLP_TYP 0 */
    movw $0x2000, %ax
    outw %ax, %dx
    jmp stop

pci_select:                     /* %eax; leaves the data port in %dx */
    movw $0xcf8, %dx
    outl %eax, %dx
    movw $0xcfc, %dx
    ret

putc:                           /* %al */
    pushw %dx
    pushw %ax
    movw $COM1 + 5, %dx
1:  inb %dx, %al
    testb $0x20, %al            /* THRE */
    jz 1b
    popw %ax
    movw $COM1, %dx
    outb %al, %dx
    popw %dx
    ret

puts:                           /* %cs:%si */
    movb %cs:(%si), %al
    incw %si
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

segments:
    movw $SCRATCH, %ax
    movw %ax, %ds
    movw $SCRATCH + 1, %ax
    movw %ax, %es
    movw $0xbeef, 0x10
    cmpw $0xbeef, %es:0
    require e, "the same byte through two segments"
    movw $0x1234, %bx
    movw $0x0100, %si
    movb $0x77, 0x20(%bx,%si)
    cmpb $0x77, 0x1354
    require e, "base and index"
    movw $0xfff0, %bx
    movw $0x0020, %si
    movb $0x66, (%bx,%si)
    cmpb $0x66, 0x10
    require e, "an offset does not wrap at 64 KiB"
    movl $0x89abcdef, %eax
    movl %eax, 0x40
    movl $0x40, %ecx
    cmpl $0x89abcdef, (%ecx)
    require e, "32-bit operands and addresses"
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    print "segments: aliases, wrap, 32-bit operands"
    jmp newline

strings:
    movw $SCRATCH, %ax
    movw %ax, %es
    movw %ax, %ds
    xorw %di, %di
    movw $0xa55a, %ax
    movw $256, %cx
    rep stosw
    cmpw $512, %di
    require e, "DI after REP STOSW"
    xorw %si, %si
    movw $0x400, %di
    movw $512, %cx
    rep movsb
    testw %cx, %cx
    require z, "CX after REP MOVSB"
    movb $0x11, 0x410
    xorw %si, %si
    movw $0x400, %di
    movw $512, %cx
    repe cmpsb
    require ne, "REPE CMPSB finds no difference"
    cmpw $0x411, %di
    require e, "DI after REPE CMPSB"
    movw $0x400, %di
    movw $512, %cx
    movb $0x11, %al
    repne scasb
    cmpw $0x411, %di
    require e, "DI after REPNE SCASB"
    std
    movw $0x1ff, %si
    lodsb
    cld
    cmpw $0x1fe, %si
    require e, "SI after LODSB downwards"
    cmpb $0xa5, %al
    require e, "AL after LODSB"
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    print "strings: stos, movs, cmps, scas, lods"
    jmp newline

transfers:
    movw %sp, %bp
    pushw $0x1111
    pushw $0x2222
    lcallw $0xf000, $far_function
    cmpw $0x3333, %ax
    require e, "a far call's parameters"
    cmpw %bp, %sp
    require e, "SP after a far return with a count"
    ljmpw $0xff00, $far_target - 0xf000
far_target_back:
    require e, "CS after a far jump"
    movw $0x3333, %ax
    pusha
    movw $0, %ax
    popa
    cmpw $0x3333, %ax
    require e, "PUSHA and POPA"
    enter $8, $0
    leave
    cmpw %bp, %sp
    require e, "ENTER and LEAVE"
    movw $5, %cx
    xorw %ax, %ax
1:  incw %ax
    loop 1b
    cmpw $5, %ax
    require e, "LOOP"
    print "transfers: far call, far jump, return with a count"
    jmp newline
far_function:
    enter $0, $0
    movw 6(%bp), %ax
    addw 8(%bp), %ax
    leave
    lretw $4

interrupts:
    xorw %ax, %ax
    movw %ax, TICKS
    movw %ax, DIVIDED
    movw %ax, CALLED
    movw $divide_error, 0 * 4
    movw %cs, 0 * 4 + 2
    movw $tick, 8 * 4
    movw %cs, 8 * 4 + 2
    movw $called, 0x40 * 4
    movw %cs, 0x40 * 4 + 2

    int $0x40
    cmpw $1, CALLED
    require e, "INT 0x40"
    xorw %dx, %dx
    movw $1, %ax
    xorw %cx, %cx
    divw %cx
    cmpw $1, DIVIDED
    require e, "#DE through the vector table"

    /* The local APIC lets the PIC through LINT0, as firmware leaves it: spurious vector with the enable bit, ExtINT. */
    movl $0xfee00000, %edi
    movl $0x1ff, %es:0xf0(%edi)
    movl $0x700, %es:0x350(%edi)
    movb $0x11, %al             /* PIC: edge, ICW4; vectors 8 and 0x70; cascade on line 2; only IRQ 0 */
    outb %al, $0x20
    outb %al, $0xa0
    movb $0x08, %al
    outb %al, $0x21
    movb $0x70, %al
    outb %al, $0xa1
    movb $0x04, %al
    outb %al, $0x21
    movb $0x02, %al
    outb %al, $0xa1
    movb $0x01, %al
    outb %al, $0x21
    outb %al, $0xa1
    movb $0xfe, %al
    outb %al, $0x21
    movb $0xff, %al
    outb %al, $0xa1
    movb $0x34, %al             /* PIT channel 0, mode 2, 100 Hz */
    outb %al, $0x43
    movw $11932, %ax
    outb %al, $0x40
    movb %ah, %al
    outb %al, $0x40
1:  sti
    hlt
    cli
    cmpw $5, TICKS
    jb 1b
    movb $0xff, %al
    outb %al, $0x21
    print "interrupts: INT n, #DE, IRQ 0"
    jmp newline

called:
    incw %ds:CALLED
    iretw

divide_error:                   /* IP is at the division, of two bytes */
    pushw %bp
    movw %sp, %bp
    addw $2, 2(%bp)
    popw %bp
    incw DIVIDED
    iretw

tick:
    pushw %ax
    incw TICKS
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw

/* To protected mode, where a segment with a limit of 4 GiB is loaded, and back: its limit stays ("unreal mode"). */
protected:
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    jmp 1f
1:  movw $0x08, %bx
    movw %bx, %es
    andb $0xfe, %al
    movl %eax, %cr0
    jmp 1f
1:  xorw %ax, %ax
    movw %ax, %ds
    movl $0x200000, %edi
    movl $0xfeedface, %eax
    movl %eax, %es:(%edi)
    cmpl $0xfeedface, %es:(%edi)
    require e, "memory above 1 MiB in unreal mode"
    print "protected mode and back, with a limit of 4 GiB"
    jmp newline

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf93000000ffff
gdt_pointer:
    .word 15
    .long gdt + 0xf0000

    /* At the end of the ROM, which is in reach of the segment FF00, too. */
    .section .high, "ax"
    .code16
far_target:
    movw %cs, %ax
    cmpw $0xff00, %ax
    ljmpw $0xf000, $far_target_back
    .code64
