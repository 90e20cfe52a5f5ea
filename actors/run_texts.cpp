#include "actors/run_texts.hpp"
#include "core/binary.hpp"
#include "model/tokenizer/sentencepiece.hpp"
#include <algorithm>
#include <chrono>
#include <optional>

namespace troupe {
namespace {

constexpr std::size_t part_bytes = 32 << 10; // a control message is under 64 KiB
constexpr auto part_deadline = std::chrono::seconds(30);

} // namespace

std::string pack_texts(const std::filesystem::path& model, std::time_t now) {
  byte_writer out;
  out.put_string(tokenizer_json(model));
  const auto chat = chat_template::read(model);
  out.put(std::uint8_t(chat ? 1 : 0));
  out.put_string(chat ? chat->source : "");
  out.put_string(chat ? chat->special_tokens.dump() : "{}");
  out.put(std::int64_t(now));
  return out.take();
}

run_texts unpack_texts(const std::string& bytes) {
  byte_reader in(bytes, "the run's tokenizer");
  run_texts out;
  out.tok = tokenizer::parse(in.get_string(), "the run's tokenizer.json");
  const bool has_chat = in.get<std::uint8_t>() != 0;
  const std::string source = in.get_string();
  auto special = nlohmann::ordered_json::parse(in.get_string(), nullptr, false);
  const auto now = in.get<std::int64_t>();
  in.finish();
  if (!special.is_object())
    in.fail("the special tokens are no JSON object");
  if (has_chat)
    out.chat = chat_template::parse(source, std::move(special), "the run's chat template", std::time_t(now));
  return out;
}

texts_part part_of(const std::string& bytes, std::uint64_t from) {
  const auto begin = std::min<std::uint64_t>(from, bytes.size());
  return {bytes.size(), bytes.substr(begin, part_bytes)};
}

run_texts bring_texts(caf::scoped_actor& self, const coordinator_actor& coordinator) {
  std::string bytes;
  for (bool all = false; !all;) {
    std::optional<error> refused;
    self->request(coordinator, part_deadline, fetch_texts{bytes.size()})
        .receive(
            [&](const texts_part& part) {
              bytes += part.bytes;
              all = part.bytes.empty() || bytes.size() >= part.total;
            },
            [&](const caf::error& e) { refused = to_exception(e, "the run's tokenizer"); });
    if (refused)
      throw *refused;
  }
  return unpack_texts(bytes);
}

} // namespace troupe
