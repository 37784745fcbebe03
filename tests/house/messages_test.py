"""Every message that the program can give is named by a test: three words of it in a row, or all of a shorter one.

Messages are the literals of DYDIT_CHECK, DYDIT_USAGE_CHECK, of errors that are thrown, and of the functions in which
readers put what is damaged. A message that no test can provoke stands in UNPROVOKED with the reason."""

import re

import house

CALLS = re.compile(r"\b(DYDIT_CHECK|DYDIT_USAGE_CHECK|throw (?:\w*Error)|ConfigError|damaged|wrong)\s*\(")
LITERALS = re.compile(r'"(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*')
SHORTEST = 12  # characters of a literal that is a message and not a name
WORDS = 3

# A part of the message, and why no test provokes it.
UNPROVOKED = {
    "zlib could not be set up": "takes a machine without memory",
    "libpng could not be set up": "takes a machine without memory",
    "cannot encode PNG": "libpng refuses nothing that an Image can hold",
    "cannot stat": "an open file can be looked at",
    "cannot map": "takes a machine without memory",
    "cannot read: ": "takes a disk that fails",
    "cannot list the folder": "root, as whom tests may run, lists every folder",
    "holds more than {} files; is it the right folder?": "takes millions of files",
    "entries; at most {} are read in all": "takes 65,536 tensors",
    "the server's socket failed": "takes a system that closes a socket of ours",
    "cannot make a folder for the devices' images": "takes a full disk",
    "cannot start a process for a device": "takes a system without room for a process",
    "serve is not in this program": "takes a build with DYDIT_STATIC_DEPS",
    "{}: is {}, {}; {}": "has no words of its own",
}


def balanced(text, begin):
    """The text from `begin` to the parenthesis that closes it; literals are stepped over."""
    depth, at = 1, begin
    while depth and at < len(text):
        if text[at] == '"':
            at = LITERALS.match(text, at).end() if LITERALS.match(text, at) else at + 1
            continue
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return text[begin:at]


def joined(literal):
    return "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', literal)).replace('\\"', '"')


def messages(text):
    """(line, message) of the longest literal of each call that makes an error."""
    for call in CALLS.finditer(text):
        literals = [joined(found[0]) for found in LITERALS.finditer(balanced(text, call.end()))]
        longest = max(literals, key=len, default="")
        if len(longest) >= SHORTEST:
            yield text.count("\n", 0, call.start()) + 1, longest


def plain(text):
    """Without the marks at which a test may cut a message."""
    return re.sub(r"[;:,.'\"\\()]", "", text)


def is_named(message, tests):
    for part in re.split(r"\{[^}]*\}", message):
        words = plain(part).split()
        if len(" ".join(words)) < 5:
            continue
        taken = min(WORDS, len(words))
        if any(" ".join(words[i:i + taken]) in tests for i in range(len(words) - taken + 1)):
            return True
    return False


def text_of_tests(files):
    text = "\n".join((house.ROOT / path).read_text(errors="replace") for path in files
                     if path.startswith("tests/") and path.endswith((".cpp", ".h", ".py")) and path != OWN)
    text = re.sub(r'"\s*\n?\s*f?"', "", text)  # literals that go on in the next line
    return plain(text)


OWN = "tests/house/messages_test.py"
SAMPLE = 'DYDIT_CHECK(ok(")"), "{}: has {} tensors, "\n "wanted {}", name, f(1), 2); throw Error("short"); if (x) y("not one of them");'
files = house.project_files("*.cpp", "*.h", "*.py")
tests = text_of_tests(files)
complaints = []
if list(messages(SAMPLE)) != [(1, "{}: has {} tensors, wanted {}")]:
    complaints.append(f"self-check: {list(messages(SAMPLE))}")
if not is_named("{}: has {} odd tensors in it", "it has 3 odd tensors in all") or is_named("{}: odd thing here", "odd thing"):
    complaints.append("self-check: is_named")
total = 0
for path in files:
    if not path.startswith(("dydit/", "programs/")):
        continue
    for line, message in messages((house.ROOT / path).read_text()):
        total += 1
        if not is_named(message, tests) and not any(part in message for part in UNPROVOKED):
            complaints.append(f'{path}:{line}: no test names the message "{message}"')
house.finish(complaints, f"{total} messages are named by tests")
