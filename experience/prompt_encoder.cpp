#include "experience/dataset.hpp"
#include "model/tokenizer/chat_template.hpp"
#include "model/tokenizer/tokenizer.hpp"

namespace troupe {

prompt_encoder make_prompt_encoder(const tokenizer& tok, const chat_template* chat) {
  prompt_encoder encoder;
  encoder.encode = [&tok](std::string_view text, bool add_special_tokens) { return tok.encode(text, add_special_tokens); };
  if (chat)
    encoder.render = [chat](const nlohmann::ordered_json& messages) { return chat->render(messages, true); };
  return encoder;
}

std::vector<prompt_row> load_prompts(const std::vector<std::string>& files, const data_section& data, const tokenizer& tok,
                                     const chat_template* chat, const reward_function* reward) {
  return load_prompts(files, data, make_prompt_encoder(tok, chat), reward);
}

} // namespace troupe
