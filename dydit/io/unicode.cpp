// Letters with marks, composed or apart, by the canonical decompositions of the Unicode Character Database
// (16): alphabets, kana and Hangul; symbols and the compatibility ideographs, which no keyboard makes, are
// left alone.
#include "dydit/io/unicode.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "dydit/io/text.h"

namespace dydit {
namespace {

// A mark, and pairs of a letter without it and with it.
struct Marked {
  uint32_t mark;
  const char* pairs;
};

// clang-format off
constexpr Marked kMarked[] = {
    {0x0300, "AÀEÈIÌOÒUÙaàeèiìoòuùÜǛüǜNǸnǹЕЀИЍеѐиѝĒḔēḕŌṐōṑWẀwẁÂẦâầĂẰăằÊỀêềÔỒôồƠỜơờƯỪưừYỲ"
     "yỳἀἂἁἃἈἊἉἋἐἒἑἓἘἚἙἛἠἢἡἣἨἪἩἫἰἲἱἳἸἺἹἻὀὂὁὃὈὊὉὋὐὒὑὓὙὛὠὢὡὣὨὪὩὫαὰεὲηὴιὶοὸυὺωὼΑᾺΕῈΗῊ᾿῍ϊῒΙῚ῾῝ϋῢΥῪ"
     "\u00A8῭ΟῸΩῺ"},
    {0x0301, "AÁEÉIÍOÓUÚYÝaáeéiíoóuúyýCĆcćLĹlĺNŃnńRŔrŕSŚsśZŹzźÜǗüǘGǴgǵÅǺåǻÆǼæǽØǾøǿ"
     "\u0308\u0344\u00A8΅ΑΆΕΈΗΉΙΊΟΌΥΎΩΏϊΐαάεέηήιίϋΰοόυύωώϒϓГЃКЌгѓкќÇḈçḉĒḖēḗÏḮïḯKḰkḱMḾmḿÕṌõṍŌṒ"
     "ōṓPṔpṕŨṸũṹWẂwẃÂẤâấĂẮăắÊẾêếÔỐôốƠỚơớƯỨưứἀἄἁἅἈἌἉἍἐἔἑἕἘἜἙἝἠἤἡἥἨἬἩἭἰἴἱἵἸἼἹἽὀὄὁὅὈὌὉὍὐὔὑὕὙὝὠὤὡὥ"
     "ὨὬὩὭ᾿῎῾῞"},
    {0x0302, "AÂEÊIÎOÔUÛaâeêiîoôuûCĈcĉGĜgĝHĤhĥJĴjĵSŜsŝWŴwŵYŶyŷZẐzẑẠẬạậẸỆẹệỌỘọộ"},
    {0x0303, "AÃNÑOÕaãnñoõIĨiĩUŨuũVṼvṽÂẪâẫĂẴăẵEẼeẽÊỄêễÔỖôỗƠỠơỡƯỮưữYỸyỹ"},
    {0x0304, "AĀaāEĒeēIĪiīOŌoōUŪuūÜǕüǖÄǞäǟȦǠȧǡÆǢæǣǪǬǫǭÖȪöȫÕȬõȭȮȰȯȱYȲyȳИӢиӣУӮуӯGḠgḡḶḸḷḹṚṜ"
     "ṛṝαᾱΑᾹιῑΙῙυῡΥῩ"},
    {0x0306, "AĂaăEĔeĕGĞgğIĬiĭOŎoŏUŬuŭУЎИЙийуўЖӁжӂАӐаӑЕӖеӗȨḜȩḝẠẶạặαᾰΑᾸιῐΙῘυῠΥῨ"},
    {0x0307, "CĊcċEĖeėGĠgġIİZŻzżAȦaȧOȮoȯBḂbḃDḊdḋFḞfḟHḢhḣMṀmṁNṄnṅPṖpṗRṘrṙSṠsṡŚṤśṥŠṦšṧṢṨṣṩ"
     "TṪtṫWẆwẇXẊxẋYẎyẏſẛ"},
    {0x0308, "AÄEËIÏOÖUÜaäeëiïoöuüyÿYŸΙΪΥΫιϊυϋϒϔЕЁІЇеёіїАӒаӓӘӚәӛЖӜжӝЗӞзӟИӤиӥОӦоӧӨӪөӫЭӬэӭ"
     "УӰуӱЧӴчӵЫӸыӹHḦhḧÕṎõṏŪṺūṻWẄwẅXẌxẍtẗ"},
    {0x0309, "AẢaảÂẨâẩĂẲăẳEẺeẻÊỂêểIỈiỉOỎoỏÔỔôổƠỞơởUỦuủƯỬưửYỶyỷ"},
    {0x030A, "AÅaåUŮuůwẘyẙ"},
    {0x030B, "OŐoőUŰuűУӲуӳ"},
    {0x030C, "CČcčDĎdďEĚeěLĽlľNŇnňRŘrřSŠsšTŤtťZŽzžAǍaǎIǏiǐOǑoǒUǓuǔÜǙüǚGǦgǧKǨkǩƷǮ\u0292ǯ"
     "jǰHȞhȟ"},
    {0x030F, "AȀaȁEȄeȅIȈiȉOȌoȍRȐrȑUȔuȕѴѶѵѷ"},
    {0x0311, "AȂaȃEȆeȇIȊiȋOȎoȏRȒrȓUȖuȗ"},
    {0x0313, "αἀΑἈεἐΕἘηἠΗἨιἰΙἸοὀΟὈυὐωὠΩὨρῤ"},
    {0x0314, "αἁΑἉεἑΕἙηἡΗἩιἱΙἹοὁΟὉυὑΥὙωὡΩὩρῥΡῬ"},
    {0x031B, "OƠoơUƯuư"},
    {0x0323, "BḄbḅDḌdḍHḤhḥKḲkḳLḶlḷMṂmṃNṆnṇRṚrṛSṢsṣTṬtṭVṾvṿWẈwẉZẒzẓAẠaạEẸeẹIỊiịOỌoọƠỢơợUỤ"
     "uụƯỰưựYỴyỵ"},
    {0x0324, "UṲuṳ"},
    {0x0325, "AḀaḁ"},
    {0x0326, "SȘsșTȚtț"},
    {0x0327, "CÇcçGĢgģKĶkķLĻlļNŅnņRŖrŗSŞsşTŢtţEȨeȩDḐdḑHḨhḩ"},
    {0x0328, "AĄaąEĘeęIĮiįUŲuųOǪoǫ"},
    {0x032D, "DḒdḓEḘeḙLḼlḽNṊnṋTṰtṱUṶuṷ"},
    {0x032E, "HḪhḫ"},
    {0x0330, "EḚeḛIḬiḭUṴuṵ"},
    {0x0331, "BḆbḇDḎdḏKḴkḵLḺlḻNṈnṉRṞrṟTṮtṯZẔzẕhẖ"},
    {0x0342, "ἀἆἁἇἈἎἉἏἠἦἡἧἨἮἩἯἰἶἱἷἸἾἹἿὐὖὑὗὙὟὠὦὡὧὨὮὩὯαᾶ\u00A8῁ηῆ᾿῏ιῖϊῗ῾῟υῦϋῧωῶ"},
    {0x0345, "ἀᾀἁᾁἂᾂἃᾃἄᾄἅᾅἆᾆἇᾇἈᾈἉᾉἊᾊἋᾋἌᾌἍᾍἎᾎἏᾏἠᾐἡᾑἢᾒἣᾓἤᾔἥᾕἦᾖἧᾗἨᾘἩᾙἪᾚἫᾛἬᾜἭᾝἮᾞἯᾟὠᾠὡᾡὢᾢὣᾣὤᾤ"
     "ὥᾥὦᾦὧᾧὨᾨὩᾩὪᾪὫᾫὬᾬὭᾭὮᾮὯᾯὰᾲαᾳάᾴᾶᾷΑᾼὴῂηῃήῄῆῇΗῌὼῲωῳώῴῶῷΩῼ"},
    {0x0653, "\u0627\u0622"},
    {0x0654, "\u0627\u0623\u0648\u0624\u064A\u0626\u06D5\u06C0\u06C1\u06C2\u06D2\u06D3"},
    {0x0655, "\u0627\u0625"},
    {0x093C, "\u0928\u0929\u0930\u0931\u0933\u0934\u0915\u0958\u0916\u0959\u0917\u095A"
     "\u091C\u095B\u0921\u095C\u0922\u095D\u092B\u095E\u092F\u095F"},
    {0x09BC, "\u09A1\u09DC\u09A2\u09DD\u09AF\u09DF"},
    {0x09BE, "\u09C7\u09CB"},
    {0x09D7, "\u09C7\u09CC"},
    {0x0A3C, "\u0A32\u0A33\u0A38\u0A36\u0A16\u0A59\u0A17\u0A5A\u0A1C\u0A5B\u0A2B\u0A5E"},
    {0x0B3C, "\u0B21\u0B5C\u0B22\u0B5D"},
    {0x0B3E, "\u0B47\u0B4B"},
    {0x0B56, "\u0B47\u0B48"},
    {0x0B57, "\u0B47\u0B4C"},
    {0x0BBE, "\u0BC6\u0BCA\u0BC7\u0BCB"},
    {0x0BD7, "\u0B92\u0B94\u0BC6\u0BCC"},
    {0x0C56, "\u0C46\u0C48"},
    {0x0CC2, "\u0CC6\u0CCA"},
    {0x0CD5, "\u0CBF\u0CC0\u0CC6\u0CC7\u0CCA\u0CCB"},
    {0x0CD6, "\u0CC6\u0CC8"},
    {0x0D3E, "\u0D46\u0D4A\u0D47\u0D4B"},
    {0x0D57, "\u0D46\u0D4C"},
    {0x0DCA, "\u0DD9\u0DDA\u0DDC\u0DDD"},
    {0x0DCF, "\u0DD9\u0DDC"},
    {0x0DDF, "\u0DD9\u0DDE"},
    {0x0F72, "\u0F71\u0F73"},
    {0x0F74, "\u0F71\u0F75"},
    {0x0F80, "\u0FB2\u0F76\u0FB3\u0F78\u0F71\u0F81"},
    {0x0FB5, "\u0F40\u0F69\u0F90\u0FB9"},
    {0x0FB7, "\u0F42\u0F43\u0F4C\u0F4D\u0F51\u0F52\u0F56\u0F57\u0F5B\u0F5C\u0F92\u0F93"
     "\u0F9C\u0F9D\u0FA1\u0FA2\u0FA6\u0FA7\u0FAB\u0FAC"},
    {0x102E, "\u1025\u1026"},
    {0x1B35, "\u1B05\u1B06\u1B07\u1B08\u1B09\u1B0A\u1B0B\u1B0C\u1B0D\u1B0E\u1B11\u1B12"
     "\u1B3A\u1B3B\u1B3C\u1B3D\u1B3E\u1B40\u1B3F\u1B41\u1B42\u1B43"},
    {0x3099, "かがきぎくぐけげこごさざしじすずせぜそぞただちぢつづてでとどはばひびふぶへべほぼうゔゝゞカガキギクグケゲコゴサザシジスズセゼソゾタダチヂツヅテデトド"
     "ハバヒビフブヘベホボウヴワヷヰヸヱヹヲヺヽヾ"},
    {0x309A, "はぱひぴふぷへぺほぽハパヒピフプヘペホポ"},
};
// clang-format on

using Decompositions = std::unordered_map<uint32_t, std::pair<uint32_t, uint32_t>>;

const Decompositions& decompositions() {
  static const Decompositions all = [] {
    Decompositions table;
    for (const Marked& row : kMarked) {
      std::string_view rest = row.pairs;
      while (!rest.empty()) {
        const uint32_t letter = take_code_point(rest), composed = take_code_point(rest);
        table[composed] = {letter, row.mark};
      }
    }
    return table;
  }();
  return all;
}

bool is_mark(uint32_t code) { return (code >= 0x300 && code <= 0x36F) || code == 0x3099 || code == 0x309A; }

// A syllable of Hangul is computed, not tabled (Unicode standard, section 3.12).
void add_decomposed(std::u32string& out, uint32_t code) {
  constexpr uint32_t kSyllables = 0xAC00, kCount = 11172, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
  if (code >= kSyllables && code < kSyllables + kCount) {
    const uint32_t index = code - kSyllables;
    out += static_cast<char32_t>(kLeads + index / 588);
    out += static_cast<char32_t>(kVowels + index % 588 / 28);
    if (index % 28 != 0) out += static_cast<char32_t>(kTails + index % 28);
    return;
  }
  const auto found = decompositions().find(code);
  if (found == decompositions().end()) {
    out += static_cast<char32_t>(code);
    return;
  }
  add_decomposed(out, found->second.first);
  out += static_cast<char32_t>(found->second.second);
}

}  // namespace

std::u32string unicode_key(std::string_view text) {
  std::u32string key;
  while (!text.empty()) add_decomposed(key, take_code_point(text));
  // Marks of one letter have an order of their own, which says nothing here.
  for (auto first = key.begin(); first != key.end();) {
    const auto last = std::find_if_not(first, key.end(), is_mark);
    std::sort(first, last);
    first = last == key.end() ? last : last + 1;
  }
  return key;
}

}  // namespace dydit
