// Pieces of an HTML page that stands alone: no script, no link to anything outside, pictures inside. Whatever
// comes from a file or a person passes html_text on its way in.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dydit/io/image.h"

namespace dydit {

/// `text` as a page shows it, between tags or in an attribute's quotes: markup is escaped, and so is what
/// printable() would not show.
std::string html_text(std::string_view text);

/// The image as PNG inside the page, enlarged by a whole number until its longer side is `side` CSS pixels.
std::string html_image(const Image& image, std::string_view alt, int side);

/// A name and what it is.
struct Fact {
  std::string name, value;
};
/// A table of two columns, the names its headings. Texts as they are.
std::string html_facts(std::string_view caption, std::span<const Fact> facts);

/// A table; `rows` have as many cells as there are columns. Texts as they are; cells that begin like a number
/// stand to the right, and the names of their columns with them.
std::string html_table(std::string_view caption, std::span<const std::string> columns,
                       std::span<const std::vector<std::string>> rows);

/// A paragraph of plain text.
std::string html_paragraph(std::string_view text);

/// A picture of any kind (HTML) and, as plain text, what it shows.
std::string html_figure(const std::string& picture, std::string_view caption);

struct HtmlSection {
  std::string id;       // of its anchor
  std::string heading;  // plain text
  std::string body;     // HTML
};
/// The page: title, `lead` (HTML), contents, sections.
std::string html_page(std::string_view title, const std::string& lead, std::span<const HtmlSection> sections);

}  // namespace dydit
