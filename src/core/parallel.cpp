#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif

#include "core/float_mode.hpp"

namespace onepass {
namespace {

// Below this many bytes a thread, waking it costs more than it saves: two broke even at 5.6 MB in all (2-core EPYC).
constexpr std::size_t worth_a_thread = std::size_t{1} << 22;

// A number of threads from the environment; 0: none that makes sense.
int from_environment(const char* name) noexcept {
  const char* const text = std::getenv(name);
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  errno = 0;
  const long number = std::strtol(text, &end, 10);  // OMP_NUM_THREADS may be a list: its first number counts
  if (end == text || errno != 0 || number < 1 || number > 4096 || (*end != '\0' && *end != ',')) return 0;
  return static_cast<int>(number);
}

// What a container may use of the processors, by the file's "quota period" in microseconds; 0: all, which it calls
// "max".
int allowed_by_cgroup() noexcept {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0;
  double period = 0;
  if (!(file >> quota >> period) || !(period > 0)) return 0;
  return std::max(1, static_cast<int>(quota / period));
}

int processors() noexcept {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t mine;
  if (sched_getaffinity(0, sizeof mine, &mine) == 0) count = CPU_COUNT(&mine);
#endif
  if (const int allowed = allowed_by_cgroup(); allowed != 0) count = std::min(count, allowed);
  return std::max(1, count);
}

int first_thread_count() noexcept {
  for (const char* const name : {"ONEPASS_NUM_THREADS", "OMP_NUM_THREADS"}) {
    if (const int count = from_environment(name); count != 0) return count;
  }
  return processors();
}

std::atomic<int>& thread_count() noexcept {
  static std::atomic<int> count{first_thread_count()};
  return count;
}

// Threads that wait for work. One caller at a time has them; another does its work alone.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() = delete;  // its threads end with the process

  // Calls work(context, part) for parts 0 to count - 1: 0 on this thread, each other on one of its own. Returns false,
  // and has done nothing, when the pool is busy.
  bool run(void (*work)(const void*, std::size_t), const void* context, std::size_t count) noexcept {
    const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn) return false;
    const std::size_t helpers = grow(count - 1);
    {
      const std::scoped_lock lock(mutex_);
      work_ = work;
      context_ = context;
      next_ = 1;
      count_ = count;
      left_ = count - 1;
    }
    if (helpers == 1) {
      wake_.notify_one();
    } else if (helpers != 0) {
      wake_.notify_all();
    }
    work(context, 0);
    // Whatever no thread has begun is done here, so that slow starters are not waited for.
    std::unique_lock<std::mutex> lock(mutex_);
    while (next_ < count_) begin_next(lock);
    done_.wait(lock, [this] { return left_ == 0; });
    return true;
  }

 private:
  // Has that many threads, or as many as the system gives.
  std::size_t grow(std::size_t wanted) noexcept {
    try {
      threads_.reserve(wanted);
      while (threads_.size() < wanted) threads_.emplace_back([this] { wait_for_work(); });
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): no more threads, no more memory: fewer will do
    }
    return std::min(wanted, threads_.size());
  }

  void wait_for_work() noexcept {
#if defined(__unix__) || defined(__APPLE__)
    sigset_t all;  // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
#endif
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return next_ < count_; });
      begin_next(lock);
    }
  }

  // Does the next part, without the lock.
  void begin_next(std::unique_lock<std::mutex>& lock) noexcept {
    const std::size_t part = next_++;
    lock.unlock();
    work_(context_, part);
    lock.lock();
    if (--left_ == 0) done_.notify_one();
  }

  std::mutex turn_;  // held by the caller whose work this is
  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable done_;
  void (*work_)(const void*, std::size_t) = nullptr;
  const void* context_ = nullptr;
  std::size_t next_ = 0;   // the first part that nobody has begun
  std::size_t count_ = 0;  // of parts
  std::size_t left_ = 0;   // parts 1 and up that are not done
};

