"""The tokenizer."""

import unicodedata
from collections import Counter
from itertools import pairwise

import regex
import tiktoken

from gpt2lib.tokenizer import GPT2_PATTERN


def step_pairwise(parts, ranks):
    candidates = [ranks.get(left + right, float("inf")) for left, right in pairwise(parts)]
    if not candidates or min(candidates) == float("inf"):
        return list(parts)
    i = candidates.index(min(candidates))
    return [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]


def step_loop(parts, ranks):
    best = None
    where = None
    for i in range(len(parts) - 1):
        token = parts[i] + parts[i + 1]
        if token in ranks:
            if best is None or ranks[token] < best:
                best = ranks[token]
                where = i
    if where is None:
        return parts.copy()
    result = parts.copy()
    result[where : where + 2] = [parts[where] + parts[where + 1]]
    return result


def step_in_passing(parts, ranks):
    out = list(parts)
    i = 0
    while i + 1 < len(out):
        if out[i] + out[i + 1] in ranks:
            out[i] += out.pop(i + 1)
        i += 1
    return out


def step_sorted(parts, ranks):
    found = [
        (ranks[parts[i] + parts[i + 1]], i) for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks
    ]
    if len(found) == 0:
        return parts[:]
    _, i = sorted(found)[0]
    left, pair, right = parts[:i], parts[i : i + 2], parts[i + 2 :]
    return left + [b"".join(pair)] + right


def train_counter(text, vocab_size):
    frequency = Counter(regex.findall(GPT2_PATTERN, text))
    words = {word: [bytes([b]) for b in word.encode("utf-8")] for word in frequency}
    ranks = {bytes([b]): b for b in range(256)}
    for _ in range(vocab_size - 256):
        count = Counter()
        for word, parts in words.items():
            for left, right in pairwise(parts):
                count[left + right] += frequency[word]
        best = max(count.values())
        token = min(t for t, n in count.items() if n == best)
        ranks[token] = len(ranks)
        for parts in words.values():
            i = 0
            while i < len(parts) - 1:
                if parts[i] + parts[i + 1] == token:
                    parts[i : i + 2] = [token]
                i += 1
    return ranks


def train_lists(text, vocab_size):
    words = []
    for match in regex.finditer(GPT2_PATTERN, text):
        words.append([bytes([b]) for b in match.group().encode()])
    vocabulary = [bytes([i]) for i in range(256)]
    while len(vocabulary) < vocab_size:
        count = {}
        for word in words:
            for a, b in zip(word, word[1:]):
                count[a + b] = count.get(a + b, 0) + 1
        new = sorted(count, key=lambda t: (-count[t], t))[0]
        vocabulary.append(new)
        for k, word in enumerate(words):
            out = []
            for part in word:
                if out and out[-1] + part == new:
                    out[-1] += part
                else:
                    out.append(part)
            words[k] = out
    return {token: rank for rank, token in enumerate(vocabulary)}


def train_ids(text, vocab_size):
    pieces = Counter(tuple(w.encode()) for w in regex.findall(GPT2_PATTERN, text))
    token_of = {i: bytes([i]) for i in range(256)}
    for new in range(256, vocab_size):
        pairs = Counter()
        for ids, n in pieces.items():
            for pair in zip(ids, ids[1:]):
                pairs[pair] += n
        a, b = min(pairs, key=lambda p: (-pairs[p], token_of[p[0]] + token_of[p[1]]))
        token_of[new] = token_of[a] + token_of[b]
        after = Counter()
        for ids, n in pieces.items():
            out, i = [], 0
            while i < len(ids):
                if ids[i : i + 2] == (a, b):
                    out.append(new)
                    i += 2
                else:
                    out.append(ids[i])
                    i += 1
            after[tuple(out)] += n
        pieces = after
    return {token: i for i, token in token_of.items()}


