#include "model/tokenizer/tokenizer.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "model/tokenizer/added_tokens.hpp"
#include "model/tokenizer/bpe.hpp"
#include "model/tokenizer/limits.hpp"
#include "model/tokenizer/part_json.hpp"
#include "model/tokenizer/parts.hpp"
#include "model/tokenizer/sentencepiece.hpp"
#include "model/tokenizer/utf8.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace troupe {
namespace {

const nlohmann::json absent;

const nlohmann::json& section(const nlohmann::json& root, const char* key) {
  const auto it = root.find(key);
  return it == root.end() ? absent : *it;
}

const nlohmann::json& read_model(const nlohmann::json& root, const std::string& name) {
  const auto& model = section(root, "model");
  if (!model.is_object())
    throw error(errc::bad_input, name + ": model must be an object");
  // Files of old have no type; only BPE has merges.
  const auto type = model.contains("type")     ? part_json::type_of(model, name + ": model")
                    : model.contains("merges") ? "BPE"
                                               : "without a type";
  if (type != "BPE")
    throw error(errc::unsupported, name + ": model " + type + " is not supported; BPE is");
  return model;
}

// Where the decoders' text ends up.
class text_sink final : public token_sink {
public:
  void put(std::string_view part, bool /*begins*/, bool /*ends*/) override { text += part; }
  void finish() override {}
  std::string text;
};

// What stands for a decoder where there is none.
class spaced_sink final : public token_sink {
public:
  explicit spaced_sink(token_sink& next) : next_(next) {}
  void put(std::string_view part, bool begins, bool ends) override {
    if (begins && std::exchange(later_, true))
      next_.put(" ", true, false);
    next_.put(part, begins, ends);
  }
  void finish() override { next_.finish(); }

private:
  token_sink& next_;
  bool later_ = false;
};

} // namespace

struct tokenizer::impl {
  impl(const nlohmann::json& root, const std::string& name)
      : model(read_model(root, name), name), normal(read_normalizer(section(root, "normalizer"), name + ": normalizer")),
        pre(read_pre_tokenizer(section(root, "pre_tokenizer"), name + ": pre_tokenizer")),
        post(read_post_processor(section(root, "post_processor"), name + ": post_processor")),
        decode(read_decoder(section(root, "decoder"), name + ": decoder")),
        added(section(root, "added_tokens"), model, normal.get(), name) {
    std::vector<std::int32_t> written = post ? post->apply({}) : std::vector<std::int32_t>();
    for (const auto id : written)
      if (token_of(id) == nullptr)
        throw error(errc::bad_input, name + ": post_processor writes id " + std::to_string(id) + ", which no token has");
    if (pre && pre->needs_start() && normal && !normal->keeps_start())
      throw error(errc::unsupported, name + ": pre_tokenizer Metaspace with prepend_scheme first behind this normalizer is not supported");
    limits = length_limits(section(root, "truncation"), section(root, "padding"), written.size(), name);
  }

  const std::string* token_of(std::int64_t id) const {
    const added_token* token = added.find(id);
    return token != nullptr ? &token->content : model.id_to_token(id);
  }

  void encode_text(piece text, std::vector<std::int32_t>& ids) const {
    piece_list list;
    list.pieces = {text};
    if (pre)
      pre->split(list);
    for (const auto& one : list.pieces)
      model.encode(one.text, ids);
  }

  std::vector<std::int32_t> encode(std::string_view text) const {
    std::vector<std::int32_t> ids;
    for (const auto& raw : added.split_raw(text)) {
      if (raw.id >= 0) {
        ids.push_back(raw.id);
        continue;
      }
      const bool first = raw.text.data() == text.data();
      const std::string normalized = normal ? normal->apply(std::string(raw.text)) : std::string();
      const std::string_view whole = normal ? std::string_view(normalized) : raw.text;
      for (const auto& part : added.split_normalized(whole))
        if (part.id >= 0)
          ids.push_back(part.id);
        else
          encode_text({part.text, first && part.text.data() == whole.data()}, ids);
    }
    return ids;
  }

