#include "model/parallel/rank_files.hpp"
#include "core/error.hpp"
#include "model/parallel/whole_tensors.hpp"
#include "model/weights/safetensors.hpp"
#include <vector>

namespace troupe {

void save_rank_weights(causal_lm& model, const rank_context& ranks, const std::filesystem::path& dir, dtype type) {
  const whole_tensors all(model, ranks);
  std::vector<float> whole;
  const auto gather = [&](std::size_t i) {
    all.gather(
        i,
        [](const parameter& p, std::size_t) -> std::span<const float> {
          if (p.master.size() != p.numel())
            throw error{errc::bad_shape,
                        "save: tensor " + p.name + " has no master; load the model for training, with it among what is trained"};
          return p.master;
        },
        whole);
  };
  if (!ranks.first_stage() || ranks.tp_rank != 0) {
    for (std::size_t i = 0; i < all.size(); ++i)
      gather(i);
    return;
  }
  std::vector<tensor_to_make> tensors;
  for (std::size_t i = 0; i < all.size(); ++i)
    tensors.push_back({all.spec(i).name, type, all.spec(i).shape, [&, i](std::span<std::byte> to) {
                         gather(i);
                         convert_elements(dtype::f32, reinterpret_cast<const std::byte*>(whole.data()), type, to.data(), whole.size());
                       }});
  write_safetensors(dir, tensors);
}

} // namespace troupe
