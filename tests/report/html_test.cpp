// What a page is made of is escaped, whole and self-contained.
#include "dydit/report/html.h"

#include <gtest/gtest.h>

namespace dydit {
namespace {

TEST(HtmlText, EscapesMarkupQuotesAndControls) {
  EXPECT_EQ(html_text("<b>&\"'"), "&lt;b&gt;&amp;&quot;&#39;");
  EXPECT_EQ(html_text("Größe 5 ± 1"), "Größe 5 ± 1");
  EXPECT_EQ(html_text("a\x1b[31m\n\xff").find_first_of("\x1b\n\xff"), std::string::npos);
}

TEST(HtmlImage, IsAPngInThePageEnlargedByAWholeNumber) {
  const Image image{2, 3, 1, {0, 50, 100, 150, 200, 250}};
  const std::string html = html_image(image, "a <cat>", 10);
  EXPECT_TRUE(html.starts_with("<img src=\"data:image/png;base64,iVBORw0KGgo")) << html;
  EXPECT_NE(html.find("alt=\"a &lt;cat&gt;\" width=\"9\" height=\"6\""), std::string::npos) << html;
  EXPECT_NE(html_image(image, "", 1).find("width=\"3\" height=\"2\""), std::string::npos);
}

TEST(HtmlTable, NamesItsColumnsAndEscapesItsCells) {
  const std::vector<std::string> columns = {"name", "FID"};
  const std::vector<std::vector<std::string>> rows = {{"a & b", "3.5"}, {"-", "-1"}};
  const std::string html = html_table("all <values>", columns, rows);
  EXPECT_NE(html.find("<caption>all &lt;values&gt;</caption>"), std::string::npos) << html;
  EXPECT_NE(html.find("<th scope=\"col\">name</th><th scope=\"col\" class=\"n\">FID</th>"), std::string::npos)
      << html;
  EXPECT_NE(html.find("<tr><td>a &amp; b</td><td class=\"n\">3.5</td></tr>"), std::string::npos) << html;
  EXPECT_NE(html.find("<tr><td>-</td><td class=\"n\">-1</td></tr>"), std::string::npos) << html;
}

TEST(HtmlPage, ContentsLeadToItsSections) {
  const std::vector<HtmlSection> sections = {{"one", "First & last", "<p>body</p>"}};
  const std::string html = html_page("<title>", "<p>lead</p>", sections);
  EXPECT_TRUE(html.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
  EXPECT_NE(html.find("<title>&lt;title&gt;</title>"), std::string::npos);
  EXPECT_NE(html.find("<a href=\"#one\">First &amp; last</a>"), std::string::npos);
  EXPECT_NE(html.find("<h2 id=\"one\">First &amp; last</h2>\n<p>body</p>"), std::string::npos);
}

}  // namespace
}  // namespace dydit
