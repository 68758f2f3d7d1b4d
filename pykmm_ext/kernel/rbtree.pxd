# SPDX-License-Identifier: GPL-2.0-only
# include/linux/rbtree.h, rbtree_augmented.h; lib/rbtree.c: the augmented red-black tree.
#
# Who may run against whom: writers exclude each other by the caller's lock. Lockless readers may
# descend rb_left/rb_right with READ_ONCE at any time: every child pointer is published with
# WRITE_ONCE in an order that never makes a loop, so a descent terminates; it may miss a node that a
# rotation moves, so its result counts only under an unchanged sequence (mm_seq).
from pykmm_ext.kernel.atomic cimport READ_ONCE
from pykmm_ext.machine.cpu cimport Cpu

cdef extern from "kmm/rbtree_types.h" nogil:
    cdef struct rb_node:
        unsigned long __rb_parent_color
        rb_node *rb_right
        rb_node *rb_left
    cdef struct rb_root:
        rb_node *rb_node

cdef struct rb_augment_callbacks:
    # Recompute from `node` up to (excluding) `stop`.
    void (*propagate)(rb_node *node, rb_node *stop) noexcept nogil
    # `new` takes `old`'s place and value.
    void (*copy)(rb_node *old, rb_node *new) noexcept nogil
    # `new` takes `old`'s place above it: copy old's value to new, recompute old.
    void (*rotate)(rb_node *old, rb_node *new) noexcept nogil

cdef inline rb_node *rb_parent(const rb_node *node) noexcept nogil:
    return <rb_node *>(node.__rb_parent_color & ~<unsigned long>3)
cdef inline void RB_CLEAR_NODE(rb_node *node) noexcept nogil:
    node.__rb_parent_color = <unsigned long>node
cdef inline bint RB_EMPTY_ROOT(const rb_root *root) noexcept nogil:
    return root.rb_node == NULL

# Context: any; the answer may be old. Racy by design: SPF reads it without mmap_sem.
cdef inline bint RB_EMPTY_NODE(Cpu *cpu, const rb_node *node) noexcept nogil:
    return READ_ONCE(cpu, &node.__rb_parent_color) == <unsigned long>node

# Context of all that change the tree: the caller's lock (W); they do not sleep. Of the others: the lock (R).
cdef void rb_link_node(Cpu *cpu, rb_node *node, rb_node *parent, rb_node **link) noexcept nogil
cdef void rb_insert_color(Cpu *cpu, rb_node *node, rb_root *root) noexcept nogil
cdef void rb_erase(Cpu *cpu, rb_node *node, rb_root *root) noexcept nogil
cdef void rb_insert_augmented(Cpu *cpu, rb_node *node, rb_root *root, const rb_augment_callbacks *cb) noexcept nogil
cdef void rb_erase_augmented(Cpu *cpu, rb_node *node, rb_root *root, const rb_augment_callbacks *cb) noexcept nogil
cdef void rb_replace_node(Cpu *cpu, rb_node *victim, rb_node *new, rb_root *root) noexcept nogil
cdef rb_node *rb_first(const rb_root *root) noexcept nogil
cdef rb_node *rb_last(const rb_root *root) noexcept nogil
cdef rb_node *rb_next(const rb_node *node) noexcept nogil
cdef rb_node *rb_prev(const rb_node *node) noexcept nogil
# Red-black rules and parent links; returns the black height, or -1 with *where = the bad node.
cdef int validate_rb_tree(const rb_root *root, rb_node **where) noexcept nogil
