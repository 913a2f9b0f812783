#include "gomp_stub.hpp"

#include <atomic>
#include <thread>
#include <vector>

namespace {

std::atomic<stub::Team> team{stub::Team::as_asked};
std::atomic<int> max_threads{2};
std::atomic<int> count{0};
std::atomic<unsigned> last_requested{0};
thread_local int number = 0;
thread_local bool inside = false;

void enter(void (*function)(void*), void* data, int as) {
  number = as;
  inside = true;
  function(data);
  inside = false;
  number = 0;
}

}  // namespace

void stub::set_team(Team new_team, int new_max_threads) {
  team = new_team;
  max_threads = new_max_threads;
}

int stub::regions() { return count; }
unsigned stub::requested() { return last_requested; }

extern "C" {

int omp_get_max_threads() { return max_threads; }
int omp_get_thread_num() { return number; }
int omp_in_parallel() { return inside ? 1 : 0; }

void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned) {
  using stub::Team;
  ++count;
  last_requested = threads;
  const Team kind = team;
  int size = static_cast<int>(threads);
  if (kind == Team::smaller) --size;
  if (kind == Team::larger) size += 3;
  if (kind == Team::alone) size = 1;
  if (kind == Team::serial || kind == Team::reversed) {
    for (int i = 0; i < size; ++i) enter(function, data, kind == Team::serial ? i : size - 1 - i);
    return;
  }
  if (kind == Team::late) enter(function, data, 0);
  std::vector<std::thread> others;
  for (int i = 1; i < size; ++i) others.emplace_back([=] { enter(function, data, i); });
  if (kind != Team::late) enter(function, data, 0);
  for (std::thread& other : others) other.join();
}
}
