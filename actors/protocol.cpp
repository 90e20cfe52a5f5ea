#include "actors/protocol.hpp"
#include <type_traits>

namespace troupe {
namespace {

/// Walks a message's `inspect` and writes down the names and types it meets.
class describing_inspector {
public:
  using result_type = void;
  template <class... Ts>
  void operator()(Ts&&... xs) {
    (visit(xs), ...);
  }
  const std::string& text() const { return text_; }

private:
  template <class X>
  void visit(X&& x) {
    using T = std::remove_cvref_t<X>;
    if constexpr (std::is_same_v<T, caf::meta::type_name_t>) {
      text_ += std::string(x.value) + '(';
    } else if constexpr (std::is_same_v<T, std::string>) {
      text_ += "string,";
    } else if constexpr (std::is_enum_v<T>) {
      text_ += "enum,";
    } else if constexpr (std::is_arithmetic_v<T>) {
      text_ += std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 'i' : 'u';
      text_ += std::to_string(sizeof(T)) + ',';
    } else {
      compound(x);
    }
  }
  template <class T>
  void compound(const std::vector<T>&) {
    text_ += "list of ";
    visit(T{});
  }
  template <class A, class B>
  void compound(const std::pair<A, B>& p) {
    visit(p.first);
    visit(p.second);
  }
  template <class T>
  requires(std::is_class_v<T>) void compound(const T& x) {
    T copy = x;
    inspect(*this, copy);
    text_ += ')';
  }

  std::string text_;
};

template <class... Messages>
std::string describe_all() {
  describing_inspector f;
  (f(Messages{}), ...);
  return f.text();
}

std::string protocol_text() {
  return build_name() + ' ' +
         describe_all<join_request, join_answer, worker_info, rank_peers, fetch_texts, texts_part, generate_group, group_scored, ship_batch,
                      batch_shipped, restore_learner, learner_restored, train_step, step_trained, save_checkpoint, checkpoint_saved,
                      publish_weights, weights_published, fetch_weights, weights_fetched, sync_weights, rollout_holds, rollout_failed,
                      worker_failed, worker_exited, stop_run, rollout_status>();
}

} // namespace

std::uint64_t protocol_hash() {
  std::uint64_t hash = 0xcbf29ce484222325u; // FNV-1a
  for (const unsigned char c : protocol_text())
    hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

std::string build_name() { return "0.1.0"; }
std::string numerics_name(bool gpu) { return gpu ? "cuda-1" : "cpu-1"; }

caf::error to_caf(const error& e) { return caf::make_error(e.code(), std::string(e.what())); }

error to_exception(const caf::error& e, const std::string& whom) {
  if (e.category() == caf::atom("troupe")) {
    const auto& context = e.context();
    std::string text = context.match_elements<std::string>() ? context.get_as<std::string>(0) : "failed";
    return {errc(e.code()), whom.empty() ? text : whom + ": " + text};
  }
  const std::string prefix = whom.empty() ? "" : whom + ": ";
  if (e == caf::sec::request_timeout)
    return {errc::timeout, prefix + "no answer within its deadline"};
  if (e == caf::sec::request_receiver_down || e.category() == caf::atom("exit"))
    return {errc::peer_lost, prefix + "ended before it answered"};
  return {errc::failed, prefix + "failed (" + caf::to_string(e) + ")"};
}

} // namespace troupe
