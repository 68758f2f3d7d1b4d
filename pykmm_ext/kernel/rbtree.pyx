# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""lib/rbtree.c: the augmented red-black tree.

Who may run against whom:

=================  ==========================  =====================================================
who                against                     why it is safe
=================  ==========================  =====================================================
writer             writer                      never: excluded by the caller's lock (mmap_sem W)
rb_next, validate  writer                      never: they read parent links (caller's lock, R)
lockless descent   writer                      terminates; result counts only under an unchanged
                                               sequence (mm_seq), because a rotation can hide a
                                               subtree for a moment
RB_EMPTY_NODE      writer                      one word, READ_ONCE; the answer may be old
=================  ==========================  =====================================================

A descent terminates because no store ever makes a cycle of child pointers: when P goes below N, the
subtree that N hands over is stored into P first (P no longer points at N), then P is hung below N, and
only then is N published to what was above P. A reader between two of these stores sees a tree with a
part missing, never a loop. A node is published with release order, so a descent (which depends on the
pointer's value) sees it initialised.

Colours: bit 0 of __rb_parent_color, 1 = black. The mirror images of every case are one piece of code,
indexed by side: 0 = rb_right, 1 = rb_left, as the two pointers lie in struct rb_node.
"""
from pykmm_ext.kernel.atomic cimport WRITE_ONCE, WRITE_ONCE_PTR, smp_store_release_ptr
from pykmm_ext.machine.cpu cimport Cpu, unlikely

ctypedef void (*rotate_fn)(rb_node *old, rb_node *new) noexcept nogil

cdef enum:
    RB_RED = 0
    RB_BLACK = 1
    SIDE_RIGHT = 0
    SIDE_LEFT = 1
    # A valid tree of 2**63 nodes is not deeper; a walk below this is a loop.
    MAX_DEPTH = 130


# Context: any. The slot of one side.
cdef inline rb_node **child_of(const rb_node *node, int side) noexcept nogil:
    return <rb_node **>&node.rb_right + side


# Context: caller's lock.
cdef inline bint is_black(const rb_node *node) noexcept nogil:
    return node.__rb_parent_color & RB_BLACK


cdef inline bint is_red(const rb_node *node) noexcept nogil:
    return not (node.__rb_parent_color & RB_BLACK)


# Context: caller's lock. A red node's word is its parent's address.
cdef inline rb_node *red_parent(const rb_node *node) noexcept nogil:
    return <rb_node *>node.__rb_parent_color


# Context: caller's lock (W). RB_EMPTY_NODE may read the word without it: hence WRITE_ONCE.
cdef inline void set_parent_color(Cpu *cpu, rb_node *node, rb_node *parent, unsigned long color) noexcept nogil:
    WRITE_ONCE(cpu, &node.__rb_parent_color, <unsigned long>parent | color)


# Context: the tree's writer lock.
cdef inline void set_parent(Cpu *cpu, rb_node *node, rb_node *parent) noexcept nogil:
    WRITE_ONCE(cpu, &node.__rb_parent_color, <unsigned long>parent | (node.__rb_parent_color & RB_BLACK))


# Context: the tree's writer lock.
cdef inline void set_black(Cpu *cpu, rb_node *node) noexcept nogil:
    WRITE_ONCE(cpu, &node.__rb_parent_color, node.__rb_parent_color | RB_BLACK)


# Context: caller's lock (W). Lockless descents may pass through the slot.
cdef inline void set_child(Cpu *cpu, rb_node *node, int side, rb_node *child) noexcept nogil:
    WRITE_ONCE_PTR(cpu, child_of(node, side), child)


# Context: caller's lock (W). Hang `new` where `old` hung; release: `new` may be new to readers. Pairs with the address
# dependency of lockless descents.
cdef inline void change_child(Cpu *cpu, rb_node *old, rb_node *new, rb_node *parent, rb_root *root) noexcept nogil:
    if parent != NULL:
        smp_store_release_ptr(cpu, &parent.rb_left if parent.rb_left == old else &parent.rb_right, new)
    else:
        smp_store_release_ptr(cpu, &root.rb_node, new)


# Context: caller's lock (W). Last step of a rotation: `new` takes over old's parent and colour, `old`
# goes below it in `color`, and the word above is switched.
cdef inline void rotate_set_parents(Cpu *cpu, rb_node *old, rb_node *new, rb_root *root,
                                    unsigned long color) noexcept nogil:
    cdef rb_node *parent = rb_parent(old)
    WRITE_ONCE(cpu, &new.__rb_parent_color, old.__rb_parent_color)
    set_parent_color(cpu, old, new, color)
    change_child(cpu, old, new, parent, root)


# Context: caller's lock (W). `node` was linked red; repair "no red below red".
cdef inline void insert_fixup(Cpu *cpu, rb_node *node, rb_root *root, rotate_fn rotate) noexcept nogil:
    cdef rb_node *parent = red_parent(node)
    cdef rb_node *grand
    cdef rb_node *uncle
    cdef rb_node *moved
    cdef int side, other
    while True:
        if unlikely(parent == NULL):
            set_parent_color(cpu, node, NULL, RB_BLACK)
            return
        if is_black(parent):
            return
        # A red parent is not the root: there is a grandparent, and it is black.
        grand = red_parent(parent)
        side = SIDE_LEFT if grand.rb_left == parent else SIDE_RIGHT
        other = 1 - side
        uncle = child_of(grand, other)[0]
        if uncle != NULL and is_red(uncle):
            # Both red: push the blackness of the grandparent down, go on two levels up.
            set_parent_color(cpu, uncle, grand, RB_BLACK)
            set_parent_color(cpu, parent, grand, RB_BLACK)
            node = grand
            parent = rb_parent(node)
            set_parent_color(cpu, node, parent, RB_RED)
            continue
        if child_of(parent, other)[0] == node:
            # Inner grandchild: turn it to the outside first. The word above is written by the second
            # rotation only, so readers reach neither step half done.
            moved = child_of(node, side)[0]
            set_child(cpu, parent, other, moved)
            set_child(cpu, node, side, parent)
            if moved != NULL:
                set_parent_color(cpu, moved, parent, RB_BLACK)
            set_parent_color(cpu, parent, node, RB_RED)
            if rotate != NULL:
                rotate(parent, node)
            parent = node
        # Outer grandchild: the parent goes above the grandparent.
        moved = child_of(parent, other)[0]
        set_child(cpu, grand, side, moved)
        set_child(cpu, parent, other, grand)
        if moved != NULL:
            set_parent_color(cpu, moved, grand, RB_BLACK)
        rotate_set_parents(cpu, grand, parent, root, RB_RED)
        if rotate != NULL:
            rotate(grand, parent)
        return


# Context: caller's lock (W). The paths through one child of `parent` (NULL at first) are one black short.
cdef inline void erase_fixup(Cpu *cpu, rb_node *parent, rb_root *root, rotate_fn rotate) noexcept nogil:
    cdef rb_node *node = NULL
    cdef rb_node *sibling
    cdef rb_node *inner
    cdef rb_node *outer
    cdef rb_node *moved
    cdef int far, near
    while True:
        # The sibling's side: a short path has a sibling, so the two slots differ.
        far = SIDE_RIGHT if parent.rb_right != node else SIDE_LEFT
        near = 1 - far
        sibling = child_of(parent, far)[0]
        if is_red(sibling):
            # Make the sibling black: it goes above the parent.
            moved = child_of(sibling, near)[0]
            set_child(cpu, parent, far, moved)
            set_child(cpu, sibling, near, parent)
            set_parent_color(cpu, moved, parent, RB_BLACK)
            rotate_set_parents(cpu, parent, sibling, root, RB_RED)
            if rotate != NULL:
                rotate(parent, sibling)
            sibling = moved
        outer = child_of(sibling, far)[0]
        if outer == NULL or is_black(outer):
            inner = child_of(sibling, near)[0]
            if inner == NULL or is_black(inner):
                # Nothing red to take from below: shorten the sibling too.
                set_parent_color(cpu, sibling, parent, RB_RED)
                if is_red(parent):
                    set_black(cpu, parent)
                    return
                node = parent
                parent = rb_parent(node)
                if parent == NULL:
                    return
                continue
            # Turn the red inner nephew to the outside.
            moved = child_of(inner, far)[0]
            set_child(cpu, sibling, near, moved)
            set_child(cpu, inner, far, sibling)
            set_child(cpu, parent, far, inner)
            if moved != NULL:
                set_parent_color(cpu, moved, sibling, RB_BLACK)
            if rotate != NULL:
                rotate(sibling, inner)
            outer = sibling
            sibling = inner
        # A red outer nephew: the sibling goes above the parent, the nephew pays the black.
        moved = child_of(sibling, near)[0]
        set_child(cpu, parent, far, moved)
        set_child(cpu, sibling, near, parent)
        set_parent_color(cpu, outer, sibling, RB_BLACK)
        if moved != NULL:
            set_parent(cpu, moved, parent)
        rotate_set_parents(cpu, parent, sibling, root, RB_BLACK)
        if rotate != NULL:
            rotate(parent, sibling)
        return


# Context: caller's lock (W). Takes `node` out of the tree; returns the node under which a path became
# one black short, or NULL. Order of the stores: the successor is unhooked from below before it gets
# the erased node's children, and is published above last.
cdef inline rb_node *unlink_node(Cpu *cpu, rb_node *node, rb_root *root,
                                 const rb_augment_callbacks *cb) noexcept nogil:
    cdef rb_node *right = node.rb_right
    cdef rb_node *left = node.rb_left
    cdef unsigned long pc = node.__rb_parent_color
    cdef rb_node *above = rb_parent(node)
    cdef rb_node *only
    cdef rb_node *successor
    cdef rb_node *parent
    cdef rb_node *child
    cdef rb_node *deficit = NULL
    cdef rb_node *start
    if left == NULL or right == NULL:
        only = right if left == NULL else left
        change_child(cpu, node, only, above, root)
        if only != NULL:
            # An only child is red (and childless): it takes over the black.
            WRITE_ONCE(cpu, &only.__rb_parent_color, pc)
        elif pc & RB_BLACK:
            deficit = above
        start = above
    else:
        successor = right
        child = successor.rb_left
        if child == NULL:
            parent = successor
            child = successor.rb_right
            if cb != NULL:
                cb.copy(node, successor)
        else:
            while child != NULL:
                parent = successor
                successor = child
                child = successor.rb_left
            child = successor.rb_right
            WRITE_ONCE_PTR(cpu, &parent.rb_left, child)
            WRITE_ONCE_PTR(cpu, &successor.rb_right, right)
            set_parent(cpu, right, successor)
            if cb != NULL:
                cb.copy(node, successor)
                cb.propagate(parent, successor)
        WRITE_ONCE_PTR(cpu, &successor.rb_left, left)
        set_parent(cpu, left, successor)
        change_child(cpu, node, successor, above, root)
        if child != NULL:
            set_parent_color(cpu, child, parent, RB_BLACK)
        elif is_black(successor):
            deficit = parent
        WRITE_ONCE(cpu, &successor.__rb_parent_color, pc)
        start = successor
    if cb != NULL and start != NULL:
        cb.propagate(start, NULL)
    return deficit


# Context: caller's lock (W). Publishes with release order (rb_link_node_rcu of Linux).
cdef void rb_link_node(Cpu *cpu, rb_node *node, rb_node *parent, rb_node **link) noexcept nogil:
    WRITE_ONCE(cpu, &node.__rb_parent_color, <unsigned long>parent)
    WRITE_ONCE_PTR(cpu, &node.rb_left, NULL)
    WRITE_ONCE_PTR(cpu, &node.rb_right, NULL)
    smp_store_release_ptr(cpu, link, node)  # pairs with the address dependency of a descent


# Context of the next four: caller's lock (W). Do not sleep. Callbacks run under the same lock.
cdef void rb_insert_color(Cpu *cpu, rb_node *node, rb_root *root) noexcept nogil:
    insert_fixup(cpu, node, root, NULL)


cdef void rb_insert_augmented(Cpu *cpu, rb_node *node, rb_root *root, const rb_augment_callbacks *cb) noexcept nogil:
    insert_fixup(cpu, node, root, cb.rotate)


cdef void rb_erase(Cpu *cpu, rb_node *node, rb_root *root) noexcept nogil:
    cdef rb_node *deficit = unlink_node(cpu, node, root, NULL)
    if deficit != NULL:
        erase_fixup(cpu, deficit, root, NULL)


cdef void rb_erase_augmented(Cpu *cpu, rb_node *node, rb_root *root, const rb_augment_callbacks *cb) noexcept nogil:
    cdef rb_node *deficit = unlink_node(cpu, node, root, cb)
    if deficit != NULL:
        erase_fixup(cpu, deficit, root, cb.rotate)


# Context: caller's lock (W). `new` needs no initialisation; it takes the victim's place and colour.
cdef void rb_replace_node(Cpu *cpu, rb_node *victim, rb_node *new, rb_root *root) noexcept nogil:
    cdef rb_node *parent = rb_parent(victim)
    WRITE_ONCE(cpu, &new.__rb_parent_color, victim.__rb_parent_color)
    WRITE_ONCE_PTR(cpu, &new.rb_right, victim.rb_right)
    WRITE_ONCE_PTR(cpu, &new.rb_left, victim.rb_left)
    if victim.rb_left != NULL:
        set_parent(cpu, victim.rb_left, new)
    if victim.rb_right != NULL:
        set_parent(cpu, victim.rb_right, new)
    change_child(cpu, victim, new, parent, root)


# Context of the walks: caller's lock (R). Do not sleep.
cdef inline rb_node *outermost(rb_node *node, int side) noexcept nogil:
    if node != NULL:
        while child_of(node, side)[0] != NULL:
            node = child_of(node, side)[0]
    return node


# Context: the tree's lock, R is enough.
cdef inline rb_node *neighbour(const rb_node *node, int side) noexcept nogil:
    cdef rb_node *at = <rb_node *>node
    cdef rb_node *parent
    if node.__rb_parent_color == <unsigned long>node:
        return NULL
    if child_of(at, side)[0] != NULL:
        return outermost(child_of(at, side)[0], 1 - side)
    parent = rb_parent(at)
    while parent != NULL and child_of(parent, side)[0] == at:
        at = parent
        parent = rb_parent(at)
    return parent


cdef rb_node *rb_first(const rb_root *root) noexcept nogil:
    return outermost(root.rb_node, SIDE_LEFT)


cdef rb_node *rb_last(const rb_root *root) noexcept nogil:
    return outermost(root.rb_node, SIDE_RIGHT)


cdef rb_node *rb_next(const rb_node *node) noexcept nogil:
    return neighbour(node, SIDE_RIGHT)


cdef rb_node *rb_prev(const rb_node *node) noexcept nogil:
    return neighbour(node, SIDE_LEFT)


# Context: caller's lock (R). Black height of the subtree, or -1. A node reached from two places, and so
# any loop, fails the parent check: the walk ends.
cdef int black_height(const rb_node *node, const rb_node *parent, int depth, rb_node **where) noexcept nogil:
    cdef int left, right
    if node == NULL:
        return 0
    if rb_parent(node) != parent or depth > MAX_DEPTH or (is_red(node) and (parent == NULL or is_red(parent))):
        where[0] = <rb_node *>node
        return -1
    left = black_height(node.rb_left, node, depth + 1, where)
    if left < 0:
        return -1
    right = black_height(node.rb_right, node, depth + 1, where)
    if right < 0:
        return -1
    if left != right:
        where[0] = <rb_node *>node
        return -1
    return left + (1 if is_black(node) else 0)


cdef int validate_rb_tree(const rb_root *root, rb_node **where) noexcept nogil:
    cdef rb_node *bad = NULL
    cdef int height = black_height(root.rb_node, NULL, 0, &bad)
    if where != NULL:
        where[0] = bad
    return height
