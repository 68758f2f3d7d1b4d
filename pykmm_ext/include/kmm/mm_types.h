/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/mm_types.h, mm.h, fs.h, rmap.h, asm-generic/tlb.h: the structures that the
 * whole mm shares. Kernel identifiers keep their kernel names and meaning.
 *
 * Each field says what it is written under / read under; "const" = set before the object is
 * visible to others. "SPF" marks lockless readers (READ_ONCE + sequence re-check).
 */
#ifndef KMM_MM_TYPES_H
#define KMM_MM_TYPES_H

#include "kmm/cpu.h"
#include "kmm/quirks.h"
#include "kmm/seqlock.h"
#include "kmm/spinlock.h"
#include "kmm/types.h"
#include "kmm/rbtree_types.h"
#include "kmm/rcu_segcblist.h"
#include "kmm/rwsem_types.h"
#include "kmm/srcu_types.h"

struct strategy_ops;
struct arch_ops;
struct machine;
struct mm_struct;
struct vm_area_struct;
struct anon_vma;
struct address_space;
struct region;
struct lockless_walk;

/* Page-table entries are raw 64-bit words in simulated frames; only the arch interprets them. */
typedef unsigned long pte_t;
typedef unsigned long pmd_t;
typedef unsigned long pgd_t;
typedef unsigned long pgprot_t;

/* ---- vm_flags (include/linux/mm.h) ---- */
#define VM_READ         0x00000001UL
#define VM_WRITE        0x00000002UL
#define VM_EXEC         0x00000004UL
#define VM_SHARED       0x00000008UL
#define VM_MAYREAD      0x00000010UL
#define VM_MAYWRITE     0x00000020UL
#define VM_MAYEXEC      0x00000040UL
#define VM_MAYSHARE     0x00000080UL
#define VM_GROWSDOWN    0x00000100UL
#define VM_PFNMAP       0x00000400UL
#define VM_LOCKED       0x00002000UL
#define VM_IO           0x00004000UL
#define VM_SEQ_READ     0x00008000UL
#define VM_RAND_READ    0x00010000UL
#define VM_DONTCOPY     0x00020000UL
#define VM_DONTEXPAND   0x00040000UL
#define VM_LOCKONFAULT  0x00080000UL
#define VM_ACCOUNT      0x00100000UL
#define VM_NORESERVE    0x00200000UL
#define VM_HUGETLB      0x00400000UL
#define VM_SYNC         0x00800000UL
#define VM_WIPEONFORK   0x02000000UL
#define VM_DONTDUMP     0x04000000UL
#define VM_SOFTDIRTY    0x08000000UL
#define VM_MIXEDMAP     0x10000000UL
#define VM_HUGEPAGE     0x20000000UL
#define VM_NOHUGEPAGE   0x40000000UL
#define VM_MERGEABLE    0x80000000UL
#define VM_SPECIAL      (VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP)
#define VM_ACCESS_FLAGS (VM_READ | VM_WRITE | VM_EXEC)

/* ---- fault flags and results ---- */
typedef unsigned int vm_fault_t;
#define FAULT_FLAG_WRITE        0x01
#define FAULT_FLAG_ALLOW_RETRY  0x04
#define FAULT_FLAG_KILLABLE     0x10
#define FAULT_FLAG_USER         0x40
#define FAULT_FLAG_INSTRUCTION  0x100
#define FAULT_FLAG_SPECULATIVE  0x200
#define FAULT_FLAG_UNSHARE      0x400 /* a page that is to be pinned for reading must be nobody else's */
#define FAULT_FLAG_VMA_LOCK     0x1000  /* under the VMA's own lock, without mmap_sem */

#define VM_FAULT_OOM      0x0001
#define VM_FAULT_SIGBUS   0x0002
#define VM_FAULT_MAJOR    0x0004
#define VM_FAULT_SIGSEGV  0x0040
#define VM_FAULT_NOPAGE   0x0100
#define VM_FAULT_RETRY    0x0400
/* What a strategy's handle_fault adds to VM_FAULT_SIGSEGV (stands in for the si_code). */
#define VM_FAULT_BADMAP    0x10000 /* SEGV_MAPERR */
#define VM_FAULT_BADACCESS 0x20000 /* SEGV_ACCERR */
#define VM_FAULT_ERROR (VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV)