// The pool of this process, which stays: until the very end, somebody may step. A forked child has none of its parent's
// threads and begins with a pool of its own; the parent's is left alone, since a lock in it may be held for ever.
std::atomic<Pool*> current{nullptr};
std::atomic<unsigned> fork_count{0};

// Whether forks are noticed.
bool watch_forks() noexcept {
#if defined(__unix__) || defined(__APPLE__)
  static const int failed = pthread_atfork(nullptr, nullptr, [] {
    current.store(nullptr);
    ++fork_count;
  });
  return failed == 0;
#else
  return true;  // there are none
#endif
}

Pool* pool() noexcept {
  Pool* found = current.load(std::memory_order_acquire);
  if (found != nullptr) return found;
  if (!watch_forks()) return nullptr;
  try {
    static std::mutex making;
    const std::unique_lock<std::mutex> lock(making,
                                            std::try_to_lock);  // not to wait for a thread that a fork left behind
    if (!lock) return nullptr;
    found = current.load(std::memory_order_acquire);
    if (found == nullptr) {
      found = new Pool;  // NOLINT(cppcoreguidelines-owning-memory)
      current.store(found, std::memory_order_release);
    }
    return found;
  } catch (const std::exception&) {
    return nullptr;  // no memory: no pool
  }
}

struct Region {
  Part part;
  const void* context;
  std::size_t count;
  std::size_t parts;
};

}  // namespace

int get_num_threads() noexcept { return thread_count().load(std::memory_order_relaxed); }

void set_num_threads(int count) noexcept { thread_count().store(std::max(1, count), std::memory_order_relaxed); }

unsigned forks() noexcept {
  watch_forks();
  return fork_count.load(std::memory_order_relaxed);
}

void run_parts(Part part, const void* context, std::size_t count, std::size_t bytes) noexcept {
  const std::size_t parts = std::min({static_cast<std::size_t>(get_num_threads()), count, bytes / worth_a_thread});
  const Region region{part, context, count, parts};
  const auto work = [](const void* what, std::size_t index) {
    const auto& x = *static_cast<const Region*>(what);
    // In two factors, so that the product cannot overflow.
    const auto border = [&x](std::size_t i) { return x.count / x.parts * i + x.count % x.parts * i / x.parts; };
    x.part(x.context, border(index), border(index + 1));
  };
  if (parts > 1) {
    Pool* const threads = pool();
    if (threads != nullptr && threads->run(work, &region, parts)) return;
  }
  part(context, 0, count);
}

namespace {

// What sweeps are cut into: elements to a cache line of float32, which are two lines of float64.
constexpr std::size_t grain = 16;

struct Sweeps {
  const Sweep* first;
  std::size_t count;
  bool flush_denormals;
};

std::size_t grains(const Sweep& sweep) noexcept { return (sweep.size + grain - 1) / grain; }

}  // namespace

void run(const Sweep* sweeps, std::size_t count, bool flush_denormals) noexcept {
  std::size_t total = 0;
  for (const Sweep* sweep = sweeps; sweep != sweeps + count; ++sweep) total += grains(*sweep);
  const Sweeps all{sweeps, count, flush_denormals};
  // Does those of all grains, counted through the list, that lie in [begin, end).
  const auto part = [](const void* context, std::size_t begin, std::size_t end) {
    const auto& x = *static_cast<const Sweeps*>(context);
    const FloatMode mode(x.flush_denormals);
    std::size_t before = 0;
    for (const Sweep* sweep = x.first; sweep != x.first + x.count && before < end; ++sweep) {
      const std::size_t own = grains(*sweep);
      if (before + own > begin) {
        const std::size_t from = std::max(begin, before) - before;
        const std::size_t to = std::min(end, before + own) - before;
        sweep->function(*sweep->numbers, sweep->operands, from * grain, std::min(sweep->size, to * grain));
      }
      before += own;
    }
  };
  constexpr std::size_t bytes_a_grain = grain * 7 * sizeof(float);  // Adam's streams
  run_parts(part, &all, total, total * bytes_a_grain);
}

}  // namespace onepass
