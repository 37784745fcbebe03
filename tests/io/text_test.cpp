// Text from outside: what is shown of it, what becomes a word of a command or a cell of CSV, what a person's
// file may hold.
#include "dydit/io/text.h"

#include <gtest/gtest.h>

#include "dydit/base/error.h"
#include "dydit/io/csv.h"
#include "dydit/io/json.h"

namespace dydit {
namespace {

std::string error_of(const std::string& bytes) {
  try {
    checked_text(bytes, "names.txt");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Csv, TextWithCommasAndQuotesIsOneCell) {
  EXPECT_EQ(csv_line({"t", csv_text("a \"b\", c"), csv_text(""), "0.5"}), "t,\"a \"\"b\"\", c\",\"\",0.5\n");
}

TEST(Printable, EscapesWhatATerminalObeys) {
  EXPECT_EQ(printable("a\x1b[31mb"), "a\\x1b[31mb");
  EXPECT_EQ(printable("a\nb\x7f"), "a\\x0ab\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"), "\\xc2\\x9b");  // CSI of eight bits
  EXPECT_EQ(printable("x\xe2\x80\xae"
                      "y"),
            "x\\xe2\\x80\\xaey");  // right to left from here
  EXPECT_EQ(printable("caf\xe9"), "caf\\xe9");
}

TEST(Printable, KeepsLettersOfAllScripts) { EXPECT_EQ(printable("café 猫 🐈"), "café 猫 🐈"); }

TEST(ShellQuote, LeavesPlainWordsAlone) { EXPECT_EQ(shell_quote("models/a-1.pt"), "models/a-1.pt"); }

TEST(ShellQuote, QuotesWhatAShellWouldRun) {
  EXPECT_EQ(shell_quote("ddpm; touch OWNED #"), "'ddpm; touch OWNED #'");
  EXPECT_EQ(shell_quote("it's $(date)"), "'it'\\''s $(date)'");
  EXPECT_EQ(shell_quote(""), "''");
}

TEST(ShellQuote, SpellsControlCharactersOut) {
  EXPECT_EQ(shell_quote("a\x1b'\\b\xe9"), "$'a\\x1b\\'\\\\b\\xe9'");
}

TEST(CheckedText, PassesOverAByteOrderMark) {
  EXPECT_EQ(checked_text("\xEF\xBB\xBF"
                         "a\n",
                         "f"),
            "a\n");
}

TEST(CheckedText, NamesTheLineThatIsNotUtf8) {
  EXPECT_EQ(error_of("cat\nna\xefve\n"), "names.txt: line 2 is not UTF-8: \"na\\xefve\". Save it as UTF-8");
}

TEST(CheckedText, NamesUtf16) {
  EXPECT_NE(error_of(std::string("\xff\xfe"
                                 "c\0",
                                 4))
                .find("is UTF-16"),
            std::string::npos);
  EXPECT_NE(error_of(std::string("a\0b", 3)).find("line 1 holds a byte 0"), std::string::npos);
}

TEST(ParseJson, RefusesWhatNestsTooDeeply) {
  EXPECT_TRUE(parse_json("[[1]]", 2));
  EXPECT_FALSE(parse_json("[[1]]", 1));
  EXPECT_FALSE(parse_json(std::string(300'000, '['), 8));
  EXPECT_FALSE(parse_json(std::string(300'000, '[') + std::string(300'000, ']'), 8));
  EXPECT_FALSE(parse_json("{\"a\":", 8));
}

TEST(JsonText, HoldsNoControlCharacters) {
  EXPECT_EQ(json_text(nlohmann::json("a\x1b\x7f\xc2\x9b\xe9z")), "\"a\\u001b\\u007f\\u009b\xEF\xBF\xBDz\"");
  EXPECT_EQ(nlohmann::json::parse(json_text(nlohmann::json("\xc2\x9b"))), "\xc2\x9b");
}

}  // namespace
}  // namespace dydit
