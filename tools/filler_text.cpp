#include "tools/filler_text.h"

#include <cctype>

#include "tools/filler_topics.h"

namespace tiercel {
namespace {

// Slots: A agents, T thing, K task, P place, S state, E effect, W time, M manner, N first name, O
// town, R reason, Q quantity (all in lower case but names), V a thing of another topic.
constexpr std::string_view kSentences[] = {
    "<A> <M> <K> <W>.",
    "<W>, <A> <M> <K> <P>.",
    "When the <T> is <S>, <E>.",
    "Before you <K>, make sure that the <T> is not <S>.",
    "If <A> <K> <W>, <E>.",
    "The <T> <P> was <S>, so <N> decided to <K>.",
    "<N> from <O> once asked <Q> <A> why they <M> <K>.",
    "It is easier to <K> <W> than to <K> later.",
    "Most <A> agree that a <S> <T> is a sign that someone forgot to <K>.",
    "A <T> that looks <S> <P> may still be useful <R>.",
    "<A> who <K> <W> say that <E>.",
    "There are <Q> ways to <K>, and <A> <M> choose the slowest.",
    "In <O>, the <T> stands <P> and has been <S> for <Q> years.",
    "<N> keeps a <T> and a <T> <P> <R>.",
    "Nobody in <O> could explain why the <T> became <S> <W>.",
    "Do not <K> while the <T> is <S>, even when <A> ask for it.",
    "After <Q> attempts <E>, and <N> could <K> at last.",
    "The difference between a <S> <T> and a <S> <T> is small but <A> notice it.",
    "Some <A> <K> first and <K> afterwards, <R>.",
    "<E> because <A> <M> <K>.",
    "The handbook tells <A> to <K> <P>, though few do so <W>.",
    "With a <T> at hand it takes about <Q> minutes to <K>.",
    "<N> and <N> walked to <O> to borrow a <T>, which turned out to be <S>.",
    "Unless somebody remembers to <K>, the <T> <P> will be <S> <W>.",
    "As a rule, <E> only where the <T> is <S>.",
    "Compared with a <V>, a <T> is rarely <S>.",
    "Two <A> were seen <P>, waiting to <K>.",
    "Once <E>, there is no need to <K> again <R>.",
    "What surprises visitors from <O> is that <A> <M> <K> <P>.",
    "The <T> belongs <P>, the <V> does not.",
    "<W> it was <N> who had to <K>, <R>.",
    "Although the <T> seemed <S>, <E>.",
    "Every <T> should be checked <W>, and a <S> one replaced <R>.",
    "Ask <A> <P> how to <K> and you will hear <Q> answers.",
    "A visitor may take the <T> for a <V>, but only until <E>.",
    "It took <N> <Q> days to <K>, and the <T> is still <S>.",
    "First <K>, then <K>, and only then look at the <T>.",
    "<A> in <O> <M> <K>, which explains why <E>.",
};

constexpr std::string_view kHeadings[] = {
    "Notes on <L>",
    "Why <A> <K>",
    "The <S> <T>",
    "How to <K>",
    "<L>, part <Q>",
    "A morning in <O>",
    "What <A> should know about the <T>",
    "Working <P>",
};

constexpr std::string_view kListIntroductions[] = {
    "Things to remember <P>",
    "<N> wrote down the following points",
    "A short list for <A>",
    "Steps that <A> <M> skip",
};

constexpr std::string_view kListItems[] = {
    "<K> <W>",
    "a <S> <T> <P>",
    "check the <T>, then <K>",
    "never <K> alone <R>",
    "ask <N> about the <T>",
    "<Q> spare parts for the <T>",
    "<E>",
};

constexpr const char* kTimes =
    "in early spring|after the first frost|before sunrise|twice a week|during the night shift|on "
    "market days|once the guests have left|at the end of the month|in a dry summer|on quiet "
    "afternoons|before the holidays|a little later than planned|when nobody is watching|during the "
    "long winter|right after lunch|on the last day of the week|every other morning|in the late "
    "autumn|whenever time allows|shortly before closing time";
constexpr const char* kManners =
    "usually|rarely|carefully|often|always|seldom|quietly|sometimes|gladly|regularly|reluctantly|"
    "quickly|almost never|together|patiently|by habit";
constexpr const char* kNames =
    "Marta|Jonas|Aylin|Pedro|Ingrid|Kofi|Lena|Tomas|Yuki|Amara|Henrik|Salma|Viktor|Nadia|Oskar|"
    "Priya|Emil|Rosa|Bashir|Clara|Dmitri|Eun|Farah|Goran|Hana|Ivo|Jelena|Karim|Liv|Mateo|Noor|Olga|"
    "Paolo|Quentin|Ruth|Stefan|Tuva|Uma|Wanda|Zoltan";
constexpr const char* kTowns =
    "Arnholm|Bellavista|Corran|Dunmere|Eastwick|Fallow Bridge|Grenville|Hallsund|Ilmenau|Jarrow "
    "Point|Kestrel Bay|Lindau|Marrow Hill|Norrby|Oldport|Pinecrest|Quarry "
    "Bank|Rosendal|Stillwater|Tarn End|Upper Leigh|Vallmora|Westerby|Yarrow Cross";
constexpr const char* kReasons =
    "for the sake of the younger ones|because habits are hard to change|to save time "
    "later|although it costs more|without being told|as the old rules demand|to keep the costs "
    "low|just in case|for reasons of safety|since nothing else has worked|out of pure curiosity|as "
    "long as the light lasts|to everybody's surprise|with some luck|for a whole season|against all "
    "advice";
constexpr const char* kQuantities =
    "two|three|four|five|six|seven|eight|nine|ten|eleven|12|14|15|18|20|24|25|30|36|40|45|48|50|60|"
    "75|80|90|a dozen|a few|several|many|countless";

std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> words;
  while (true) {
    const size_t bar = list.find('|');
    words.push_back(list.substr(0, bar));
    if (bar == std::string_view::npos) return words;
    list.remove_prefix(bar + 1);
  }
}

void capitalise(std::string& text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
}

}  // namespace

