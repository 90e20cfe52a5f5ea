#include "core/error.hpp"
#include "core/files.hpp"
#include "model/parallel/stages.hpp"
#include "model/weights/convert.hpp"
#include "model/weights/export.hpp"
#include "model/weights/json.hpp"
#include "model/weights/tensor_check.hpp"
#include <cstring>
#include <memory>
#include <set>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr const char* layout_name = "layout.json";

std::string rank_name(std::int64_t p, std::int64_t t) { return "rank-pp" + std::to_string(p) + "-tp" + std::to_string(t); }

// The tensors of each pipeline stage; a tied head on another stage than the embedding has a copy of the table.
std::vector<std::vector<tensor_spec>> stages_of(const model_config& cfg, std::int64_t pp) {
  const auto blocks = layout_of(cfg);
  const auto cuts = stage_cuts(blocks, int(pp));
  std::vector<std::vector<tensor_spec>> stages;
  for (std::size_t p = 0; p + 1 < cuts.size(); ++p) {
    auto& stage = stages.emplace_back();
    for (std::size_t b = cuts[p]; b < cuts[p + 1]; ++b)
      stage.insert(stage.end(), blocks[b].tensors.begin(), blocks[b].tensors.end());
  }
  if (blocks.back().tied && pp > 1)
    stages.back().push_back(blocks.front().tensors[0]);
  return stages;
}

// Calls run(whole, part, bytes) for each consecutive run of a rank's part: its offsets in the whole tensor and in the part.
template <class Run>
void for_each_run(const tensor_spec& tensor, const shard_range& part, std::size_t element, Run run) {
  const std::size_t columns = tensor.shape.size() > 1 ? std::size_t(tensor.shape[1]) : 1;
  const std::size_t begin = std::size_t(part.begin), n = std::size_t(part.end - part.begin);
  if (part.dim == 0)
    return run(begin * columns * element, std::size_t(0), n * columns * element);
  for (std::size_t r = 0; r < std::size_t(tensor.shape[0]); ++r)
    run((r * columns + begin) * element, r * n * element, n * element);
}

struct rank_layout {
  std::int64_t tp = 1, pp = 1;
};

rank_layout read_layout(const fs::path& dir) {
  const auto file = dir / layout_name;
  if (!is_there(file))
    throw error(errc::bad_input, dir.string() + " has no " + layout_name + ": it is no directory that convert shard wrote");
  const auto json = parse_json_object(read_model_file(file), file.string());
  const auto size = [&](const char* key) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_number_unsigned() || found->get<std::uint64_t>() < 1 || found->get<std::uint64_t>() > 1024)
      throw error(errc::bad_input, file.string() + ": " + key + ": must be an integer from 1 to 1024");
    return found->get<std::int64_t>();
  };
  return {size("tensor_parallel_size"), size("pipeline_parallel_size")};
}

void write_rank(const fs::path& dir, const safetensors_reader& files, const std::vector<tensor_spec>& stage, std::int64_t rank,
                std::int64_t tp) {
  std::vector<tensor_to_make> tensors;
  for (const auto& spec : stage)
    if (const tensor_info* info = files.find(spec.name))
      tensors.push_back({spec.name, info->type, shard_shape(spec, rank, tp), [&spec, info, rank, tp](std::span<std::byte> out) {
                           for_each_run(spec, shard_of(spec, rank, tp), size_of(info->type),
                                        [&](std::size_t from, std::size_t to, std::size_t n) {
                                          std::memcpy(out.data() + to, info->bytes.data() + from, n);
                                        });
                         }});
  fs::create_directory(dir);
  write_safetensors(dir, tensors);
}

// A rank's files hold its parts of the stage's tensors and nothing else.
void check_rank(const safetensors_reader& files, const std::vector<tensor_spec>& stage, std::int64_t rank, std::int64_t tp) {
  std::set<std::string> wanted;
  for (tensor_spec spec : stage) {
    spec.shape = shard_shape(spec, rank, tp);
    check_tensor(files, spec.name, spec);
    wanted.insert(spec.name);
  }
  for (const auto& [name, info] : files.tensors())
    if (!wanted.contains(name))
      throw error(errc::bad_input,
                  files.path().string() + ": tensor " + in_quotes(name) + " " + spelled(info.shape) + " belongs to no part of this rank");
}

using rank_files = std::vector<std::vector<safetensors_reader>>; // [pp][tp]

