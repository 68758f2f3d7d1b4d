# SPDX-License-Identifier: GPL-2.0-only
"""lib/rbtree_test.c: random operations on the red-black tree, checked, and lockless descents beside a writer.

RbTree keeps up to `capacity` items with distinct keys 0 … capacity-1, augmented with the largest key and the
number of items of each subtree.
"""
from libc.stdlib cimport calloc, free

from pykmm_ext.kernel.atomic cimport READ_ONCE, READ_ONCE_PTR, WRITE_ONCE
from pykmm_ext.kernel.cpuset cimport CpuSet, cpuset_cpu
from pykmm_ext.kernel.random32 cimport xorshift
from pykmm_ext.kernel.rbtree cimport (
    RB_CLEAR_NODE, RB_EMPTY_NODE, RB_EMPTY_ROOT, rb_augment_callbacks, rb_erase, rb_erase_augmented, rb_first,
    rb_insert_augmented, rb_insert_color, rb_last, rb_link_node, rb_next, rb_node, rb_parent, rb_prev, rb_replace_node,
    rb_root, validate_rb_tree,
)
from pykmm_ext.machine.cpu cimport Cpu, u32, u64

# rb is first: a node's address is its item's.
cdef struct item:
    rb_node rb
    unsigned long key
    unsigned long subtree_max
    unsigned long subtree_size


# Context of the callbacks: the tree's lock (W).
cdef inline bint recompute(item *it) noexcept nogil:
    cdef unsigned long largest = it.key, size = 1
    cdef item *child = <item *>it.rb.rb_left
    if child != NULL:
        size += child.subtree_size
        if child.subtree_max > largest:
            largest = child.subtree_max
    child = <item *>it.rb.rb_right
    if child != NULL:
        size += child.subtree_size
        if child.subtree_max > largest:
            largest = child.subtree_max
    if it.subtree_max == largest and it.subtree_size == size:
        return True
    it.subtree_max = largest
    it.subtree_size = size
    return False


cdef void item_propagate(rb_node *node, rb_node *stop) noexcept nogil:
    while node != stop:
        if recompute(<item *>node):
            break
        node = rb_parent(node)


cdef void item_copy(rb_node *old, rb_node *new) noexcept nogil:
    (<item *>new).subtree_max = (<item *>old).subtree_max
    (<item *>new).subtree_size = (<item *>old).subtree_size


cdef void item_rotate(rb_node *old, rb_node *new) noexcept nogil:
    item_copy(old, new)
    recompute(<item *>old)


cdef rb_augment_callbacks item_augment
item_augment.propagate = item_propagate
item_augment.copy = item_copy
item_augment.rotate = item_rotate


