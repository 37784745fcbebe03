#include "dydit/report/html.h"

#include <algorithm>
#include <cassert>
#include <cctype>

#include <fmt/format.h>

#include "dydit/io/base64.h"
#include "dydit/io/png.h"
#include "dydit/io/text.h"

namespace dydit {
namespace {

// Nothing may be fetched, whatever the page holds.
constexpr std::string_view kPolicy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

// Colours are variables, so that plots follow the page from light to dark; on paper it is always light.
constexpr std::string_view kStyle = R"css(
:root{--paper:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d5dbe1;--wash:#f5f7f9;--accent:#0a58a8;
--s0:#0a58a8;--s1:#c2410c;--s2:#15803d;--s3:#86198f;--s4:#8a6100;--s5:#475569;color-scheme:light}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e4e8ec;--soft:#9aa5b1;--line:#343c46;--wash:#1c2228;
--accent:#7cb7f5;--s0:#7cb7f5;--s1:#fb9257;--s2:#6fce8c;--s3:#e39cf0;--s4:#e2c05a;--s5:#a9b6c6;color-scheme:dark}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
.page{display:grid;grid-template-columns:13rem minmax(0,1fr);gap:0 3rem;max-width:78rem;margin:0 auto;padding:2rem 1.5rem 4rem}
header{grid-column:1/-1}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:2.6rem 0 .6rem;padding-top:.4rem;border-top:1px solid var(--line);scroll-margin-top:1rem}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem;overflow-wrap:anywhere}
p{max-width:46rem;margin:.5rem 0;overflow-wrap:anywhere}
a{color:var(--accent)}
.under{color:var(--soft);margin:0 0 1.2rem}
nav{position:sticky;top:1.5rem;align-self:start;font-size:.92rem;padding-top:2.6rem}
nav ol{list-style:none;margin:0;padding:0;border-left:2px solid var(--line)}
nav a{display:block;padding:.22rem .8rem;text-decoration:none}
nav a:hover,nav a:focus{background:var(--wash)}
main section:first-child h2{border:0}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0 0;padding:0;list-style:none}
.tiles li{background:var(--wash);border:1px solid var(--line);border-radius:.5rem;padding:.6rem 1rem;min-width:8.5rem}
.tiles b{display:block;font-size:1.35rem;line-height:1.3;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.85rem}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:0 0 .4rem;max-width:46rem;overflow-wrap:anywhere}
th,td{text-align:left;vertical-align:top;padding:.28rem .8rem .28rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
tbody th{font-weight:600;white-space:nowrap;padding-right:1.6rem}
td{overflow-wrap:break-word;max-width:26rem}
tbody th+td{max-width:46rem}
.n{text-align:right;white-space:nowrap}
figure{margin:1rem 0}
figcaption{color:var(--soft);font-size:.9rem;max-width:46rem;margin-top:.4rem;overflow-wrap:anywhere}
figure svg,img{max-width:100%;height:auto}
img{image-rendering:pixelated;border-radius:3px;vertical-align:top}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1.2rem 1rem;margin:1rem 0}
.sheet figure{margin:0}
.sheet figcaption{font-size:.82rem;line-height:1.4;margin:.3rem 0 0}
.sheet figcaption b{color:var(--ink)}
.strip td,.strip th{padding:.25rem .5rem .25rem 0;border:0;vertical-align:middle}
.strip td{font-size:.8rem;color:var(--soft);text-align:center}
.white{background:#fff;border-radius:.4rem;overflow-x:auto}
.warning{border-left:3px solid var(--s1);padding-left:.8rem}
.plot{font:12px system-ui,sans-serif;display:block}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}.s5{color:var(--s5)}
@media(max-width:52rem){.page{grid-template-columns:minmax(0,1fr)}nav{position:static;padding-top:1.5rem}}
@media print{body{font-size:11pt}.page{display:block;max-width:none;padding:0}nav{position:static}
figure,tr,.tiles li{break-inside:avoid}h2,h3{break-after:avoid}.wide,.white{overflow:visible}}
)css";

bool looks_like_number(std::string_view cell) {
  if (cell.starts_with('-') || cell.starts_with('+')) cell.remove_prefix(1);
  return !cell.empty() && std::isdigit(static_cast<unsigned char>(cell[0])) != 0;
}

// What is wider than the page is scrolled, by keyboard, too.
std::string scrolled(const std::string& table) {
  return "<div class=\"wide\" tabindex=\"0\">" + table + "</div>\n";
}

}  // namespace

std::string html_text(std::string_view text) {
  std::string escaped;
  for (const char c : printable(text, text.npos)) {
    switch (c) {
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '&':
        escaped += "&amp;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string html_image(const Image& image, std::string_view alt, int side) {
  const int longer = std::max(image.height, image.width), factor = std::max(1, side / longer);
  return fmt::format("<img src=\"data:image/png;base64,{}\" alt=\"{}\" width=\"{}\" height=\"{}\">",
                     base64(png_bytes(image, {}, "a picture of the page")), html_text(alt),
                     image.width * factor, image.height * factor);
}

std::string html_facts(std::string_view caption, std::span<const Fact> facts) {
  std::string table = fmt::format("<table><caption>{}</caption>\n<tbody>\n", html_text(caption));
  for (const Fact& fact : facts) {
    table += fmt::format("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", html_text(fact.name),
                         html_text(fact.value));
  }
  return scrolled(table + "</tbody></table>");
}

std::string html_table(std::string_view caption, std::span<const std::string> columns,
                       std::span<const std::vector<std::string>> rows) {
  std::string table = fmt::format("<table><caption>{}</caption>\n<thead><tr>", html_text(caption));
  for (size_t c = 0; c < columns.size(); ++c) {
    const bool numbers =
        std::any_of(rows.begin(), rows.end(), [&](const auto& row) { return looks_like_number(row[c]); });
    table += fmt::format("<th scope=\"col\"{}>{}</th>", numbers ? " class=\"n\"" : "", html_text(columns[c]));
  }
  table += "</tr></thead>\n<tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    assert(row.size() == columns.size());
    table += "<tr>";
    for (const std::string& cell : row) {
      table += fmt::format("<td{}>{}</td>", looks_like_number(cell) ? " class=\"n\"" : "", html_text(cell));
    }
    table += "</tr>\n";
  }
  return scrolled(table + "</tbody></table>");
}

std::string html_paragraph(std::string_view text) { return fmt::format("<p>{}</p>\n", html_text(text)); }

std::string html_figure(const std::string& picture, std::string_view caption) {
  return fmt::format("<figure>{}<figcaption>{}</figcaption></figure>\n", picture, html_text(caption));
}

std::string html_page(std::string_view title, const std::string& lead,
                      std::span<const HtmlSection> sections) {
  std::string contents, body;
  for (const HtmlSection& section : sections) {
    const std::string heading = html_text(section.heading);
    contents += fmt::format("<li><a href=\"#{}\">{}</a></li>\n", section.id, heading);
    body += fmt::format("<section aria-labelledby=\"{0}\">\n<h2 id=\"{0}\">{1}</h2>\n{2}</section>\n",
                        section.id, heading, section.body);
  }
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<div class=\"page\">\n"
      "<header>\n<h1>{}</h1>\n{}</header>\n<nav aria-label=\"Contents\">\n<ol>\n{}</ol>\n</nav>\n"
      "<main>\n{}</main>\n</div>\n</body>\n</html>\n",
      kPolicy, html_text(title), kStyle, html_text(title), lead, contents, body);
}

}  // namespace dydit
