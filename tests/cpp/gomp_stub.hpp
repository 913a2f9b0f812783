// Stub of an OpenMP runtime, whose teams differ from the requested ones.
#pragma once

namespace stub {

enum class Team {
  as_asked,
  smaller,   // one member fewer
  larger,    // three members more
  serial,    // all members one after the other, in the calling thread
  reversed,  // serial, the last number first
  alone,     // the calling thread only, as under OMP_THREAD_LIMIT=1
  late,      // the calling thread first; the others begin when it is done
};
constexpr Team teams[] = {Team::as_asked, Team::smaller, Team::larger, Team::serial,
                          Team::reversed, Team::alone,   Team::late};

void set_team(Team team, int max_threads);
int regions();         // begun so far
unsigned requested();  // members that the last region requested

}  // namespace stub

extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