// Puts a tensor together; ranks that hold the same part must agree.
void join_tensor(const tensor_spec& spec, const std::vector<safetensors_reader>& ranks, std::span<std::byte> out) {
  const auto tp = std::int64_t(ranks.size());
  std::int64_t done = 0; // rows or columns put together so far
  for (std::int64_t t = 0; t < tp; ++t) {
    const safetensors_reader& files = ranks[std::size_t(t)];
    const tensor_info& info = *files.find(spec.name);
    const shard_range part = shard_of(spec, t, tp);
    const bool again = part.begin < done;
    for_each_run(spec, part, size_of(info.type), [&](std::size_t to, std::size_t from, std::size_t n) {
      if (!again)
        std::memcpy(out.data() + to, info.bytes.data() + from, n);
      else if (std::memcmp(out.data() + to, info.bytes.data() + from, n) != 0)
        throw error(errc::bad_input,
                    files.path().string() + ": tensor " + spec.name + " differs from another rank's copy of the same part");
    });
    done = std::max(done, part.end);
  }
}

void check_types(const tensor_spec& spec, const std::vector<safetensors_reader>& ranks) {
  const tensor_info* first = ranks[0].find(spec.name);
  for (const auto& files : ranks) {
    const tensor_info* info = files.find(spec.name);
    if ((info == nullptr) != (first == nullptr) || (info && info->type != first->type))
      throw error(errc::bad_input, files.path().string() + ": tensor " + spec.name + " is absent or of another type than rank 0's");
  }
}

void copy_description(const fs::path& source, const fs::path& target, const model_config& cfg) {
  write_file(target / "config.json", read_model_file(source / "config.json"));
  copy_tokenizer_files(source, target);
  write_modeling_file(target, cfg);
}

} // namespace

// Throws errc::bad_config where ranks cannot share the model.
static void check_layout(const model_config& cfg, std::int64_t tp, std::int64_t pp) {
  stages_of(cfg, pp);
  for (const auto& spec : tensors_of(cfg))
    shard_of(spec, 0, tp);
}

static conversion shard_directory(const fs::path& source, const fs::path& target, std::int64_t tp, std::int64_t pp) {
  const auto cfg = load_model_config(source);
  const safetensors_reader files(source);
  check_tensors(files, cfg);
  check_tied_head(files, cfg);
  const auto stages = stages_of(cfg, pp);
  conversion done;
  done.source = source;
  for (const auto& spec : tensors_of(cfg)) {
    shard_of(spec, 0, tp); // refused before anything is written
    ++done.tensors;
    done.parameters += spec.numel();
  }
  staged_directory staged(target);
  copy_description(source, staged.path(), cfg);
  write_file(staged.path() / layout_name, nlohmann::json{{"tensor_parallel_size", tp}, {"pipeline_parallel_size", pp}}.dump(1) + "\n");
  for (std::int64_t p = 0; p < pp; ++p)
    for (std::int64_t t = 0; t < tp; ++t)
      write_rank(staged.path() / rank_name(p, t), files, stages[std::size_t(p)], t, tp);
  staged.commit();
  return done;
}

conversion convert_shard(const fs::path& source, const fs::path& target, std::int64_t tp, std::int64_t pp) {
  const bool split = fs::is_regular_file(source), ranks = is_there(source / layout_name);
  if (!split && !ranks)
    return shard_directory(source, target, tp, pp);
  fs::path beside = target;
  beside += ".whole";
  const staged_directory scratch(beside); // goes with its end
  const fs::path whole = scratch.path() / "model";
  check_layout(split ? parse_model_config(read_model_file(source), source.string()) : load_model_config(source), tp, pp);
  { const staged_directory possible(target); } // refused before the work
  if (split)
    convert_split(source, whole, std::nullopt, 0);
  else
    convert_join(source, whole);
  auto done = shard_directory(whole, target, tp, pp);
  done.source = source;
  return done;
}

conversion convert_join(const fs::path& source, const fs::path& target) {
  const auto layout = read_layout(source);
  const auto cfg = load_model_config(source);
  const auto stages = stages_of(cfg, layout.pp);
  rank_files ranks;
  for (std::int64_t p = 0; p < layout.pp; ++p) {
    auto& stage = ranks.emplace_back();
    for (std::int64_t t = 0; t < layout.tp; ++t)
      check_rank(stage.emplace_back(source / rank_name(p, t)), stages[std::size_t(p)], t, layout.tp);
  }
  conversion done;
  done.source = source;
  std::vector<tensor_to_make> tensors;
  std::set<std::string> seen;
  for (std::size_t p = 0; p < stages.size(); ++p)
    for (const auto& spec : stages[p]) {
      check_types(spec, ranks[p]);
      const tensor_info* info = ranks[p][0].find(spec.name);
      if (!info || !seen.insert(spec.name).second) // a tied table's copy, the same parts as the first stage's
        continue;
      tensors.push_back(
          {spec.name, info->type, spec.shape, [&spec, &of = ranks[p]](std::span<std::byte> out) { join_tensor(spec, of, out); }});
      done.parameters += spec.numel();
    }
  done.tensors = tensors.size();
  staged_directory staged(target);
  copy_description(source, staged.path(), cfg);
  write_safetensors(staged.path(), tensors);
  staged.commit();
  return done;
}

} // namespace troupe