  std::unique_ptr<token_sink> begin_decoding(token_sink& next) const {
    if (decode)
      return decode->begin(next);
    return std::make_unique<spaced_sink>(next);
  }

  void decode_into(token_sink& sink, std::int64_t id, bool skip_special) const {
    if (const std::string* token = token_of(id); token != nullptr && !(skip_special && added.is_special(*token)))
      sink.put(*token, true, true);
  }

  bpe model;
  std::unique_ptr<normalizer> normal;
  std::unique_ptr<pre_tokenizer> pre;
  std::unique_ptr<post_processor> post;
  std::unique_ptr<decoder> decode;
  added_tokens added;
  length_limits limits;
};

tokenizer::tokenizer() = default;
tokenizer::~tokenizer() = default;

std::shared_ptr<const tokenizer> tokenizer::load(const std::filesystem::path& dir) {
  const bool model = !is_there(dir / "tokenizer.json") && is_there(dir / "tokenizer.model");
  return parse(tokenizer_json(dir), (dir / (model ? "tokenizer.model" : "tokenizer.json")).string());
}

std::shared_ptr<const tokenizer> tokenizer::parse(std::string_view json_text, const std::string& name) {
  std::shared_ptr<tokenizer> made(new tokenizer);
  made->impl_ = std::make_unique<impl>(part_json::parse_object(json_text, name), name);
  return made;
}

std::vector<std::int32_t> tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (const auto bad = utf8::find_invalid(text); bad != std::string_view::npos)
    throw error(errc::bad_input, "text to encode: byte " + std::to_string(bad) + " is not UTF-8");
  auto ids = impl_->encode(text);
  const bool wrap = add_special_tokens && impl_->post;
  impl_->limits.truncate(ids, wrap);
  if (wrap)
    ids = impl_->post->apply(std::move(ids));
  impl_->limits.pad(ids);
  return ids;
}

std::string tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  text_sink out;
  const auto sink = impl_->begin_decoding(out);
  for (const auto id : ids)
    impl_->decode_into(*sink, id, skip_special_tokens);
  sink->finish();
  return std::move(out.text);
}

std::int64_t tokenizer::vocab_size() const { return std::max(impl_->model.id_limit(), impl_->added.id_limit()); }

std::optional<std::int32_t> tokenizer::token_to_id(std::string_view token) const {
  const auto it = impl_->added.ids().find(token);
  return it != impl_->added.ids().end() ? std::optional(it->second) : impl_->model.token_to_id(token);
}

std::string tokenizer::id_to_token(std::int32_t id) const {
  const std::string* token = impl_->token_of(id);
  return token != nullptr ? *token : std::string();
}

bool tokenizer::is_special(std::int32_t id) const {
  const std::string* token = impl_->token_of(id);
  return token != nullptr && impl_->added.is_special(*token);
}

struct incremental_decoder::state {
  explicit state(std::shared_ptr<const tokenizer> t) : tok(std::move(t)), sink(tok->impl_->begin_decoding(out)) {}
  std::shared_ptr<const tokenizer> tok;
  text_sink out;
  std::unique_ptr<token_sink> sink;
};

incremental_decoder::incremental_decoder(std::shared_ptr<const tokenizer> tok, bool skip_special_tokens)
    : state_(std::make_unique<state>(std::move(tok))), skip_(skip_special_tokens) {}
incremental_decoder::~incremental_decoder() = default;

std::string incremental_decoder::add(std::int32_t id) {
  state_->tok->impl_->decode_into(*state_->sink, id, skip_);
  return std::exchange(state_->out.text, {});
}

std::string incremental_decoder::finish() {
  state_->sink->finish();
  return std::exchange(state_->out.text, {});
}

} // namespace troupe
