// Forks of this process.
#pragma once

namespace onepass {

// The number of times that this process became a forked child, counted from the first call: threads and locks from
// before a fork belong to the parent.
unsigned fork_count() noexcept;

// False where forks go unnoticed, because the system refused to report them.
bool forks_are_counted() noexcept;

}  // namespace onepass