#define KMM_SEGV_MAPERR 1
#define KMM_SEGV_ACCERR 2
#define KMM_BUS_ADRERR  3
#define KMM_FAULT_OOM   4
#define KMM_FAULT_RETURN  5 /* the strategy's handle_fault returned what it must not (Cpu.fault_detail) */
#define KMM_FAULT_ENDLESS 6 /* it said KMM_FAULT_TRIES times that the fault is resolved, and it is not */
#define KMM_FAULT_KILLED  7 /* the watchdog gave up (Cpu.killed) */
#define KMM_FAULT_TRIES 100000 /* of one access in a row; a zapper may undo a few */
#define KMM_FAULT_TRIES_CHECKED 1000 /* the same on the check engine, where an execution has some hundreds of steps */

enum rss_item { MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES };

/* ---- physical memory ---- */
#define PG_uptodate   (1UL << 2)
#define PG_dirty      (1UL << 3)
#define PG_reserved   (1UL << 5)
#define PG_table      (1UL << 6)  /* holds a page table */
#define PG_buddy      (1UL << 7)  /* free, first page of a block of `order` in the buddy lists */
#define PG_anon       (1UL << 8)  /* stands in for PAGE_MAPPING_ANON in page->mapping */
#define PG_anon_exclusive (1UL << 10) /* an anonymous page that only one mapping has ever been able to write since it was
				       * last shared: written under the PTL of that mapping */
#define PG_pristine   (1UL << 9)  /* on a pcp list: zero as it is. Never handed out and not committed: the host zeroes it;
				       * or given back unwritten (put_zeroed_page()) */

/* ---- get_user_pages() (include/linux/mm.h) ---- */
#define FOLL_WRITE 0x01u
#define FOLL_GET   0x04u     /* an ordinary reference */
#define FOLL_PIN   0x40000u  /* somebody will read or write the contents: page_maybe_dma_pinned() */
#define GUP_PIN_COUNTING_BIAS 1024u

struct page {
	unsigned long flags;      /* atomic bit operations */
	u32 _refcount;            /* atomic; 0 = free; a pin counts GUP_PIN_COUNTING_BIAS */
	u32 _mapcount;            /* atomic; number of PTEs that map it (Linux counts from -1) */
	void *mapping;            /* struct address_space or struct anon_vma (PG_anon); const while mapped */
	unsigned long index;      /* page offset in the mapping; const while mapped */
	struct page *lru_next;    /* owner of the list: pcp list (owning Cpu), buddy list (zone->lock) */
	struct page *lru_prev;
	u32 order;                /* PG_buddy: zone->lock; of an allocated block's first page: const (region.h) */
	spinlock_t ptl;           /* PG_table: split page-table lock */
	unsigned long private_;   /* PG_table: mm->id << 8 | level, for reports; const */
};

/* ---- files and the page cache (include/linux/fs.h) ---- */
struct address_space {
	struct file *host;              /* const */
	rwlock_sem i_mmap_rwsem;        /* protects i_mmap */
	struct vm_area_struct *i_mmap;  /* VMAs that map it (list through shared_next); stands in for the interval tree */
	spinlock_t i_pages_lock;        /* insertion into and removal from i_pages; data_len */
	struct page **i_pages;          /* [nrpages_max]; slots published with release order, read with acquire */
	unsigned long nrpages_max;      /* const: pages of the size that the file was created with; it never grows beyond */
	unsigned long nrpages;          /* i_pages_lock */
};

struct file {
	u32 f_count;                    /* atomic references: VMAs and the Python File object */
	unsigned long i_size;           /* bytes; i_rwsem W; read without a lock (READ_ONCE) */
	const u8 *data;                 /* initial contents, data_len bytes, zeroes after; const */
	unsigned long data_len;         /* i_rwsem W and i_pages_lock; truncation cuts it */
	char *name;                     /* const; what proc_maps() shows */
	u32 dev_major, dev_minor;       /* const */
	unsigned long ino;              /* const */
	u32 special;                    /* const; [vvar] and friends: never COWed from data, no merging */
	struct address_space f_mapping;
	struct machine *machine;        /* const */
	struct file *next;              /* machine->files, under machine->lock */
	rwlock_sem i_rwsem;             /* changes of the size (of struct inode in Linux) */
};

