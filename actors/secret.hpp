#pragma once
#include <cstdint>
#include <string>

namespace troupe {

/// 32 random hexadecimal digits: what the processes of one run know and nobody else.
std::string make_secret();

/// Where the secret of the run that listens on a port is kept while it lasts: a file that only this user reads.
class secret_file {
public:
  /// Throws errc::io naming the file and the reason.
  secret_file(std::uint16_t port, const std::string& secret);
  ~secret_file();
  secret_file(const secret_file&) = delete;
  secret_file& operator=(const secret_file&) = delete;

private:
  std::string path_;
};

/// The secret of this user's run on that port. Throws errc::bad_usage when there is none.
std::string read_secret(std::uint16_t port);

} // namespace troupe