def encode_steps(text, ranks):
    ids = []
    for word in regex.findall(GPT2_PATTERN, text):
        parts = [bytes([b]) for b in word.encode("utf-8")]
        while True:
            candidates = [ranks.get(a + b, 10**9) for a, b in pairwise(parts)]
            if min(candidates, default=10**9) == 10**9:
                break
            i = candidates.index(min(candidates))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def encode_tokens(text, ranks):
    out = []
    for match in regex.finditer(GPT2_PATTERN, text):
        parts = [bytes([b]) for b in match[0].encode()]
        for token in sorted(ranks, key=ranks.get):
            i = 0
            while i < len(parts) - 1:
                if parts[i] + parts[i + 1] == token:
                    parts[i : i + 2] = [token]
                i += 1
        out.extend(ranks[p] for p in parts)
    return out


def encode_recursive(text, ranks):
    def merge(parts):
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
        if not pairs:
            return parts
        i = min(pairs)[1]
        return merge(parts[:i] + [parts[i] + parts[i + 1]] + parts[i + 2 :])

    words = regex.findall(GPT2_PATTERN, text)
    return [ranks[part] for word in words for part in merge([bytes([b]) for b in word.encode()])]


def encode_normalised(text, ranks):
    return encode_steps(unicodedata.normalize("NFKC", text), ranks)


known_words = {}


def encode_remembering(text, ranks):
    ids = []
    for word in regex.findall(GPT2_PATTERN, text):
        if word not in known_words:
            known_words[word] = encode_steps(word, ranks)
        ids += known_words[word]
    return ids