/* ---- reverse map (include/linux/rmap.h) ---- */
struct anon_vma {
	struct anon_vma *root;          /* const */
	struct anon_vma *parent;        /* const */
	rwlock_sem rwsem;               /* root's: protects the chains of the whole tree of anon_vmas */
	u32 refcount;                   /* atomic */
	u32 degree;                     /* number of child anon_vmas and VMAs it is `anon_vma` of; root rwsem */
	struct anon_vma_chain *head;    /* VMAs that may hold its pages (through same_anon_next); root rwsem.
					 * simplified: a list, not an interval tree */
};

struct anon_vma_chain {
	struct vm_area_struct *vma;             /* const */
	struct anon_vma *anon_vma;              /* const until the chain is taken apart */
	struct anon_vma_chain *same_vma_next;   /* vma->anon_vma_chain; mmap_sem or page_table_lock */
	struct anon_vma_chain *same_vma_prev;
	struct anon_vma_chain *same_anon_next;  /* anon_vma->head; root rwsem */
	struct anon_vma_chain *same_anon_prev;
};

struct vm_operations_struct {
	const char *(*name)(struct vm_area_struct *vma); /* "[vdso]", "[stack]", NULL */
	u32 no_fault;     /* touching it is VM_FAULT_SIGBUS */
	u32 may_not_merge;/* vm_ops->close in Linux */
};

/* ---- memory policies (include/linux/mempolicy.h) ---- */
#define MAX_NUMNODES 1024               /* how many nodes a mask may name; only node 0 exists */
#define MAX_NUMNODES_LONGS (MAX_NUMNODES / 64)
struct mempolicy {
	u32 refcnt;                     /* atomic; a call of mbind and the VMAs. The rest: const */
	u16 mode;                       /* MPOL_* */
	u16 flags;                      /* MPOL_F_* of the mode argument */
	unsigned long nodes;            /* bit 0: node 0. simplified: one node, so one word */
	unsigned long user_nodemask[MAX_NUMNODES_LONGS]; /* as passed in; STATIC_NODES, RELATIVE_NODES */
};

/* ---- vm_area_struct ---- */
#define VMA_LOCK_OFFSET 0x40000000u /* bits of vm_refcnt */
#define VMA_ATTACHED    0x80000000u
struct vm_area_struct {
	unsigned long vm_start;         /* mmap_sem W inside vm_sequence; R: mmap_sem or SPF */
	unsigned long vm_end;           /* same; exclusive */
	struct vm_area_struct *vm_next; /* mmap_sem */
	struct vm_area_struct *vm_prev;
	struct rb_node vm_rb;           /* mmap_sem W inside mm_seq; R: mmap_sem or SPF inside mm_seq */
	unsigned long rb_subtree_gap;   /* mmap_sem */
	struct mm_struct *vm_mm;        /* const */
	unsigned long vm_flags;         /* mmap_sem W inside vm_sequence; R: mmap_sem or SPF */
	pgprot_t vm_page_prot;          /* same */
	seqcount_t vm_sequence;         /* writers: mmap_sem W. The strategy's vma_write_begin/end bump it */
	u32 detached;                   /* per_vma_lock: in no tree (any more); W: mmap_sem W and write-locked; R: vm_lock */
	unsigned long vm_pgoff;         /* same as vm_start; in pages */
	struct file *vm_file;           /* const; the VMA holds a reference until it is freed */
	const struct vm_operations_struct *vm_ops; /* const */
	struct anon_vma *anon_vma;      /* set once under mmap_sem R + mm->page_table_lock; SPF reads */
	unsigned long vm_lock_seq;      /* per-VMA locks (mm/vma_lock): equal to mm->mm_lock_seq = write-locked. W: mmap_sem W
					 * and vm_lock W (or a writer's vm_refcnt); R: vm_lock or a reference, or a first guess
					 * without. Not beside the lock's word: readers would have to fetch that line twice */
	u32 vm_read_biased;             /* readers may hold the VMA by Cpu.vma_read. Set by a reader that is counted; cleared by
					 * a writer that has waited for those; R: any, again after Cpu.vma_read is written */
	struct anon_vma_chain *anon_vma_chain; /* mmap_sem + page_table_lock */
	struct vm_area_struct *shared_next;    /* mapping->i_mmap; i_mmap_rwsem W */
	struct vm_area_struct *shared_prev;
	const char *anon_name;          /* const; "[heap]"-like label of an imported mapping, or NULL */
	void *strategy_data;            /* per-VMA state of the strategy */
	struct mempolicy *vm_policy;    /* mmap_sem W inside vm_sequence; R: mmap_sem. NULL = the default; a reference */
	/* A line that nothing else on the path of a fault touches: per-VMA locks, one or the other. */
	_Alignas(64) rwlock_sem vm_lock; /* R: a fault uses the VMA; W: only to write vm_lock_seq */
	u32 vm_refcnt;                  /* atomic: one per reader, VMA_LOCK_OFFSET more while a writer is in, VMA_ATTACHED more
					 * while in a tree */
	struct rcu_head vm_rcu_head;    /* free_vma() */
};

