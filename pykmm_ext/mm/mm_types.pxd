# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/mm_types.h (mm_types.h, mm.h, fs.h, rmap.h, asm-generic/tlb.h).
# What each field is written and read under stands in the header; keep both lists in step.
from pykmm_ext.kernel.rbtree cimport rb_node, rb_root
from pykmm_ext.kernel.rwsem cimport rw_semaphore
from pykmm_ext.kernel.seqlock cimport seqcount_t, seqlock_t
from pykmm_ext.kernel.spinlock cimport spinlock_t
from pykmm_ext.kernel.srcu cimport rcu_segcblist, srcu_struct
from pykmm_ext.machine.cpu cimport KMM_NR_RSS, Cpu, rcu_head, slab_magazine, u8, u16, u32, u64

cdef extern from "kmm/mm_types.h" nogil:
    ctypedef unsigned long pte_t
    ctypedef unsigned long pmd_t
    ctypedef unsigned long pgd_t
    ctypedef unsigned long pgprot_t
    ctypedef unsigned int vm_fault_t

    const unsigned long VM_READ, VM_WRITE, VM_EXEC, VM_SHARED
    const unsigned long VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC, VM_MAYSHARE, VM_GROWSDOWN
    const unsigned long VM_PFNMAP, VM_LOCKED, VM_IO, VM_SEQ_READ, VM_RAND_READ
    const unsigned long VM_DONTCOPY, VM_DONTEXPAND, VM_LOCKONFAULT, VM_ACCOUNT, VM_NORESERVE
    const unsigned long VM_HUGETLB, VM_SYNC, VM_WIPEONFORK, VM_DONTDUMP, VM_SOFTDIRTY
    const unsigned long VM_MIXEDMAP, VM_HUGEPAGE, VM_NOHUGEPAGE, VM_MERGEABLE, VM_SPECIAL
    const unsigned long VM_ACCESS_FLAGS, PG_uptodate, PG_dirty
    const unsigned long PG_reserved, PG_table, PG_buddy, PG_anon, PG_pristine, PG_anon_exclusive
    const unsigned int FAULT_FLAG_WRITE, FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_KILLABLE
    const u32 VMA_LOCK_OFFSET, VMA_ATTACHED
    const unsigned int FAULT_FLAG_USER, FAULT_FLAG_INSTRUCTION, FAULT_FLAG_SPECULATIVE, FAULT_FLAG_VMA_LOCK
    const unsigned int FAULT_FLAG_UNSHARE, FOLL_WRITE, FOLL_GET, FOLL_PIN, GUP_PIN_COUNTING_BIAS, VM_FAULT_OOM
    const unsigned int VM_FAULT_SIGBUS, VM_FAULT_MAJOR, VM_FAULT_SIGSEGV, VM_FAULT_NOPAGE
    const unsigned int VM_FAULT_RETRY, VM_FAULT_BADMAP, VM_FAULT_BADACCESS, VM_FAULT_ERROR
    const unsigned int KMM_SEGV_MAPERR, KMM_SEGV_ACCERR, KMM_BUS_ADRERR, KMM_FAULT_OOM, KMM_FAULT_RETURN
    const unsigned int KMM_FAULT_ENDLESS, KMM_FAULT_KILLED
    enum:
        KMM_FAULT_TRIES, KMM_FAULT_TRIES_CHECKED
    enum:
        MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES
        MAX_ORDER, MMU_GATHER_BUNDLE
        KMEM_VMA, KMEM_ANON_VMA, KMEM_AVC, KMEM_MM, KMEM_FILE, KMEM_POLICY, KMEM_NR

    cdef struct page
    cdef struct address_space
    cdef struct file
    cdef struct anon_vma
    cdef struct anon_vma_chain
    cdef struct vm_operations_struct
    cdef struct mempolicy
    cdef struct vm_area_struct
    cdef struct mm_struct
    cdef struct vm_fault
    cdef struct mmu_gather_batch
    cdef struct mmu_gather
    cdef struct free_area
    cdef struct zone
    cdef struct kmem_cache
    cdef struct rcu_state
    cdef struct machine
    cdef struct region
    cdef struct lockless_walk
    cdef struct strategy_ops
    cdef struct arch_ops

    cdef struct page:
        unsigned long flags
        u32 _refcount
        u32 _mapcount
        void *mapping
        unsigned long index
        page *lru_next
        page *lru_prev
        u32 order
        spinlock_t ptl
        unsigned long private_
    cdef struct address_space:
        file *host
        rw_semaphore i_mmap_rwsem
        vm_area_struct *i_mmap
        spinlock_t i_pages_lock
        page **i_pages
        unsigned long nrpages_max
        unsigned long nrpages
    cdef struct file:
        u32 f_count
        unsigned long i_size
        const u8 *data
        unsigned long data_len
        char *name
        u32 dev_major, dev_minor
        unsigned long ino
        u32 special
        address_space f_mapping
        machine *machine
        file *next
        rw_semaphore i_rwsem
    cdef struct anon_vma:
        anon_vma *root
        anon_vma *parent
        rw_semaphore rwsem
        u32 refcount
        u32 degree
        anon_vma_chain *head
    cdef struct anon_vma_chain:
        vm_area_struct *vma
        anon_vma *anon_vma
        anon_vma_chain *same_vma_next
        anon_vma_chain *same_vma_prev
        anon_vma_chain *same_anon_next
        anon_vma_chain *same_anon_prev
    cdef struct vm_operations_struct:
        const char *(*name)(vm_area_struct *vma) noexcept nogil
        u32 no_fault
        u32 may_not_merge
    enum:
        MAX_NUMNODES, MAX_NUMNODES_LONGS
    cdef struct mempolicy:
        u32 refcnt
        u16 mode
        u16 flags
        unsigned long nodes
        unsigned long user_nodemask[MAX_NUMNODES_LONGS]
    cdef struct vm_area_struct:
        unsigned long vm_start
        unsigned long vm_end
        vm_area_struct *vm_next
        vm_area_struct *vm_prev
        rb_node vm_rb
        unsigned long rb_subtree_gap
        mm_struct *vm_mm
        unsigned long vm_flags
        pgprot_t vm_page_prot
        seqcount_t vm_sequence
        unsigned long vm_pgoff
        file *vm_file
        const vm_operations_struct *vm_ops
        anon_vma *anon_vma
        anon_vma_chain *anon_vma_chain
        vm_area_struct *shared_next
        vm_area_struct *shared_prev
        const char *anon_name
        void *strategy_data
        rcu_head vm_rcu_head
        mempolicy *vm_policy
        rw_semaphore vm_lock
        unsigned long vm_lock_seq
        u32 vm_refcnt
        u32 vm_read_biased
        u32 detached
    cdef struct mm_struct:
        vm_area_struct *mmap
        rb_root mm_rb
        seqlock_t mm_seq
        u64 vmacache_seqnum
        unsigned long highest_vm_end
        u32 map_count
        machine *machine
        const arch_ops *arch
        const strategy_ops *strategy
        unsigned long pgd
        rw_semaphore mmap_sem
        spinlock_t page_table_lock
        unsigned long nr_ptes
        long rss_stat[KMM_NR_RSS]
        u32 mm_users
        u32 mm_count
        unsigned long total_vm, locked_vm, data_vm, exec_vm, stack_vm
        unsigned long def_flags
        unsigned long start_brk, brk
        unsigned long mmap_base
        unsigned long task_size
        unsigned long start_stack
        unsigned long *mm_cpumask
        void *strategy_data
        mm_struct *mmlist_next
        mm_struct *mmlist_prev
        u32 id
        u32 tlb_flush_pending
        unsigned long mmap_seq
        unsigned long mm_lock_seq
        u32 vma_writer_wait
        seqcount_t write_protect_seq
        u32 has_pinned
        lockless_walk *lockless_walk
    enum:
        KMM_WALK_ATOMIC, KMM_WALK_PERCPU
        KMM_SERIALIZE_ARCH, KMM_SERIALIZE_IPI, KMM_SERIALIZE_RCU, KMM_SERIALIZE_NONE
    cdef struct lockless_walk_count:
        unsigned long count
    cdef struct lockless_walk:
        u32 counted, monitor, serialize, unordered, nr_counts
        lockless_walk_count walkers
        lockless_walk_count cpus[1]
    cdef struct vm_fault:
        vm_area_struct *vma
        unsigned int flags
        unsigned int sequence
        unsigned long address
        unsigned long pgoff
        pmd_t *pmd
        pmd_t orig_pmd
        pte_t *pte
        pte_t orig_pte
        spinlock_t *ptl
        page *page
        page *cow_page
        void *strategy_data
        unsigned long vma_flags
        pgprot_t vma_page_prot
        unsigned long vma_start, vma_end
        anon_vma *anon_vma
    cdef struct mmu_gather_batch:
        mmu_gather_batch *next
        u32 nr, max
        page *pages[1]
    cdef struct mmu_gather:
        mm_struct *mm
        unsigned long start, end
        u32 fullmm
        u32 freed_tables
        page *tables
        mmu_gather_batch *active
        u32 nr
        page *pages[MMU_GATHER_BUNDLE]
        mmu_gather_batch *batches
    cdef struct free_area:
        page *free_list
        unsigned long nr_free
    cdef struct zone:
        spinlock_t lock
        free_area free_area[MAX_ORDER]
        unsigned long nr_free_pages
        unsigned long pristine_pfn
        unsigned long end_pfn
        unsigned long committed_pfn
        u32 pcp_high, pcp_batch
    cdef struct kmem_cache:
        const char *name
        u32 id
        size_t object_size
        spinlock_t lock
        void **depot
        unsigned long depot_count, depot_max
        slab_magazine *magazines
        unsigned long nr_total
        void *slabs
        u8 *carve
        u8 *carve_end
        u32 typesafe
    cdef struct rcu_state:
        unsigned long gp_ctr
        rw_semaphore gp_lock
        u32 gp_state
        u32 gp_cpu
        unsigned long gp_seq
        rcu_segcblist cblist
    cdef struct machine:
        Cpu **cpus
        u32 nr_cpus
        u32 cpumask_words
        const arch_ops *arch
        const strategy_ops *strategy
        void *strategy_priv
        u8 *mem_base
        unsigned long nr_frames
        page *mem_map
        zone zone
        page *zero_page
        kmem_cache caches[KMEM_NR]
        rcu_state rcu
        srcu_struct vma_srcu
        spinlock_t lock
        mm_struct *mmlist
        file *files
        u32 next_mm_id
        u32 fault_around_pages
        unsigned long vm_max_map_count
        region *region
        u64 quirks
        void *poison

    unsigned long page_to_pfn(const machine *m, const page *page)
    page *pfn_to_page(const machine *m, unsigned long pfn)
    void *phys_to_virt(const machine *m, unsigned long paddr)
    unsigned long vma_pages(const vm_area_struct *vma, unsigned page_shift)

