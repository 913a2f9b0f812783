// A BLAS library whose threads keep the processors busy after a matrix product.
#pragma once

namespace onepass {

// The path of NumPy's OpenBLAS (NumPy's wheels bring one) if its threads spin for milliseconds after each product; else
// null. NumPy must have been imported. Threads of ours would share processors with those threads: the step gains, but
// the next product waits for a thread that was pushed aside, and the whole iteration of a training loop is no faster or
// slower. The environment variable OPENBLAS_THREAD_TIMEOUT=16, set before OpenBLAS is loaded, makes its threads sleep
// almost immediately.
const char* spinning_blas() noexcept;

}  // namespace onepass
