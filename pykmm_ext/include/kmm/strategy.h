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

#include "kmm/abi.h"
#include "kmm/mm_types.h"

struct strategy_ops {
	size_t size;
	const char *name;
	/* Names of Cpu.strategy_count[0..nr_counters-1], NULL-terminated. Index 0 = attempts,
	 * 1 = successes, 2 = retried under mmap_sem; the rest are aborts by reason, but for "errors" and for gup_*, walks_*
	 * and stat_*, which are not about faults. */
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

	/* -- reader side, continued -- */
	/* Context: vmf->flags has FAULT_FLAG_SPECULATIVE, no PTL. The page of a file fault with a reference, or NULL with
	 * VM_FAULT_RETRY in *ret. NULL: filemap_fault() as under mmap_sem, which allocates and may sleep; vmf->vma must
	 * then keep its file. */
	struct page *(*filemap_fault)(Cpu *cpu, struct vm_fault *vmf, vm_fault_t *ret);
	/* -- writer side, VMA by VMA; context of the first three: mmap_sem W (or the last user of the mm), may sleep -- */
	/* Before the first change of the VMA's range, flags, protection, policy or anon_vma, of what lies in its page
	 * tables, or of whether it is in the tree; repeated calls do nothing. Lasts until mmap_write_unlock() or
	 * mmap_write_downgrade(). Taken before i_mmap_rwsem and the locks of anon_vmas. Not called by who only zaps pages
	 * under mmap_sem R or i_mmap_rwsem (MADV_DONTNEED, truncation): sections (vma_write_begin) are. */
	void (*vma_start_write)(Cpu *cpu, struct vm_area_struct *vma);
	/* A new VMA, complete and write-locked, goes into the tree. May be called with i_mmap_rwsem and anon_vma locks
	 * held: must not sleep. vma_start_write() of such a VMA must not sleep either. */
	void (*vma_mark_attached)(Cpu *cpu, struct vm_area_struct *vma);
	/* A write-locked VMA has been taken out of the tree: lookups that are under way must not use it. */
	void (*vma_mark_detached)(Cpu *cpu, struct vm_area_struct *vma);
	/* Go on as a reader of mmap_sem, nobody in between. NULL, and mmap_write_unlock NULL: downgrade_write(mmap_sem);
	 * NULL beside an mmap_write_unlock: the strategy has none (mmap_write_downgrade() then unlocks). */
	void (*mmap_write_downgrade)(Cpu *cpu, struct mm_struct *mm);
	/* The VMA cache is type-stable (SLAB_TYPESAFE_BY_RCU): free_vma() frees at once, lookups may find a VMA that is
	 * another one by now. Read when the machine is made. */
	u32 vma_typesafe;
	/* munmap(), and brk() and mremap() that shrink, go on as readers of mmap_sem once the VMAs are out of the tree (Linux
	 * since 4.20). 0: they hold it for writing until pages and tables are gone. Needs mmap_write_downgrade, where there
	 * is an mmap_write_unlock. */
	u32 munmap_downgrade;
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

/* Contexts of these three: as the members. */
static inline void vma_start_write(Cpu *cpu, struct vm_area_struct *vma)
{
	if (vma->vm_mm->strategy->vma_start_write)
		vma->vm_mm->strategy->vma_start_write(cpu, vma);
}

static inline void vma_mark_attached(Cpu *cpu, struct vm_area_struct *vma)
{
	if (vma->vm_mm->strategy->vma_mark_attached)
		vma->vm_mm->strategy->vma_mark_attached(cpu, vma);
}

static inline void vma_mark_detached(Cpu *cpu, struct vm_area_struct *vma)
{
	if (vma->vm_mm->strategy->vma_mark_detached)
		vma->vm_mm->strategy->vma_mark_detached(cpu, vma);
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
