/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The strategy interface: who may resolve a fault under which locks, and what VMA writers owe
 * for it. A table of function pointers; `size` is sizeof() as the plugin saw it and members are
 * only ever appended. A NULL member means "this strategy needs nothing there".
 *
 * No member may raise, sleep with IRQs off, or wait with the GIL held.
 */
#ifndef KMM_STRATEGY_H
#define KMM_STRATEGY_H

#include "kmm/mm_types.h"

struct strategy_ops {
	size_t size;
	const char *name;
	/* Names of Cpu.strategy_count[0..nr_counters-1], NULL-terminated. Index 0 = attempts,
	 * 1 = successes, 2 = retried under mmap_sem; the rest are aborts by reason. */
	const char *const *counter_names;

	/* -- reader side -- */
	/* Context: process, IRQs on, no locks held; may sleep. A user access of `mm` on `cpu` faulted at
	 * `address` (not aligned). Resolve it completely. 0 or VM_FAULT_MAJOR on success (the access
	 * is then repeated); VM_FAULT_SIGSEGV | VM_FAULT_BADMAP/BADACCESS, VM_FAULT_SIGBUS, VM_FAULT_OOM. */
	vm_fault_t (*handle_fault)(Cpu *cpu, struct mm_struct *mm, unsigned long address, unsigned int flags);
	/* Context: vmf->flags has FAULT_FLAG_SPECULATIVE. As pte_map_lock()/pte_spinlock() of the SPF
	 * series: true = vmf->pte mapped (pte_map_lock only), vmf->ptl held, VMA validated; false =
	 * nothing held, the fault must return VM_FAULT_RETRY. */
	int (*pte_map_lock)(Cpu *cpu, struct vm_fault *vmf);
	int (*pte_spinlock)(Cpu *cpu, struct vm_fault *vmf);
	/* Context: process, IRQs on; cpu->active_mm == mm. Reference or pin (gup_flags: FOLL_*) pages from `start` on into
	 * pages[] as far as it goes without mmap_sem and without a fault: get_user_pages_fast() does the rest. How many of
	 * nr_pages. Whoever has it also has fork raise mm->write_protect_seq. NULL: the slow path only. */
	long (*gup_fast)(Cpu *cpu, struct mm_struct *mm, unsigned long start, unsigned long nr_pages,
			 unsigned int gup_flags, struct page **pages);

	/* -- writer side; context of all: process, may sleep unless said -- */
	/* Lock the address space for a change within [start, end). NULL: down_write(mmap_sem). */
	void (*mmap_write_lock)(Cpu *cpu, struct mm_struct *mm, unsigned long start, unsigned long end);
	void (*mmap_write_unlock)(Cpu *cpu, struct mm_struct *mm);
	/* A section in which the VMA's range, flags, prot or page tables change. Sections of two
	 * VMAs nest (`subclass` 1 = the inner one). Caller: mmap_sem W, or R for zapping. */
	void (*vma_write_begin)(Cpu *cpu, struct vm_area_struct *vma, int subclass);
	void (*vma_write_end)(Cpu *cpu, struct vm_area_struct *vma);
	/* Around every change of the rbtree's shape. Caller: mmap_sem W. May not sleep. */
	void (*tree_write_begin)(Cpu *cpu, struct mm_struct *mm);
	void (*tree_write_end)(Cpu *cpu, struct mm_struct *mm);
	/* The VMA is unlinked and nobody will find it again: free it with __vm_area_free() now
	 * (NULL does that) or after a grace period. */
	void (*free_vma)(Cpu *cpu, struct vm_area_struct *vma);
	/* A new VMA, before it is linked (its lock state, its sequence). */
	void (*vma_init)(Cpu *cpu, struct vm_area_struct *vma);

	/* -- lifecycle -- */
	int (*mm_init)(Cpu *cpu, struct mm_struct *mm);         /* 0 or -errno; sets mm->strategy_data */
	void (*mm_exit)(Cpu *cpu, struct mm_struct *mm);
	/* Wait until every deferred free of this strategy is done (srcu_barrier()). At machine exit and before validate(). */
	void (*quiesce)(Cpu *cpu, struct machine *machine);
};

static inline void vma_write_begin(Cpu *cpu, struct vm_area_struct *vma, int subclass)
{
	if (vma->vm_mm->strategy->vma_write_begin)
		vma->vm_mm->strategy->vma_write_begin(cpu, vma, subclass);
}

static inline void vma_write_end(Cpu *cpu, struct vm_area_struct *vma)
{
	if (vma->vm_mm->strategy->vma_write_end)
		vma->vm_mm->strategy->vma_write_end(cpu, vma);
}

static inline void tree_write_begin(Cpu *cpu, struct mm_struct *mm)
{
	if (mm->strategy->tree_write_begin)
		mm->strategy->tree_write_begin(cpu, mm);
}

static inline void tree_write_end(Cpu *cpu, struct mm_struct *mm)
{
	if (mm->strategy->tree_write_end)
		mm->strategy->tree_write_end(cpu, mm);
}

#endif