uint64_t RandomBits::next() {
  uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

size_t RandomBits::below(size_t n) {
  // n is far below 2^32, so the bias of this multiplication is far below 2^-32 too.
  return static_cast<size_t>(((next() >> 32) * static_cast<uint64_t>(n)) >> 32);
}

FillerText::FillerText(uint64_t seed) : random_(seed) {
  for (int i = 0; i < kNumFillerTopics; ++i) {
    const FillerTopic& t = kFillerTopics[i];
    topics_.push_back({t.title, split(t.agents), split(t.things), split(t.tasks), split(t.places),
                       split(t.states), split(t.effects)});
  }
  times_ = split(kTimes);
  manners_ = split(kManners);
  names_ = split(kNames);
  towns_ = split(kTowns);
  reasons_ = split(kReasons);
  quantities_ = split(kQuantities);
}

std::string_view FillerText::slot(char name) {
  const auto pick = [&](const std::vector<std::string_view>& list) {
    return list[random_.below(list.size())];
  };
  switch (name) {
    case 'A': return pick(current().agents);
    case 'T': return pick(current().things);
    case 'K': return pick(current().tasks);
    case 'P': return pick(current().places);
    case 'S': return pick(current().states);
    case 'E': return pick(current().effects);
    case 'V': return pick(topics_[random_.below(topics_.size())].things);
    case 'W': return pick(times_);
    case 'M': return pick(manners_);
    case 'N': return pick(names_);
    case 'O': return pick(towns_);
    case 'R': return pick(reasons_);
    case 'Q': return pick(quantities_);
    default: return current().title;  // 'L'
  }
}

std::string FillerText::fill(std::string_view pattern) {
  std::string text;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '<') {
      text += pattern[i];
      continue;
    }
    const std::string_view word = slot(pattern[i + 1]);
    // "a" before a vowel sound becomes "an"; close enough for English.
    const bool article = (text.ends_with(" a ") || text == "a " || text == "A ");
    if (article && std::string_view("aeio").find(word[0]) != std::string_view::npos) {
      text.back() = 'n';
      text += ' ';
    }
    text += word;
    i += 2;
  }
  capitalise(text);
  return text;
}

std::string FillerText::paragraph() {
  std::string text;
  const size_t n = 2 + random_.below(6);
  for (size_t i = 0; i < n; ++i) {
    if (i > 0) text += ' ';
    text += fill(kSentences[random_.below(std::size(kSentences))]);
  }
  return text + "\n\n";
}

std::string FillerText::list() {
  std::string text = fill(kListIntroductions[random_.below(std::size(kListIntroductions))]) + "\n";
  const size_t n = 3 + random_.below(4);
  for (size_t i = 0; i < n; ++i) {
    text += "- ";
    text += fill(kListItems[random_.below(std::size(kListItems))]);
    text += '\n';
  }
  return text + "\n";
}

std::string FillerText::next_block() {
  if (blocks_left_-- == 0) {
    topic_ = random_.below(topics_.size());
    blocks_left_ = static_cast<int>(3 + random_.below(7));
    std::string text = "## ";
    text += fill(kHeadings[random_.below(std::size(kHeadings))]);
    return text += "\n\n";
  }
  return random_.below(8) == 0 ? list() : paragraph();
}

}  // namespace tiercel