cdef class RbTree:
    """A tree of items with keys below `capacity`.

    :param cpus: the CpuSet.
    :param capacity: number of keys.
    :param augmented: keep subtree maxima and sizes.
    """
    cdef CpuSet cpus
    cdef rb_root root
    cdef item *items
    cdef readonly unsigned long capacity
    cdef readonly bint augmented
    cdef unsigned long stop

    def __cinit__(self, CpuSet cpus not None, unsigned long capacity, bint augmented=False):
        cdef unsigned long i
        self.cpus = cpus
        self.capacity = capacity
        self.augmented = augmented
        self.items = <item *>calloc(capacity, sizeof(item))
        if self.items == NULL:
            raise MemoryError()
        for i in range(capacity):
            self.items[i].key = i
            RB_CLEAR_NODE(&self.items[i].rb)

    def __dealloc__(self):
        free(self.items)

    cdef bint insert_key(self, Cpu *c, unsigned long key) noexcept nogil:
        cdef item *it = &self.items[key]
        cdef rb_node **link = &self.root.rb_node
        cdef rb_node *parent = NULL
        while link[0] != NULL:
            parent = link[0]
            if key == (<item *>parent).key:
                return False
            link = &parent.rb_left if key < (<item *>parent).key else &parent.rb_right
        it.subtree_max = key
        it.subtree_size = 1
        rb_link_node(c, &it.rb, parent, link)
        if self.augmented:
            item_propagate(parent, NULL)
            rb_insert_augmented(c, &it.rb, &self.root, &item_augment)
        else:
            rb_insert_color(c, &it.rb, &self.root)
        return True

    cdef bint erase_key(self, Cpu *c, unsigned long key) noexcept nogil:
        cdef item *it = &self.items[key]
        if RB_EMPTY_NODE(c, &it.rb):
            return False
        if self.augmented:
            rb_erase_augmented(c, &it.rb, &self.root, &item_augment)
        else:
            rb_erase(c, &it.rb, &self.root)
        RB_CLEAR_NODE(&it.rb)
        return True

    cdef check_key(self, unsigned long key):
        if key >= self.capacity:
            raise IndexError(key)

    def insert(self, unsigned long key):
        """False when it is there already."""
        self.check_key(key)
        return bool(self.insert_key(cpuset_cpu(self.cpus, 0), key))

    def erase(self, unsigned long key):
        """False when it is not there."""
        self.check_key(key)
        return bool(self.erase_key(cpuset_cpu(self.cpus, 0), key))

    def replace(self, unsigned long victim, unsigned long key):
        """Put the item of `key` into the place of `victim`; the keys must be neighbours in the tree's order."""
        self.check_key(victim)
        self.check_key(key)
        cdef Cpu *c = cpuset_cpu(self.cpus, 0)
        rb_replace_node(c, &self.items[victim].rb, &self.items[key].rb, &self.root)
        RB_CLEAR_NODE(&self.items[victim].rb)
        if self.augmented:
            item_copy(&self.items[victim].rb, &self.items[key].rb)
            item_propagate(&self.items[key].rb, NULL)

    def keys(self):
        """In order, by rb_first() and rb_next()."""
        out = []
        cdef rb_node *node = rb_first(&self.root)
        while node != NULL:
            out.append((<item *>node).key)
            node = rb_next(node)
        return out

    def keys_reversed(self):
        """In reverse order, by rb_last() and rb_prev()."""
        out = []
        cdef rb_node *node = rb_last(&self.root)
        while node != NULL:
            out.append((<item *>node).key)
            node = rb_prev(node)
        return out

    @property
    def empty(self):
        """RB_EMPTY_ROOT()."""
        return bool(RB_EMPTY_ROOT(&self.root))

    def linked(self, unsigned long key):
        """not RB_EMPTY_NODE()."""
        self.check_key(key)
        return not RB_EMPTY_NODE(cpuset_cpu(self.cpus, 0), &self.items[key].rb)

    def validate(self):
        """Black height; AssertionError names the bad node's key. Checks the augmented values as well."""
        cdef rb_node *where = NULL
        cdef int height = validate_rb_tree(&self.root, &where)
        cdef rb_node *node
        if height < 0:
            raise AssertionError(f"red-black rules broken at key {(<item *>where).key}")
        if self.augmented:
            node = rb_first(&self.root)
            while node != NULL:
                if not recompute(<item *>node):
                    raise AssertionError(f"augmented value wrong at key {(<item *>node).key}")
                node = rb_next(node)
        return height

    def corrupt(self, unsigned long key, str what):
        """Break the tree at a node: "color", "parent" or "loop"; for testing validate()."""
        self.check_key(key)
        cdef item *it = &self.items[key]
        if what == "color":
            it.rb.__rb_parent_color ^= 1
        elif what == "parent":
            it.rb.__rb_parent_color = <unsigned long>&it.rb | (it.rb.__rb_parent_color & 1)
        else:
            it.rb.rb_left = self.root.rb_node

    def churn(self, u32 cpu, unsigned long n, u64 seed):
        """n random insertions and erasures, then stops the descents. Returns the number of items at the end."""
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long _i, key
        cdef long count = 0
        cdef u64 state = seed | 1
        cdef rb_node *node = rb_first(&self.root)
        while node != NULL:
            count += 1
            node = rb_next(node)
        with nogil:
            for _i in range(n):
                key = xorshift(&state) % self.capacity
                if self.insert_key(c, key):
                    count += 1
                else:
                    self.erase_key(c, key)
                    count -= 1
            WRITE_ONCE(c, &self.stop, 1)
        return count

    def descend(self, u32 cpu, unsigned long limit, u64 seed, unsigned max_steps):
        """Lockless descents to random keys until churn() ends, or `limit`.

        Returns (descents, descents of more than max_steps: a loop, keys found).
        """
        cdef Cpu *c = cpuset_cpu(self.cpus, cpu)
        cdef unsigned long i = 0, key, loops = 0, found = 0
        cdef unsigned steps
        cdef u64 state = seed | 1
        cdef rb_node *node
        with nogil:
            while i < limit and not READ_ONCE(c, &self.stop):
                key = xorshift(&state) % self.capacity
                node = <rb_node *>READ_ONCE_PTR(c, &self.root.rb_node)
                steps = 0
                while node != NULL:
                    steps += 1
                    if steps > max_steps:
                        loops += 1
                        break
                    if key == (<item *>node).key:
                        found += 1
                        break
                    if key < (<item *>node).key:
                        node = <rb_node *>READ_ONCE_PTR(c, &node.rb_left)
                    else:
                        node = <rb_node *>READ_ONCE_PTR(c, &node.rb_right)
                i += 1
        return i, loops, found