cdef extern from "kmm/quirks.h" nogil:
    enum:
        KMM_QUIRK_VMA_ADJUST_ORDER, KMM_QUIRK_VMA_ADJUST_LATE_END, KMM_QUIRK_MPROTECT_POPULATE
        KMM_QUIRK_VMACACHE_NARROW, KMM_QUIRK_FORK_NO_SECTION, KMM_QUIRK_EAGER_CALLBACKS
        KMM_QUIRK_MPROTECT_PLAIN, KMM_QUIRK_MREMAP_EARLY_COUNT, KMM_QUIRK_STACK_GROW_READ
    const unsigned long KMM_QUIRKS_ALL

cdef extern from "kmm/strategy.h" nogil:
    cdef struct strategy_ops:
        size_t size
        const char *name
        const char **counter_names
        vm_fault_t (*handle_fault)(Cpu *cpu, mm_struct *mm, unsigned long address, unsigned int flags) noexcept nogil
        int (*pte_map_lock)(Cpu *cpu, vm_fault *vmf) noexcept nogil
        int (*pte_spinlock)(Cpu *cpu, vm_fault *vmf) noexcept nogil
        long (*gup_fast)(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                         page **pages) noexcept nogil
        void (*mmap_write_lock)(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end) noexcept nogil
        void (*mmap_write_unlock)(Cpu *cpu, mm_struct *mm) noexcept nogil
        void (*vma_write_begin)(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil
        void (*vma_write_end)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
        void (*tree_write_begin)(Cpu *cpu, mm_struct *mm) noexcept nogil
        void (*tree_write_end)(Cpu *cpu, mm_struct *mm) noexcept nogil
        void (*free_vma)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
        void (*vma_init)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
        int (*mm_init)(Cpu *cpu, mm_struct *mm) noexcept nogil
        void (*mm_exit)(Cpu *cpu, mm_struct *mm) noexcept nogil
        void (*quiesce)(Cpu *cpu, machine *machine) noexcept nogil
        page *(*filemap_fault)(Cpu *cpu, vm_fault *vmf, vm_fault_t *ret) noexcept nogil
        void (*vma_start_write)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
        void (*vma_mark_attached)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
        void (*vma_mark_detached)(Cpu *cpu, vm_area_struct *vma) noexcept nogil
        void (*mmap_write_downgrade)(Cpu *cpu, mm_struct *mm) noexcept nogil
        u32 vma_typesafe
        u32 munmap_downgrade
    void vma_write_begin(Cpu *cpu, vm_area_struct *vma, int subclass)
    void vma_write_end(Cpu *cpu, vm_area_struct *vma)
    void tree_write_begin(Cpu *cpu, mm_struct *mm)
    void tree_write_end(Cpu *cpu, mm_struct *mm)
    void vma_start_write(Cpu *cpu, vm_area_struct *vma)
    void vma_mark_attached(Cpu *cpu, vm_area_struct *vma)
    void vma_mark_detached(Cpu *cpu, vm_area_struct *vma)

cdef extern from "kmm/arch.h" nogil:
    enum:
        KMM_MAX_LEVELS
    const unsigned int KMM_ACCESS_READ, KMM_ACCESS_WRITE, KMM_ACCESS_EXEC
    enum:
        KMM_MODEL_TSO, KMM_MODEL_WEAK
    unsigned long be64_to_cpu(unsigned long value)
    cdef struct arch_ops:
        size_t size
        const char *name
        u32 page_shift
        u32 levels
        u32 level_shift[KMM_MAX_LEVELS]
        u32 level_bits[KMM_MAX_LEVELS]
        u64 task_size
        u64 mmap_base
        u64 stack_top
        u64 mmap_min_addr
        u32 big_endian
        pgprot_t (*vm_get_page_prot)(unsigned long vm_flags) noexcept nogil
        pte_t (*pfn_pte)(unsigned long pfn, pgprot_t prot) noexcept nogil
        unsigned long (*pte_pfn)(pte_t pte) noexcept nogil
        int (*pte_none)(pte_t pte) noexcept nogil
        int (*pte_present)(pte_t pte) noexcept nogil
        int (*pte_protnone)(pte_t pte) noexcept nogil
        int (*pte_write)(pte_t pte) noexcept nogil
        int (*pte_dirty)(pte_t pte) noexcept nogil
        int (*pte_young)(pte_t pte) noexcept nogil
        int (*pte_exec)(pte_t pte) noexcept nogil
        int (*pte_special)(pte_t pte) noexcept nogil
        int (*pte_soft_dirty)(pte_t pte) noexcept nogil
        pte_t (*pte_mkwrite)(pte_t pte) noexcept nogil
        pte_t (*pte_wrprotect)(pte_t pte) noexcept nogil
        pte_t (*pte_mkdirty)(pte_t pte) noexcept nogil
        pte_t (*pte_mkclean)(pte_t pte) noexcept nogil
        pte_t (*pte_mkyoung)(pte_t pte) noexcept nogil
        pte_t (*pte_mkold)(pte_t pte) noexcept nogil
        pte_t (*pte_mkspecial)(pte_t pte) noexcept nogil
        pte_t (*pte_modify)(pte_t pte, pgprot_t newprot) noexcept nogil
        pmd_t (*mk_table)(unsigned long table_paddr, u32 level) noexcept nogil
        int (*table_none)(pmd_t entry) noexcept nogil
        int (*table_bad)(pmd_t entry) noexcept nogil
        int (*table_leaf)(pmd_t entry, u32 level) noexcept nogil
        unsigned long (*table_paddr)(pmd_t entry) noexcept nogil
        int (*access_permitted)(pte_t pte, u32 access) noexcept nogil
        void (*flush_tlb_mm)(Cpu *cpu, mm_struct *mm) noexcept nogil
        void (*flush_tlb_range)(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long end, int freed_tables) noexcept nogil
        void (*flush_tlb_page)(Cpu *cpu, mm_struct *mm, unsigned long address) noexcept nogil
        void (*tlb_remove_tables)(Cpu *cpu, mmu_gather *tlb) noexcept nogil
        void (*serialize_against_pte_lookup)(Cpu *cpu, mm_struct *mm) noexcept nogil
        u32 memory_model
        u32 rcu_table_free
        unsigned long (*hw_walk)(Cpu *cpu, mm_struct *mm, unsigned long address, u32 access) noexcept nogil
        u32 vcpu_preemption
        unsigned long (*table_descend)(pmd_t entry, u32 level) noexcept nogil
        u64 map_window
        u32 tlb_broadcast

cdef inline machine *machine_of(Cpu *cpu) noexcept nogil:
    return <machine *>cpu.machine
