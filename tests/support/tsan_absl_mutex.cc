// absl::Mutex and absl::CondVar over pthreads, for ThreadSanitizer builds.
//
// ThreadSanitizer follows the locks that it sees. The packaged abseil was compiled without it, so
// that everything which absl::Mutex protects would be reported as a race. These definitions take
// the place of the shared library's when a test program is linked; ThreadSanitizer knows pthreads.
// Readers are exclusive here: that hides no race that a reader lock allows.
#include <pthread.h>

#include <atomic>
#include <cerrno>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace absl {
ABSL_NAMESPACE_BEGIN
namespace {

struct MutexState {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t released = PTHREAD_COND_INITIALIZER;  // a condition may have become true
  int waiters = 0;                                     // on `released`; guarded by mutex
};

struct CondVarState {
  pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
};

// Both classes hold one pointer-sized word that starts at zero; it becomes the state's address.
template <typename State>
State* StateOf(void* object) {
  auto* word = static_cast<std::atomic<State*>*>(object);
  State* state = word->load(std::memory_order_acquire);
  if (state != nullptr) return state;
  auto* fresh = new State;
  if (word->compare_exchange_strong(state, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;
  return state;
}

template <typename State>
void Forget(void* object) {
  delete static_cast<std::atomic<State*>*>(object)->exchange(nullptr, std::memory_order_acq_rel);
}

static_assert(sizeof(Mutex) == sizeof(void*) && sizeof(CondVar) == sizeof(void*));

MutexState* Of(const Mutex* mutex) { return StateOf<MutexState>(const_cast<Mutex*>(mutex)); }

void Release(MutexState* state) {
  if (state->waiters > 0) pthread_cond_broadcast(&state->released);
}

// False when the deadline passed.
bool WaitOn(pthread_cond_t* condition, MutexState* state, Time deadline) {
  if (deadline == InfiniteFuture()) {
    pthread_cond_wait(condition, &state->mutex);
    return true;
  }
  const timespec until = ToTimespec(deadline);
  return pthread_cond_timedwait(condition, &state->mutex, &until) != ETIMEDOUT;
}

// Whether the condition holds when it returns.
bool AwaitUntil(const Mutex* mutex, const Condition& condition, Time deadline) {
  MutexState* state = Of(mutex);
  while (!condition.Eval()) {
    Release(state);
    ++state->waiters;
    const bool in_time = WaitOn(&state->released, state, deadline);
    --state->waiters;
    if (!in_time) return condition.Eval();
  }
  return true;
}

Time After(Duration timeout) {
  return timeout == InfiniteDuration() ? InfiniteFuture() : Now() + timeout;
}

}  // namespace

Mutex::~Mutex() { Forget<MutexState>(this); }
void Mutex::Lock() { pthread_mutex_lock(&Of(this)->mutex); }
void Mutex::Unlock() {
  MutexState* state = Of(this);
  Release(state);
  pthread_mutex_unlock(&state->mutex);
}
bool Mutex::TryLock() { return pthread_mutex_trylock(&Of(this)->mutex) == 0; }
void Mutex::ReaderLock() { Lock(); }
void Mutex::ReaderUnlock() { Unlock(); }
bool Mutex::ReaderTryLock() { return TryLock(); }
void Mutex::AssertHeld() const {}
void Mutex::AssertReaderHeld() const {}
void Mutex::ForgetDeadlockInfo() {}

void Mutex::Await(const Condition& condition) { AwaitUntil(this, condition, InfiniteFuture()); }
bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  return AwaitUntil(this, condition, After(timeout));
}
bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  return AwaitUntil(this, condition, deadline);
}
void Mutex::LockWhen(const Condition& condition) {
  Lock();
  Await(condition);
}
bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  Lock();
  return AwaitWithTimeout(condition, timeout);
}
bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  Lock();
  return AwaitWithDeadline(condition, deadline);
}
void Mutex::ReaderLockWhen(const Condition& condition) { LockWhen(condition); }
bool Mutex::ReaderLockWhenWithTimeout(const Condition& condition, Duration timeout) {
  return LockWhenWithTimeout(condition, timeout);
}
bool Mutex::ReaderLockWhenWithDeadline(const Condition& condition, Time deadline) {
  return LockWhenWithDeadline(condition, deadline);
}

CondVar::~CondVar() { Forget<CondVarState>(this); }
void CondVar::Wait(Mutex* mutex) { WaitWithDeadline(mutex, InfiniteFuture()); }
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  return WaitWithDeadline(mutex, After(timeout));
}
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  Release(Of(mutex));
  return !WaitOn(&StateOf<CondVarState>(this)->condition, Of(mutex), deadline);
}
void CondVar::Signal() { pthread_cond_signal(&StateOf<CondVarState>(this)->condition); }
void CondVar::SignalAll() { pthread_cond_broadcast(&StateOf<CondVarState>(this)->condition); }

ABSL_NAMESPACE_END
}  // namespace absl
