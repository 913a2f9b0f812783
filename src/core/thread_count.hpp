// The number of threads that a step may use.
#pragma once

namespace onepass {

// Returns at least 1. The initial value is ONEPASS_NUM_THREADS or OMP_NUM_THREADS if set; otherwise 1 if NumPy's BLAS
// keeps the processors busy between steps (see spinning_blas()), else the number of processors of this process.
int get_num_threads() noexcept;
void set_num_threads(int count) noexcept;
void reset_num_threads() noexcept;  // to the initial value

// The number that the user set for onepass itself, by ONEPASS_NUM_THREADS or set_num_threads(); 0: none.
int requested_threads() noexcept;

// The processors that this process may use, by its affinity and its container's quota. At least 1.
int processor_count() noexcept;

}  // namespace onepass
