#pragma once
#include "actors/protocol.hpp"
#include <exception>
#include <type_traits>

namespace troupe {

/// The exception in flight as the one line that it stands for.
inline error current_error(const std::exception_ptr& p) {
  try {
    std::rethrow_exception(p);
  } catch (const error& e) {
    return e;
  } catch (const std::exception& e) {
    return {errc::failed, e.what()};
  }
}

/// The result of `f` as an answer, or its exception as an error: the one who asked decides what follows.
template <class F>
caf::result<std::invoke_result_t<F>> answered(F&& f) {
  try {
    return f();
  } catch (const std::exception&) {
    return to_caf(current_error(std::current_exception()));
  }
}

/// An actor that ends on an exception and tells the coordinator why.
template <class Self>
void report_failures(Self* self, const worker_info& info, const coordinator_actor& coordinator) {
  self->set_exception_handler([self, info, coordinator](std::exception_ptr& p) -> caf::error {
    const error e = current_error(p);
    self->send(coordinator, worker_failed{info.role, info.rank, info.host, e.what(), std::uint8_t(e.code())});
    return to_caf(e);
  });
}

} // namespace troupe