/* ---- mm_struct ---- */
struct mm_struct {
	struct vm_area_struct *mmap;    /* mmap_sem */
	struct rb_root mm_rb;           /* mmap_sem W inside mm_seq; R: mmap_sem or SPF inside mm_seq */
	seqlock_t mm_seq;               /* the rbtree's shape, for find_vma_srcu() */
	u64 vmacache_seqnum;            /* mmap_sem W */
	unsigned long highest_vm_end;   /* mmap_sem */
	u32 map_count;                  /* mmap_sem */

	struct machine *machine;        /* const, like the next three */
	const struct arch_ops *arch;
	const struct strategy_ops *strategy;
	unsigned long pgd;              /* physical address of the root table; const until exit_mmap */

	rwlock_sem mmap_sem ____cacheline_aligned;
	spinlock_t page_table_lock ____cacheline_aligned; /* page-table population, anon_vma assignment, brk layout */
	unsigned long nr_ptes;          /* atomic: page-table pages of every level, in frames */
	long rss_stat[KMM_NR_RSS];      /* atomic; per-CPU deltas are folded in every 64 events */

	u32 mm_users;                   /* atomic: threads; 0 = exit_mmap */
	u32 mm_count;                   /* atomic: references to the structure */
	unsigned long total_vm, locked_vm, data_vm, exec_vm, stack_vm; /* pages; mmap_sem W */
	unsigned long def_flags;        /* VM_LOCKED bits of mappings to come (MCL_FUTURE); mmap_sem W */
	unsigned long start_brk, brk;   /* mmap_sem W */
	unsigned long mmap_base;        /* highest address that mmap(NULL) may use, exclusive; set before use */
	unsigned long task_size;        /* const */
	unsigned long start_stack;      /* top of the stack that an exec has laid out, or 0; set before use */

	unsigned long *mm_cpumask;      /* bit n: Cpu n may hold TLB entries of this mm; atomic bit operations */
	void *strategy_data;            /* per-mm state of the strategy */
	struct mm_struct *mmlist_next;  /* machine->mmlist, under machine->lock */
	struct mm_struct *mmlist_prev;
	u32 id;                         /* const; for reports */
	u32 tlb_flush_pending;          /* atomic: zappers under mmap_sem R that may owe a TLB flush */
	/* mmap_sem W, where the strategy's mmap_write_lock/unlock bump it (odd = held); SPF reads. A line of its own:
	 * speculative faults read it several times each. */
	unsigned long mmap_seq ____cacheline_aligned;
	unsigned long mm_lock_seq;      /* per-VMA locks: mmap_sem W; a new value unlocks all VMAs. R: acquire, no lock */
	u32 vma_writer_wait;            /* atomic, counts: readers of a VMA's vm_refcnt leave while its writer waits */

