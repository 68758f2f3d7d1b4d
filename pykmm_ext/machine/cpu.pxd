# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/types.h, engine.h, cpu.h: integers, the engine hook, struct Cpu.
# The fields' contracts stand in include/kmm/cpu.h.

cdef extern from "kmm/types.h" nogil:
    ctypedef unsigned char u8
    ctypedef unsigned short u16
    ctypedef unsigned int u32
    ctypedef unsigned long long u64
    ctypedef long long s64
    ctypedef int s32
    bint likely(bint)
    bint unlikely(bint)

cdef extern from "kmm/engine.h" nogil:
    cdef enum kmm_event:
        KMM_EV_ALLOC, KMM_EV_FREE, KMM_EV_TLB_USE, KMM_EV_COMPUTE, KMM_EV_SYSCALL, KMM_EV_SYSRET
        KMM_EV_SEQ_WRITE_BEGIN, KMM_EV_SEQ_WRITE_END, KMM_EV_SEQ_READ, KMM_EV_RCU_LOCK, KMM_EV_RCU_UNLOCK
        KMM_EV_SRCU_LOCK, KMM_EV_SRCU_UNLOCK, KMM_EV_MIGHT_SLEEP, KMM_EV_RCU_ASSERT, KMM_EV_SRCU_ASSERT
        KMM_EV_RCU_SYNC, KMM_EV_SRCU_SYNC, KMM_EV_IPI_WAIT, KMM_EV_LOCK_NESTED
        KMM_EV_IRQS_ON, KMM_EV_IRQ_ENTER, KMM_EV_IRQ_EXIT, KMM_EV_COPY, KMM_EV_GUP, KMM_EV_ISOLATE
    enum:
        KMM_SEQ_COUNTED
    ctypedef int (*kmm_pred)(u64 value, u64 arg) noexcept nogil
    cdef struct engine_ops:
        size_t size

cdef extern from "kmm/cpu.h" nogil:
    cdef enum vm_event_item:
        PGFAULT, PGMAJFAULT, PGALLOC, PGFREE, NR_PGTABLE_ALLOC, NR_PGTABLE_FREE
        TLB_FLUSH_LOCAL, TLB_FLUSH_REMOTE, TLB_FLUSH_RECEIVED, TLB_HIT, TLB_MISS
        FAULT_ANON_ZERO, FAULT_ANON_WRITE, FAULT_FILE_READ, FAULT_FILE_COW, FAULT_FILE_SHARED
        FAULT_WP_REUSE, FAULT_WP_COPY, FAULT_SPURIOUS, FAULT_AROUND_PAGES
        FAULT_SIGSEGV, FAULT_SIGBUS, FAULT_OOM, FAULT_MMAP_SEM
        VMACACHE_FIND_HITS, VMACACHE_FIND_CALLS, IPI_SENT, IPI_HANDLED
        NR_FOLL_PIN_ACQUIRED, NR_FOLL_PIN_RELEASED, NR_VM_EVENT_ITEMS
    enum:
        KMM_NR_RSS, KMM_VMACACHE_SIZE, KMM_PCP_HIGH, KMM_PCP_BATCH
        KMM_STRATEGY_COUNTERS, KMM_SLAB_CACHES, KMM_SLAB_MAGAZINE
    cdef struct tlb:
        pass
    cdef struct per_cpu_pages:
        u32 count
        void *list
        void *tail
        const char *fetch
        u32 fetch_steps
    cdef struct slab_magazine:
        u32 count
        u32 registered
        long nr_active
        slab_magazine *next
        void **objects
    cdef struct vmacache:
        u64 seqnum
        void *mm
        void **vmas
    ctypedef struct Cpu
    cdef struct rcu_head:
        rcu_head *next
        void (*func)(Cpu *cpu, rcu_head *head) noexcept nogil
    cdef struct call_single_data:
        call_single_data *next
        void (*func)(Cpu *target, void *info) noexcept nogil
        void *info
        Cpu *target
        u32 done
    ctypedef struct Cpu:
        const engine_ops *engine
        void *engine_priv
        void *machine          # struct machine *: cast with machine_of(cpu), see mm_types.pxd
        u32 id
        u32 light_is_mb
        u32 irq_disabled
        tlb *tlb
        void *active_mm        # struct mm_struct *
        u32 rcu_nesting
        unsigned long rcu_gp_ctr
        unsigned long vma_read
        per_cpu_pages pcp
        vmacache vmacache
        void *rss_mm
        long *rss_stat
        u32 rss_events
        u64 fault_address
        u32 fault_code
        void *py_exception
        void *py_state
        slab_magazine *slab
        u64 *vm_event
        u64 *strategy_count
        u32 ipi_pending
        u32 ipi_lock
        call_single_data *call_single_queue
        void (*ipi_slow)(Cpu *cpu) noexcept nogil
        u32 vcpu_preempted
        u32 owner
        u32 killed
        u64 fault_detail
    void count_vm_event(Cpu *cpu, vm_event_item item)
    void count_vm_events(Cpu *cpu, vm_event_item item, u64 n)
    void count_strategy(Cpu *cpu, u32 item)
