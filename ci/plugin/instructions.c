/* A plugin for QEMU's TCG: counts the instructions that each emulated processor executes, by who executes them, and
 * how often the hypervisor is entered. The counts lie in the file named by counts=, which is mapped: whoever reads it
 * gets them as they are at that moment, and nothing runs beside the emulation.
 *
 *     cc -O2 -shared -fPIC -o instructions.so instructions.c
 *     qemu-system-x86_64 ... -plugin instructions.so,counts=FILE
 *
 * The few functions of QEMU's plugin interface, version 1, that are used are declared here, because Debian ships no
 * header of it before trixie. The lab compiles this file (ci/src/bench/instructions.rs, which knows the layout). */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef void (*translated_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed_cb)(unsigned, void *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_cb);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed_cb, int, void *);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

/* Who executes: Xen has its own part of the addresses (xen/include/asm-x86/config.h), a Linux kernel lies above it,
 * Linux's programs lie far below it, and the unikernel is linked at 1 MiB. */
enum who { XEN, KERNEL, PROGRAM, LOW, WHOS };
#define XEN_BEGIN 0xffff800000000000u
#define XEN_END 0xffff880000000000u
#define LOW_END 0x100000000u

#define PROCESSORS 8
/* One cache line for each processor. */
struct counts {
  uint64_t instructions[WHOS];
  uint64_t entries;
  uint64_t last;
  uint64_t unused[2];
};
static struct counts *counts;

static void executed(unsigned processor, void *what) {
  uint64_t block = (uintptr_t)what, who = block >> 32;
  struct counts *own = &counts[processor % PROCESSORS];
  own->instructions[who] += (uint32_t)block;
  own->entries += who == XEN && own->last != XEN;
  own->last = who;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  uint64_t address = qemu_plugin_tb_vaddr(block);
  uint64_t who = address >= XEN_END ? KERNEL : address >= XEN_BEGIN ? XEN : address >= LOW_END ? PROGRAM : LOW;
  uintptr_t what = who << 32 | qemu_plugin_tb_n_insns(block);
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)what);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  static const char name[] = "counts=";
  size_t size = PROCESSORS * sizeof(struct counts);
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (strncmp(argv[i], name, sizeof name - 1))
      continue;
    int file = open(argv[i] + sizeof name - 1, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || ftruncate(file, (off_t)size))
      return 1;
    counts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (counts == MAP_FAILED)
      return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
  }
  return 1;
}
