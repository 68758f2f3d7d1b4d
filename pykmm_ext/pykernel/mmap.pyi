# SPDX-License-Identifier: GPL-2.0-only
"""Lookups, and compiled functions that may stand in for methods; public in pykmm.kernel."""
from typing import Any, Final, final

from pykmm_ext.pykernel.call import CpuHandle, MachineRef
from pykmm_ext.pykernel.handles import MmHandle, VmaHandle

SPF_WRITER_MASK: Final[int]

@final
class KernelFunction:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def member(self) -> str: ...
    def __call__(self, cpu: CpuHandle, x: MmHandle | VmaHandle | MachineRef, *args: Any) -> Any: ...

def find_vma(cpu: CpuHandle, mm: MmHandle, address: int) -> VmaHandle | None: ...
def find_vma_srcu(cpu: CpuHandle, mm: MmHandle, address: int) -> VmaHandle | None: ...
def find_vma_rcu(cpu: CpuHandle, mm: MmHandle, address: int) -> VmaHandle | None: ...
def vma_has_changed(cpu: CpuHandle, vma: VmaHandle, sequence: int) -> bool: ...

handle_fault_mmap_sem: Final[KernelFunction]
spf_vma_write_begin: Final[KernelFunction]
spf_vma_write_end: Final[KernelFunction]
spf_vma_init: Final[KernelFunction]
spf_tree_write_begin: Final[KernelFunction]
spf_tree_write_end: Final[KernelFunction]
spf_free_vma: Final[KernelFunction]
spf_quiesce: Final[KernelFunction]
vm_area_free: Final[KernelFunction]
vm_area_free_rcu: Final[KernelFunction]
rcu_barrier: Final[KernelFunction]
lockless_pages_from_mm: Final[KernelFunction]