	seqcount_t write_protect_seq;   /* fork write-protects pages: mmap_sem W; R: lockless GUP that pins */
	u32 has_pinned;                 /* MMF_HAS_PINNED: WRITE_ONCE before the first pin, never cleared; R: fork */
	struct lockless_walk *lockless_walk; /* const; NULL unless the strategy counts its lockless walkers */
};

/* ---- who walks page tables without a lock (mm/lockless_walk) ---- */
enum kmm_walk_monitor { KMM_WALK_ATOMIC, KMM_WALK_PERCPU };
enum kmm_walk_serialize { KMM_SERIALIZE_ARCH, KMM_SERIALIZE_IPI, KMM_SERIALIZE_RCU, KMM_SERIALIZE_NONE };
struct lockless_walk_count {
	unsigned long count ____cacheline_aligned; /* 1 = the Cpu walks: written by it alone, read by who removes tables */
};
struct lockless_walk {
	u32 counted;                    /* const: 0 = monitor=none: everybody might walk */
	u32 monitor;                    /* const: enum kmm_walk_monitor */
	u32 serialize;                  /* const: enum kmm_walk_serialize */
	u32 unordered;                  /* const: no barrier around the counter (race R17): for study */
	u32 nr_counts;                  /* const */
	struct lockless_walk_count walkers; /* KMM_WALK_ATOMIC: atomic; walks under way */
	struct lockless_walk_count cpus[];  /* KMM_WALK_PERCPU: [nr_counts], by Cpu */
};

/* ---- a fault in progress (include/linux/mm.h) ---- */
struct vm_fault {
	struct vm_area_struct *vma;
	unsigned int flags;             /* FAULT_FLAG_* */
	unsigned int sequence;          /* vm_sequence at the lookup (SPF) */
	unsigned long address;          /* page-aligned */
	unsigned long pgoff;            /* page offset of `address` in the VMA's file or anon range */
	pmd_t *pmd;                     /* kernel pointer to the level-1 entry */
	pmd_t orig_pmd;                 /* its value when looked up (SPF) */
	pte_t *pte;                     /* valid while ptl is held, or NULL */
	pte_t orig_pte;
	spinlock_t *ptl;
	struct page *page;
	struct page *cow_page;
	void *strategy_data;
	/* The VMA as it was when the fault looked at it. A speculative fault must use these and not the VMA's own
	 * fields: under the PTL, with the sequence checked, a writer may still move the bounds of the VMA or give it
	 * other permissions (the PTL only keeps it from the entries). */
	unsigned long vma_flags;
	pgprot_t vma_page_prot;
	unsigned long vma_start, vma_end;
	struct anon_vma *anon_vma;      /* with a merge, the VMA loses its own without the PTL; the survivor has this one */
};

/* ---- mmu_gather (include/asm-generic/tlb.h) ---- */
#define MMU_GATHER_BUNDLE 32
struct mmu_gather_batch {
	struct mmu_gather_batch *next;
	u32 nr, max;
	struct page *pages[];
};
struct mmu_gather {
	struct mm_struct *mm;
	unsigned long start, end;       /* range with stale TLB entries; start > end = none */
	u32 fullmm;                     /* the whole address space goes: no flush between */
	u32 freed_tables;               /* page tables were unlinked: the walk caches must go too */
	struct page *tables;            /* unlinked page tables, through lru_next */
	struct mmu_gather_batch *active;
	u32 nr;                         /* pages in the bundle below, used before any batch is allocated */
	struct page *pages[MMU_GATHER_BUNDLE];
	struct mmu_gather_batch *batches;
};

/* ---- the machine ---- */
#define MAX_ORDER 11
struct free_area {
	struct page *free_list;         /* doubly linked through lru_next/lru_prev */
	unsigned long nr_free;          /* blocks */
};
struct zone {
	spinlock_t lock;                /* everything below */
	struct free_area free_area[MAX_ORDER];
	unsigned long nr_free_pages;    /* not counting the pcp lists */
	unsigned long pristine_pfn;     /* frames from here on were never handed out: still zero, not committed */
	unsigned long end_pfn;
	unsigned long committed_pfn;    /* host memory is backed below this */
	u32 pcp_high, pcp_batch;        /* const: KMM_PCP_HIGH and _BATCH, less on a small machine */
};

