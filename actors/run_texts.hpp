#pragma once
#include "actors/protocol.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"
#include <ctime>
#include <filesystem>
#include <memory>
#include <string>

namespace troupe {

/// What a worker needs of the model's directory to read and write text.
struct run_texts {
  std::shared_ptr<const tokenizer> tok;
  std::shared_ptr<const chat_template> chat; // null: the model has none
};

/// The model's tokenizer and template for the wire. now: the time that the template prints. Errors are the readers'.
std::string pack_texts(const std::filesystem::path& model, std::time_t now);
/// Throws errc::bad_input for what pack_texts did not write.
run_texts unpack_texts(const std::string& bytes);

/// Bytes [from, from + 32 KiB) of it.
texts_part part_of(const std::string& bytes, std::uint64_t from);
/// Asks the coordinator for all parts, one after the other. Throws its error.
run_texts bring_texts(caf::scoped_actor& self, const coordinator_actor& coordinator);

} // namespace troupe
