// Forks of this process.
#pragma once

namespace onepass {

// The number of times that this process became a forked child, counted from the first call: threads and locks from
// before a fork belong to the parent.
unsigned fork_count() noexcept;

// False if the system refused to report forks, so that they go unnoticed.
bool forks_are_counted() noexcept;

}  // namespace onepass