struct kmem_cache {
	const char *name;
	u32 id;                         /* index into Cpu.slab */
	size_t object_size;
	spinlock_t lock;                /* everything below */
	void **depot;                   /* spare objects, [depot_max >= nr_total] */
	unsigned long depot_count, depot_max;
	struct slab_magazine *magazines; /* every Cpu that used the cache; live objects: kmem_cache_active() */
	unsigned long nr_total;         /* objects that were ever carved out of slabs */
	void *slabs;                    /* chain of backing chunks, freed with the cache */
	u8 *carve, *carve_end;          /* rest of the newest chunk */
	u32 typesafe;                   /* SLAB_TYPESAFE_BY_RCU: const once objects exist; kernel/slab says what it means */
};
enum { KMEM_VMA, KMEM_ANON_VMA, KMEM_AVC, KMEM_MM, KMEM_FILE, KMEM_POLICY, KMEM_NR };

struct rcu_state {
	unsigned char __pad0[KMM_CACHELINE]; /* readers' word: no writer beside it */
	unsigned long gp_ctr;           /* odd; written under gp_lock; read by rcu_read_lock */
	unsigned char __pad1[KMM_CACHELINE];
	rwlock_sem gp_lock;             /* one grace period at a time; gp_state, gp_cpu, gp_seq */
	u32 gp_state;                   /* a grace period of call_rcu() is under way */
	u32 gp_cpu;                     /* Cpus below were seen quiescent in it */
	unsigned long gp_seq;           /* completed grace periods; read without the lock */
	struct rcu_segcblist cblist;    /* its own lock; callbacks of call_rcu() */
};

struct machine {
	Cpu **cpus;                     /* const */
	u32 nr_cpus;                    /* const */
	u32 cpumask_words;              /* const: longs in an mm_cpumask */
	const struct arch_ops *arch;    /* const */
	const struct strategy_ops *strategy; /* const: what new mms use */
	void *strategy_priv;            /* const */
	u8 *mem_base;                   /* const: the arena; physical address p is mem_base[p] */
	unsigned long nr_frames;        /* const */
	struct page *mem_map;           /* const: [nr_frames] */
	struct zone zone ____cacheline_aligned; /* written at every refill: apart from what every fault reads */
	struct page *zero_page ____cacheline_aligned; /* const; reserved */
	struct kmem_cache caches[KMEM_NR];
	struct rcu_state rcu;
	struct srcu_struct vma_srcu;    /* DEFINE_SRCU(vma_srcu) of mm/mmap.c */
	spinlock_t lock;                /* mmlist, files, next_mm_id */
	struct mm_struct *mmlist;
	struct file *files;
	u32 next_mm_id;
	u32 fault_around_pages;         /* const: 16 = fault_around_bytes of 64K */
	unsigned long vm_max_map_count; /* 65530 */
	struct region *region;          /* const: where all of this lies (region.h), NULL = the host's heap */
	u64 quirks;                     /* const after creation: enum kmm_quirk, 0 = every fix is there */
	void *poison;                   /* owned Python exception: why nobody may use the machine any more, NULL = usable.
					 * Written once, under the GIL; read without it by a strategy's adapter (atomic) */
};

/* ---- conversions ---- */
static inline unsigned long page_to_pfn(const struct machine *m, const struct page *page)
{ return (unsigned long)(page - m->mem_map); }
static inline struct page *pfn_to_page(const struct machine *m, unsigned long pfn)
{ return m->mem_map + pfn; }
static inline void *phys_to_virt(const struct machine *m, unsigned long paddr)
{ return m->mem_base + paddr; }

static inline unsigned long vma_pages(const struct vm_area_struct *vma, unsigned page_shift)
{ return (vma->vm_end - vma->vm_start) >> page_shift; }

#endif
