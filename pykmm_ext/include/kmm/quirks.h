/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Quirks: the shared mm at an earlier patch level, so that a race which a patch fixed can be shown without the fix.
 *
 * struct machine.quirks is a set of these bits, const after creation; 0 = every fix is there. They are looked at on
 * paths of VMA writers only, never on a fault's. Python names: pykmm_ext.binding.QUIRKS. A quirk concerns strategies
 * that have write sections; the others are not affected unless it says so.
 */
#ifndef KMM_QUIRKS_H
#define KMM_QUIRKS_H

enum kmm_quirk {
	/* "vma-adjust-order". Race R2, RFC v5 patch 04: __vma_adjust() opens the write sections of its VMAs before it
	 * takes i_mmap_rwsem and the anon_vma lock, truncation takes them the other way round.
	 * Fix (patch 05): the sections begin after the locks of the mapping. */
	KMM_QUIRK_VMA_ADJUST_ORDER = 1 << 0,
	/* "vma-adjust-late-end". Race R8, RFC v5 patches 04 and 07: the write section of a VMA that __vma_adjust()
	 * swallows ends after the VMA was handed to free_vma(). Fix: end it before. */
	KMM_QUIRK_VMA_ADJUST_LATE_END = 1 << 1,
	/* "mprotect-populate". Race R11, RFC v5 patch 06: mprotect_fixup() faults pages of a locked mapping in inside
	 * its own write section: faults of the range fall back for as long, and locks of the fault path nest inside the
	 * section. Fix: the section ends before. */
	KMM_QUIRK_MPROTECT_POPULATE = 1 << 2,
	/* "vmacache-narrow". Race R16, mm/vmacache.c with a 32-bit number: vmacache_seqnum wraps, and an entry from
	 * before counts again. Here it wraps after two changes. Concerns every strategy. Fix: 64 bits. */
	KMM_QUIRK_VMACACHE_NARROW = 1 << 3,
	/* "fork-no-section". Not in the catalogue; RFC v5 as a whole, and per-VMA locks as in 6.4-rc: fork write-protects
	 * the parent's pages without a write section and without write-locking the VMAs, so that a fault may copy a page
	 * that another thread still writes through a stale translation. Fix: sections from before the first entry changes
	 * until the flush is done; every VMA of the parent write-locked. */
	KMM_QUIRK_FORK_NO_SECTION = 1 << 4,
	/* "eager-callbacks". No bug: every call_rcu() and call_srcu() tries to end a grace period, so that what nobody
	 * reads is freed at once and not in batches. For scenarios that are too short to fill a batch. */
	KMM_QUIRK_EAGER_CALLBACKS = 1 << 5,
	/* "mprotect-plain". RFC v5, patch 06: mprotect_fixup() changes vm_flags with a plain store, which a speculative
	 * fault reads without a lock: a data race, that only a build with PYKMM_PLAIN=1 sees. Fix: WRITE_ONCE(). */
	KMM_QUIRK_MPROTECT_PLAIN = 1 << 6,
	/* "mremap-early-count". mm/mremap.c of Linux 6.17: do_mremap() compares map_count with its limit before it takes
	 * mmap_sem. Concerns every strategy; seen by a build with PYKMM_PLAIN=1. Fix: under mmap_sem. */
	KMM_QUIRK_MREMAP_EARLY_COUNT = 1 << 7,
	/* "stack-grow-read". Linux 4.20 to 5.7: stacks grow under mmap_sem R, so one may grow to where a munmap() that goes
	 * on as a reader frees page tables. Concerns every strategy with munmap_downgrade. Fix in 5.8: next to a stack
	 * munmap() stays a writer; in 6.5, and here: stacks grow under mmap_sem W. */
	KMM_QUIRK_STACK_GROW_READ = 1 << 8,
};
#define KMM_QUIRKS_ALL 0x1ffUL

#endif