def encode_tiktoken(text, ranks):
    special = {}
    encoding = tiktoken.Encoding("x", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return encoding.encode_ordinary(text)


def decode_join(ids, ranks):
    tokens = {rank: token for token, rank in ranks.items()}
    return b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")


def decode_list(ids, ranks):
    tokens = sorted(ranks, key=lambda token: ranks[token])
    data = bytearray()
    for i in ids:
        data.extend(tokens[i])
    return bytes(data).decode(errors="replace")


def decode_search(ids, ranks):
    names = list(ranks)
    numbers = list(ranks.values())
    text = b""
    for i in ids:
        text += names[numbers.index(i)]
    return str(text, "utf-8", "replace")


WORDS = "regex.findall(GPT2_PATTERN, text)"
RIGHT = {
    "merge_step": [step_pairwise, step_loop, step_sorted],
    "train_bpe": [train_counter, train_lists, train_ids],
    "encode": [encode_steps, encode_tokens, encode_recursive, encode_tiktoken],
    "decode": [decode_join, decode_list, decode_search],
}
WRONG = {
    "merge_step": [
        ("no-pair", step_pairwise, "not candidates or ", ""),
        ("no-pair", step_sorted, "    if len(found) == 0:\n        return parts[:]\n", ""),
        ("last-pair-missed", step_loop, "range(len(parts) - 1)", "range(len(parts) - 2)"),
        ("rightmost", step_loop, "ranks[token] < best", "ranks[token] <= best"),
        ("highest-rank", step_loop, "ranks[token] < best", "ranks[token] > best"),
        ("first-pair", step_loop, "if best is None or ranks[token] < best:", "if best is None:"),
        ("first-pair", step_sorted, "sorted(found)[0]", "found[0]"),
        (
            "longest-first",
            step_loop,
            "ranks[token] < best",
            "len(token) > best",
            "best = ranks[token]",
            "best = len(token)",
        ),
        ("right-part-kept", step_pairwise, "i + 2 :", "i + 1 :"),
        ("right-part-kept", step_loop, "where : where + 2", "where : where + 1"),
        ("rest-lost", step_sorted, " + right", ""),
        (
            "rank-zero",
            step_loop,
            "        if token in ranks:\n            if best is None or ranks[token] < best:",
            "        if ranks.get(token):\n            if best is None or ranks[token] < best:",
        ),
        ("rank-zero", step_loop, "best is None or ranks", "not best or ranks"),
        (
            "merged-to-the-end",
            step_loop,
            "    result = parts.copy()\n    result[where : where + 2] = [parts[where] + parts[where + 1]]\n    return result\n",
            "    joined = parts[:where] + [parts[where] + parts[where + 1]] + parts[where + 2 :]\n"
            "    return step_loop(joined, ranks)\n",
        ),
        ("joined-in-passing", step_in_passing),
        ("beginning-missed", step_loop, "range(len(parts) - 1)", "range(1, len(parts) - 1)"),
        ("beginning-missed", step_loop, "if where is None", "if not where"),
        ("next-part-lost", step_pairwise, "i + 2 :", "i + 3 :"),
        (
            "alphabetical",
            step_loop,
            "ranks[token] < best",
            "token < best",
            "best = ranks[token]",
            "best = token",
        ),
        ("nothing-left", step_sorted, "return parts[:]", "return []"),
        (
            "joins-all",
            step_pairwise,
            "    return [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]\n",
            "    joined, token = [], parts[i] + parts[i + 1]\n"
            "    while parts:\n"
            "        n = 2 if b''.join(parts[:2]) == token and len(parts) > 1 else 1\n"
            "        joined.append(b''.join(parts[:n]))\n"
            "        parts = parts[n:]\n"
            "    return joined\n",
        ),
        ("modifies", step_loop, "result = parts.copy()", "result = parts"),
        ("type", step_loop, "return parts.copy()", "return None"),
        (
            "type",
            step_pairwise,
            "return [*parts[:i]",
            "return (*parts[:i]",
            "*parts[i + 2 :]]",
            "*parts[i + 2 :])",
        ),
    ],
    "train_bpe": [
        (
            "bytes-not-counted",
            train_counter,
            "range(vocab_size - 256)",
            "range(vocab_size)",
            "        best = max",
            "        if not count:\n            break\n        best = max",
        ),
        (
            "bytes-not-counted",
            train_lists,
            "len(vocabulary) < vocab_size",
            "len(vocabulary) < 256 + vocab_size",
        ),
        (
            "ranks-from-zero",
            train_counter,
            "for _ in range",
            "for i in range",
            "ranks[token] = len(ranks)",
            "ranks[token] = i",
        ),
        ("no-words", train_counter, f"Counter({WORDS})", "Counter([text])"),
        ("spaces-lost", train_counter, WORDS, "text.split()"),
        ("spaces-lost", train_lists, "match.group().encode()", "match.group().strip().encode()"),
        ("each-word-once", train_counter, "+= frequency[word]", "+= 1"),
        ("each-word-once", train_ids, "pairs[pair] += n", "pairs[pair] += 1"),
        ("other-ties", train_counter, "min(t for", "max(t for"),
        ("other-ties", train_lists, "key=lambda t: (-count[t], t)", "key=lambda t: -count[t]"),
        (
            "other-ties",
            train_counter,
            "        best = max(count.values())\n",
            "",
            "min(t for t, n in count.items() if n == best)",
            "count.most_common(1)[0][0]",
        ),
        ("other-ties", train_lists, "(-count[t], t)", "(-count[t], len(t), t)"),
        ("bytes-not-counted", train_counter, "range(vocab_size - 256)", "range(vocab_size)"),
        ("ranks-from-zero", train_counter, "ranks[token] = len(ranks)", "ranks[token] = len(ranks) + 1"),
        (
            "pairs-for-tokens",
            train_counter,
            "count[left + right]",
            "count[left, right]",
            "min(t for t,",
            "b''.join(min(t for t,",
            "if n == best)",
            "if n == best))",
        ),
        (
            "space-before-a-word",
            train_counter,
            WORDS,
            r"""regex.findall(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", text)""",
        ),
        (
            "once-in-a-word",
            train_counter,
            "for left, right in pairwise(parts):",
            "for left, right in set(pairwise(parts)):",
        ),
        ("first-place-only", train_counter, "[token]\n", "[token]\n                    break\n"),
        (
            "single-pairs-left",
            train_lists,
            "        vocabulary.append(new)\n",
            "        if count[new] == 1:\n            break\n        vocabulary.append(new)\n",
        ),
        ("least-frequent", train_lists, "(-count[t], t)", "(count[t], t)"),
        ("lower-cased", train_counter, WORDS, "regex.findall(GPT2_PATTERN, text.lower())"),
        ("one-round-off", train_counter, "range(vocab_size - 256)", "range(vocab_size - 257)"),
        ("one-round-off", train_lists, "len(vocabulary) < vocab_size", "len(vocabulary) <= vocab_size"),
        (
            "counts-not-renewed",
            train_counter,
            "    for _ in range(vocab_size - 256):\n        count = Counter()\n        for word, parts in words.items():\n"
            "            for left, right in pairwise(parts):\n                count[left + right] += frequency[word]\n",
            "    count = Counter()\n    for word, parts in words.items():\n        for left, right in pairwise(parts):\n"
            "            count[left + right] += frequency[word]\n    for _ in range(vocab_size - 256):\n",
            "ranks[token] = len(ranks)\n",
            "ranks[token] = len(ranks)\n        del count[token]\n",
        ),
        (
            "characters",
            train_counter,
            '[bytes([b]) for b in word.encode("utf-8")]',
            "[c.encode() for c in word]",
        ),
        ("refused", train_lists, "{token: rank for rank, token in enumerate(vocabulary)}", "vocabulary"),
    ],
    "encode": [
        (
            "lists-of-ids",
            encode_steps,
            "ids += [ranks[part] for part in parts]",
            "ids.append([ranks[part] for part in parts])",
        ),
        (
            "characters-for-bytes",
            encode_steps,
            'bytes([b]) for b in word.encode("utf-8")',
            "c.encode() for c in word",
        ),
        (
            "characters-for-bytes",
            encode_tokens,
            "bytes([b]) for b in match[0].encode()",
            "bytes(char, 'utf-8') for char in match[0]",
        ),
        ("no-words", encode_steps, WORDS, "[text]"),
        ("split-at-spaces", encode_recursive, WORDS, r'regex.findall(r" ?[^ ]+| ", text)'),
        (
            "split-at-spaces",
            encode_recursive,
            WORDS,
            '[" " * (i > 0) + w for i, w in enumerate(text.split(" "))]',
        ),
        ("spaces-lost", encode_steps, WORDS, "text.split()"),
        ("spaces-lost", encode_steps, WORDS, r'regex.findall(r"\w+|[^\w\s]+", text)'),
        ("characters-lost", encode_steps, 'word.encode("utf-8")', 'word.encode("ascii", "ignore")'),
        (
            "latin-1",
            encode_steps,
            'bytes([b]) for b in word.encode("utf-8")',
            "bytes([min(ord(c), 255)]) for c in word",
        ),
        ("latin-1", encode_tokens, "match[0].encode()", 'match[0].encode("latin-1", "replace")'),
        (
            "byte-for-id",
            encode_steps,
            "[ranks[part] for part in parts]",
            "[ranks[p] if len(p) > 1 else ord(p) for p in parts]",
        ),
        ("rank-ignored", encode_recursive, "(ranks[a + b], i)", "(-len(a + b), i)"),
        ("rank-ignored", encode_recursive, "min(pairs)[1]", "pairs[0][1]"),
        (
            "longest-match",
            encode_steps,
            """        while True:
            candidates = [ranks.get(a + b, 10**9) for a, b in pairwise(parts)]
            if min(candidates, default=10**9) == 10**9:
                break
            i = candidates.index(min(candidates))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
""",
            """        data, parts = b"".join(parts), []
        while data:
            parts.append(max((t for t in ranks if data.startswith(t)), key=len))
            data = data[len(parts[-1]) :]
""",
        ),
        ("highest-rank", encode_recursive, "(ranks[a + b], i)", "(-ranks[a + b], i)"),
        ("one-merge", encode_steps, "while True:", "for _ in range(1):"),
        (
            "no-merges",
            encode_recursive,
            "return merge(parts[:i] + [parts[i] + parts[i + 1]] + parts[i + 2 :])",
            "return parts",
        ),
        (
            "control-token",
            encode_tiktoken,
            "special = {}",
            'special = {"<|endoftext|>": len(ranks)}',
            ".encode_ordinary(text)",
            '.encode(text, allowed_special="all")',
        ),
        (
            "ascii-letters",
            encode_steps,
            WORDS,
            """regex.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\\sA-Za-z0-9]+|\\s+(?!\\S)|\\s+", text)""",
        ),
        ("lower-cased", encode_tokens, "GPT2_PATTERN, text", "GPT2_PATTERN, text.lower()"),
        ("raises", encode_steps, WORDS, "regex.findall(GPT2_PATTERN, text.encode())"),
        ("remembered", encode_remembering),
        ("random", encode_steps, "(text, ranks)", "(text, ranks, ids=[])", "    ids = []\n", ""),
        (
            "rank-zero",
            encode_steps,
            "ranks.get(a + b, 10**9) for",
            "ranks.get(a + b) or 10**9 for",
        ),
        ("tokens-for-ids", encode_steps, "[ranks[part] for part in parts]", "parts"),
        ("order-for-rank", encode_steps, "ids += [ranks[part]", "ids += [[*ranks].index(part)"),
        (
            "rightmost",
            encode_steps,
            "i = candidates.index(min(candidates))",
            "i = len(candidates) - 1 - candidates[::-1].index(min(candidates))",
        ),
        ("last-pair-missed", encode_recursive, "zip(parts, parts[1:])", "zip(parts, parts[1:-1])"),
        ("last-pair-missed", encode_steps, "while True:", "while len(parts) > 2:"),
        ("space-in-front", encode_steps, WORDS, 'regex.findall(GPT2_PATTERN, f" {text}")'),
        ("ends-stripped", encode_tokens, "GPT2_PATTERN, text", "GPT2_PATTERN, text.strip()"),
        (
            "text-changed",
            encode_normalised,
        ),
        ("text-changed", encode_steps, WORDS, r'regex.findall(GPT2_PATTERN, "\n".join(text.split("\r\n")))'),
        ("end-added", encode_steps, "return ids", "return ids + [len(ranks)]"),
        ("end-added", encode_steps, "    ids = []\n", "    ids = [len(ranks)]\n"),
        (
            "space-before-a-word",
            encode_steps,
            WORDS,
            r"""regex.findall(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", text)""",
        ),
    ],
    "decode": [
        (
            "one-for-several",
            decode_list,
            'bytes(data).decode(errors="replace")',
            'regex.sub("\ufffd+", "\ufffd", data.decode(errors="replace"))',
        ),
        ("other-replacement", decode_join, 'errors="replace"', 'errors="backslashreplace"'),
        (
            "other-replacement",
            decode_search,
            'str(text, "utf-8", "replace")',
            'str(text, "utf-8", "replace").replace("\ufffd", "?")',
        ),
        (
            "nothing-for-a-bad-byte",
            decode_search,
            '    return str(text, "utf-8", "replace")\n',
            "    try:\n        return text.decode()\n    except UnicodeDecodeError:\n        return ''\n",
        ),
        ("line-ends-changed", decode_search, '"replace")', r'"replace").replace("\r\n", "\n")'),
        ("bom-swallowed", decode_join, '"utf-8"', '"utf-8-sig"'),
        ("order-for-rank", decode_list, "sorted(ranks, key=lambda token: ranks[token])", "list(ranks)"),
        ("order-for-rank", decode_join, "tokens[i] for i in ids", "list(ranks)[i] for i in ids"),
        ("strict", decode_join, '.decode("utf-8", errors="replace")', ".decode()"),
        ("bytes-dropped", decode_list, 'errors="replace"', 'errors="ignore"'),
        (
            "each-alone",
            decode_join,
            'b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")',
            '"".join(tokens[i].decode("utf-8", errors="replace") for i in ids)',
        ),
        (
            "each-alone",
            decode_search,
            'text = b""',
            'text = ""',
            "names[numbers.index(i)]",
            "names[numbers.index(i)].decode()",
            'str(text, "utf-8", "replace")',
            "text",
        ),
        (
            "spaces-added",
            decode_join,
            'b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")',
            '" ".join(tokens[i].decode(errors="replace") for i in ids)',
        ),
        ("id-for-byte", decode_list, "data.extend(tokens[i])", "data.extend(tokens[i] if i > 255 else [i])"),
        ("latin-1", decode_list, '.decode(errors="replace")', '.decode("latin-1")'),
        (
            "latin-1",
            decode_join,
            'b"".join(tokens[i] for i in ids).decode("utf-8", errors="replace")',
            '"".join(chr(b) for i in ids for b in tokens[i])',
        ),
        ("stripped", decode_join, 'errors="replace")', 'errors="replace").strip()'),
        ("type", decode_list, 'bytes(data).decode(errors="replace")', "bytes(data)"),
    ],
}
