/* SPDX-License-Identifier: GPL-2.0-only */
/* include/linux/rbtree_types.h: the node and the root. */
#ifndef KMM_RBTREE_TYPES_H
#define KMM_RBTREE_TYPES_H

/* rb_left/rb_right: writers publish with WRITE_ONCE, lockless descents read with READ_ONCE. */
struct rb_node {
	unsigned long __rb_parent_color; /* own address = RB_CLEAR_NODE */
	struct rb_node *rb_right;
	struct rb_node *rb_left;
} __attribute__((aligned(sizeof(long))));

struct rb_root { struct rb_node *rb_node; };

#endif
