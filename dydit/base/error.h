// Errors: one line that names what, where, what was wanted, what came, and the way out.
// Thrown at the edges of the library, caught once in the program.
#pragma once

#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace dydit {

/// A run that cannot go on: bad file, bad weights, failed write. The program exits with 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller asked for something that cannot be meant: a flag or an option out of range. Exit 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// The caller asked to stop (Ctrl-C). Exit 130.
class Cancelled : public Error {
 public:
  Cancelled() : Error("cancelled") {}
};

}  // namespace dydit

/// Throws dydit::Error with the formatted message unless `condition` holds.
#define DYDIT_CHECK(condition, ...)                                     \
  do {                                                                  \
    if (!(condition)) throw ::dydit::Error(::fmt::format(__VA_ARGS__)); \
  } while (false)

/// Throws dydit::UsageError with the formatted message unless `condition` holds.
#define DYDIT_USAGE_CHECK(condition, ...)                                    \
  do {                                                                       \
    if (!(condition)) throw ::dydit::UsageError(::fmt::format(__VA_ARGS__)); \
  } while (false)
