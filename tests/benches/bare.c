/* The yardstick of the start-up benchmark: the KVM calls that it takes to run a guest, and nothing else.
 *
 *     bare GUEST
 *
 * GUEST is an ELF64 file with a PVH entry (Xen, docs/misc/pvh.pandoc). The machine has 128 MiB of RAM, one vCPU with the
 * host's CPUID, and a split irqchip. Bytes written to port 0xE9 go to stdout as they come; SLP_EN written to port 0x604
 * ends the program; other ports read as ones.
 */

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM_SIZE = 128 << 20, CPUID_ENTRIES = 256, PVH_NOTE = 18, DEBUG_PORT = 0xE9, PM1A_CNT = 0x604 };

static long check(long result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
        exit(1);
    }
    return result;
}

/* The entry point of the PVH note in `size` bytes of notes; 0 if it is not there. */
static uint32_t pvh_entry(const char *notes, uint64_t size)
{
    while (size >= sizeof(Elf64_Nhdr)) {
        const Elf64_Nhdr *note = (const void *)notes;
        uint64_t name = (note->n_namesz + 3) & ~3u, desc = (note->n_descsz + 3) & ~3u;
        if (sizeof *note + name + desc > size)
            break;
        if (note->n_type == PVH_NOTE && note->n_namesz == 4 && !memcmp(note + 1, "Xen", 4))
            return *(const uint32_t *)((const char *)(note + 1) + name);
        notes += sizeof *note + name + desc;
        size -= sizeof *note + name + desc;
    }
    return 0;
}

/* Reads the guest into RAM and gives back its entry point. */
static uint32_t load(const char *path, char *ram)
{
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
    Elf64_Ehdr header;
    Elf64_Phdr segments[16];
    uint32_t entry = 0;
    check(pread(fd, &header, sizeof header, 0), path);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_phnum > 16) {
        fprintf(stderr, "bare: %s is no guest of this repository\n", path);
        exit(1);
    }
    check(pread(fd, segments, header.e_phnum * sizeof *segments, header.e_phoff), path);
    for (int i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr *segment = &segments[i];
        if (segment->p_type == PT_LOAD && segment->p_paddr + segment->p_memsz <= RAM_SIZE)
            check(pread(fd, ram + segment->p_paddr, segment->p_filesz, segment->p_offset), path);
        if (segment->p_type == PT_NOTE && segment->p_filesz <= 4096) {
            char notes[4096];
            check(pread(fd, notes, segment->p_filesz, segment->p_offset), path);
            entry = pvh_entry(notes, segment->p_filesz);
        }
    }
    close(fd);
    return entry;
}

static struct kvm_segment flat(uint8_t type, uint16_t selector)
{
    return (struct kvm_segment){
        .limit = 0xFFFFFFFF, .selector = selector, .type = type, .present = 1, .db = 1, .s = 1, .g = 1,
    };
}

static void set_registers(int vcpu, uint32_t entry)
{
    struct kvm_sregs sregs;
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs = flat(0xB, 0x8);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat(0x3, 0x10);
    sregs.tr = (struct kvm_segment){ .limit = 0x67, .type = 0xB, .present = 1 };
    sregs.cr0 = 0x11; /* ET, PE */
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = { .rip = entry, .rflags = 2 };
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: bare GUEST\n");
        return 1;
    }
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");

    int memory = check(memfd_create("guest-ram", MFD_CLOEXEC), "memfd_create");
    check(ftruncate(memory, RAM_SIZE), "ftruncate");
    char *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory, 0);
    check(ram == MAP_FAILED ? -1 : 0, "mmap");
    struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");

    struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
    check(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
    int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    long size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    check(run == MAP_FAILED ? -1 : 0, "mmap");

    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof *cpuid->entries);
    cpuid->nent = CPUID_ENTRIES;
    check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
    check(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
    set_registers(vcpu, load(argv[1], ram));

    for (;;) {
        check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) {
            fprintf(stderr, "bare: exit %u\n", run->exit_reason);
            return 1;
        }
        char *data = (char *)run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_IN)
            memset(data, 0xFF, (size_t)run->io.size * run->io.count);
        else if (run->io.port == DEBUG_PORT)
            check(write(STDOUT_FILENO, data, run->io.count), "write");
        else if (run->io.port == PM1A_CNT && (data[1] & 0x20))
            return 0;
    }
}
