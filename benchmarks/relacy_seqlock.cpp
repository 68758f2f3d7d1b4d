// SPDX-License-Identifier: GPL-2.0-only
// The two-thread seqlock of bench_check.py for Relacy: the same accesses, a million random schedules.
#include "relacy/relacy.hpp"
struct seqlock_test : rl::test_suite<seqlock_test, 2>
{
    rl::atomic<unsigned> seq, a, b;
    void before() { seq($) = 0; a($) = 0; b($) = 0; }
    void thread(unsigned index)
    {
        if (index == 0) {
            seq($).store(1, rl::mo_relaxed);
            rl::atomic_thread_fence(rl::mo_release, $);
            a($).store(1, rl::mo_relaxed);
            b($).store(1, rl::mo_relaxed);
            rl::atomic_thread_fence(rl::mo_release, $);
            seq($).store(2, rl::mo_relaxed);
        } else {
            unsigned s0 = seq($).load(rl::mo_relaxed);
            rl::atomic_thread_fence(rl::mo_acquire, $);
            unsigned x = a($).load(rl::mo_relaxed), y = b($).load(rl::mo_relaxed);
            rl::atomic_thread_fence(rl::mo_acquire, $);
            unsigned s1 = seq($).load(rl::mo_relaxed);
            RL_ASSERT(s0 & 1 || s0 != s1 || x == y);
        }
    }
};
int main(int argc, char **argv)
{
    rl::test_params p;
    p.iteration_count = 1000000;
    p.search_type = rl::random_scheduler_type;
    return rl::simulate<seqlock_test>(p) ? 0 : 1;
}
