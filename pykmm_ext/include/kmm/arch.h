/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The arch interface: geometry, entry encoding, TLB flush, table freeing, memory model.
 * Porting checklist: see arch.pxd. `size` first; members are only ever appended.
 *
 * Entries are the raw words as they lie in memory: an arch that stores them byte-swapped
 * (ppc64) swaps inside these functions. Context of every entry function: any, no side effects.
 */
#ifndef KMM_ARCH_H
#define KMM_ARCH_H

#include "kmm/mm_types.h"

#define KMM_MAX_LEVELS 5
#define KMM_ACCESS_READ 0u
#define KMM_ACCESS_WRITE 1u
#define KMM_ACCESS_EXEC 2u

/*
 * Entries are compared and changed as they lie in memory; an arch whose byte order is not the host's swaps constants at
 * compile time with these.
 */
#define cpu_to_be64(x) ((unsigned long)__builtin_bswap64(x))
#define be64_to_cpu(x) ((unsigned long)__builtin_bswap64(x))
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "hosts are little-endian"
#endif

enum kmm_memory_model { KMM_MODEL_TSO, KMM_MODEL_WEAK };

struct arch_ops {
	size_t size;
	const char *name;

	/* -- geometry; level 0 = PTE table, levels-1 = root -- */
	u32 page_shift;
	u32 levels;
	u32 level_shift[KMM_MAX_LEVELS];  /* log2 of the bytes that one entry of that level maps */
	u32 level_bits[KMM_MAX_LEVELS];   /* log2 of the entries of a table */
	u64 task_size;                    /* first address that user space cannot have */
	u64 mmap_base;                    /* default mm->mmap_base of an empty mm */
	u64 stack_top;
	u64 mmap_min_addr;
	u32 big_endian;

	/* -- leaf entries -- */
	pgprot_t (*vm_get_page_prot)(unsigned long vm_flags);  /* protection_map[]: private writable = read-only */
	pte_t (*pfn_pte)(unsigned long pfn, pgprot_t prot);
	unsigned long (*pte_pfn)(pte_t pte);
	int (*pte_none)(pte_t pte);
	int (*pte_present)(pte_t pte);          /* mapped for somebody, PROT_NONE included (as Linux) */
	int (*pte_protnone)(pte_t pte);
	int (*pte_write)(pte_t pte);
	int (*pte_dirty)(pte_t pte);
	int (*pte_young)(pte_t pte);
	int (*pte_exec)(pte_t pte);
	int (*pte_special)(pte_t pte);
	int (*pte_soft_dirty)(pte_t pte);
	pte_t (*pte_mkwrite)(pte_t pte);
	pte_t (*pte_wrprotect)(pte_t pte);
	pte_t (*pte_mkdirty)(pte_t pte);
	pte_t (*pte_mkclean)(pte_t pte);
	pte_t (*pte_mkyoung)(pte_t pte);
	pte_t (*pte_mkold)(pte_t pte);
	pte_t (*pte_mkspecial)(pte_t pte);
	pte_t (*pte_modify)(pte_t pte, pgprot_t newprot);

	/* -- table entries (every level above 0) -- */
	pmd_t (*mk_table)(unsigned long table_paddr, u32 level); /* entry at `level` that points to a table */
	int (*table_none)(pmd_t entry);
	int (*table_bad)(pmd_t entry);
	int (*table_leaf)(pmd_t entry, u32 level);              /* huge page */
	unsigned long (*table_paddr)(pmd_t entry);

	/* -- the hardware's own check: may `access` go through this leaf, given the AND of the
	 *    table entries' permissions above it? -- */
	int (*access_permitted)(pte_t pte, u32 access);

	/* -- TLB; caller: IRQs on (it may wait for other CPUs), no spinlock that an IRQ-off
	 *    section spins on; the change of the entries is already visible -- */
	void (*flush_tlb_mm)(Cpu *cpu, struct mm_struct *mm);
	void (*flush_tlb_range)(Cpu *cpu, struct mm_struct *mm, unsigned long start, unsigned long end,
				int freed_tables);
	void (*flush_tlb_page)(Cpu *cpu, struct mm_struct *mm, unsigned long address);
	/* Free the tables of tlb->tables: called after the flush. */
	void (*tlb_remove_tables)(Cpu *cpu, struct mmu_gather *tlb);
	/* Wait for every lockless walker of the mm to leave its IRQ-off (or RCU) section. */
	void (*serialize_against_pte_lookup)(Cpu *cpu, struct mm_struct *mm);

	/* -- properties -- */
	u32 memory_model;     /* enum kmm_memory_model */
	u32 rcu_table_free;   /* lockless walkers need rcu_read_lock(), IRQs off is not enough */

	/* -- the hardware table walk. Context: IRQs off on `cpu`, address below task_size. Checks the
	 *    permissions of every level and sets A (and D for a write) as the MMU does, atomically.
	 *    Returns what the TLB keeps: physical address of the page | 1 << KMM_ACCESS_* for every
	 *    access that needs no further walk (a clean page is not writable there); 0 = page fault. -- */
	unsigned long (*hw_walk)(Cpu *cpu, struct mm_struct *mm, unsigned long address, u32 access);

	/* -- properties, continued -- */
	u32 vcpu_preemption;  /* a virtual machine: the host may stop a vCPU at any instruction, IRQs off or not, and
			       * flush its TLB meanwhile without waking it. Who walks page tables says so with
			       * vcpu_preempt_enable() (irq.h) */
	/* Down one level, for lockless walks: table_paddr of an entry of `level` that points to a table; 0 where
	 * table_none, table_bad or table_leaf says that it does not. */
	unsigned long (*table_descend)(pmd_t entry, u32 level);
	u64 map_window;       /* DEFAULT_MAP_WINDOW: addresses that mmap() gives out without a hint above it lie below it;
			       * task_size where there is no such limit */
	u32 tlb_broadcast;    /* a flush invalidates the TLBs of other Cpus itself (tlbie): the TLB of a Cpu is touched under
			       * its lock (tlb.h), and IRQs off on the target hold no flush up */
};

#endif
