// The number of threads that a step may use.
#pragma once

namespace onepass {

// At first the number that ONEPASS_NUM_THREADS or OMP_NUM_THREADS asks for; else 1 where NumPy's BLAS keeps the
// processors busy between steps (see spinning_blas()), else the number of processors of this process. At least 1.
int get_num_threads() noexcept;
void set_num_threads(int count) noexcept;
void reset_num_threads() noexcept;  // to the number at first

// The number that the user set for onepass itself, by ONEPASS_NUM_THREADS or set_num_threads(); 0: none.
int requested_threads() noexcept;

// The processors that this process may use, by its affinity and its container's quota. At least 1.
int processor_count() noexcept;

}  // namespace onepass
