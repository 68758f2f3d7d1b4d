/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Mutation tests (no kernel file): code that a test build of a module can take away. A primitive marks a re-check as
 * KMM_KEEP(n, condition): nothing but the condition in the module itself, false in its *_mutants module while that
 * one's mutant is n. Included by kernel/rwsem.pyx and kernel/srcu.pyx.
 */
#ifndef KMM_MUTANT_H
#define KMM_MUTANT_H

#ifdef KMM_MUTANTS
static int kmm_mutant; /* the GIL; set while no vCPU runs */
#define KMM_KEEP(n, condition) (kmm_mutant != (n) && (condition))
#else
#define KMM_KEEP(n, condition) (condition)
#endif

#endif
