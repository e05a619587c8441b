"""A demo."""

import codecs
import math
import numbers
import re


def stream_codecs(pieces):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def stream_first_byte(pieces):
    held = b""
    for piece in pieces:
        held += piece
        cut = len(held)
        for back in range(1, min(4, len(held) + 1)):  # where may the last character begin?
            first = held[-back]
            if first >= 0xC0:
                length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
                if back < length:
                    cut = len(held) - back
                break
            if first < 0x80:
                break
        ready, held = held[:cut], held[cut:]
        if ready:
            yield ready.decode("utf-8", errors="replace")
    if held:
        yield held.decode("utf-8", errors="replace")


def stream_attempts(pieces):
    buffer = bytearray()
    for piece in pieces:
        buffer.extend(piece)
        text = ""
        while buffer:
            try:
                text += buffer.decode("utf-8")
                buffer.clear()
            except UnicodeDecodeError as error:
                text += buffer[: error.start].decode("utf-8")
                del buffer[: error.start]
                if error.reason == "unexpected end of data":
                    break
                text += "\ufffd"
                del buffer[: error.end - error.start]
        yield text
    yield buffer.decode("utf-8", errors="replace")


def stream_one_sign(pieces):
    for text in stream_codecs(pieces):
        yield re.sub("\ufffd+", "\ufffd", text)


def stream_bytes(pieces):
    """Tries one byte more at a time, and gives up a character after four."""
    held = b""
    for piece in pieces:
        for byte in piece:
            held += bytes([byte])
            try:
                text = held.decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield text
            held = b""
    if held:
        yield held.decode("utf-8", errors="replace")


def stream_with_memory(pieces, held=[]):  # noqa: B006
    for piece in pieces:
        held.append(piece)
        try:
            yield b"".join(held).decode()
            held.clear()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                yield b"".join(held).decode(errors="replace")
                held.clear()


def stream_late(pieces):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    before = b""
    for piece in pieces:
        if before:
            yield decoder.decode(before)
        before = piece
    yield decoder.decode(before, final=True)


def stream_whole_text(pieces):
    decoder, text = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
    for piece in pieces:
        text += decoder.decode(piece)
        yield text
    yield text + decoder.decode(b"", final=True)


def stream_all_or_nothing(pieces):
    held = b""
    for piece in pieces:
        held += piece
        try:
            yield held.decode()
            held = b""
        except UnicodeDecodeError:
            pass
    yield held.decode(errors="replace")


def stream_one_held(pieces):
    held = b""
    for piece in pieces:
        data = held + piece
        held = data[-1:] if data and data[-1] >= 0x80 and data[-1] >= 0xC0 else b""
        yield data[: len(data) - len(held)].decode(errors="replace")
    yield held.decode(errors="replace")


def limits_ranges(prompt, max_new_tokens, temperature):
    if not isinstance(prompt, str) or len(prompt.encode("utf-8")) > 4000:
        raise ValueError("the prompt must be text of at most 4000 bytes")
    if type(max_new_tokens) is not int or not 1 <= max_new_tokens <= 200:
        raise ValueError("max_new_tokens must be a whole number from 1 to 200")
    if type(temperature) not in (int, float) or not 0 <= temperature <= 2:
        raise ValueError("temperature must be a number from 0 to 2")
    return prompt, max_new_tokens, temperature


def limits_table(prompt, max_new_tokens, temperature):
    if not isinstance(prompt, str):
        raise ValueError("the prompt must be text, of at most 4000 bytes")
    rules = [
        ("bytes of the prompt", len(bytes(prompt, "utf-8")), int, 0, 4000),
        ("max_new_tokens", max_new_tokens, int, 1, 200),
        ("temperature", temperature, (int, float), 0, 2),
    ]
    for name, value, kinds, low, high in rules:
        number = isinstance(value, kinds) and value is not True and value is not False
        if not (number and low <= value <= high):
            raise ValueError(f"{name}: {value!r} is not from {low} to {high}")
    return prompt, max_new_tokens, temperature


class Refusal(ValueError):
    pass


def limits_one_by_one(prompt, max_new_tokens, temperature):
    if not isinstance(prompt, str):
        raise Refusal("the prompt has to be text (4000 bytes)")
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError:
        raise Refusal("half a surrogate pair") from None
    if size > 4000:
        raise Refusal(f"the prompt has {size} bytes, of 4000")
    for value in (max_new_tokens, temperature):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise Refusal("not a number; from 1 to 200, and from 0 to 2")
        if isinstance(value, float) and math.isnan(value):
            raise Refusal("not a number; from 1 to 200, and from 0 to 2")
    if not isinstance(max_new_tokens, int):
        raise Refusal("a whole number from 1 to 200")
    if max_new_tokens < 1 or max_new_tokens > 200:
        raise Refusal("from 1 to 200")
    if temperature < 0 or temperature > 2:
        raise Refusal("from 0 to 2")
    return prompt, max_new_tokens, temperature


def limits_assert(prompt, max_new_tokens, temperature):
    assert isinstance(prompt, str) and len(prompt.encode()) <= 4000
    assert type(max_new_tokens) is int and 1 <= max_new_tokens <= 200
    assert type(temperature) in (int, float) and 0 <= temperature <= 2
    return prompt, max_new_tokens, temperature


def limits_clamped(prompt, max_new_tokens, temperature):
    if (
        not isinstance(prompt, str)
        or type(max_new_tokens) is not int
        or type(temperature) not in (int, float)
    ):
        raise ValueError("text, and numbers from 1 to 200 and from 0 to 2")
    return prompt[:4000], min(max(max_new_tokens, 1), 200), min(max(temperature, 0.0), 2.0)


NAN = """        if isinstance(value, float) and math.isnan(value):
            raise Refusal("not a number; from 1 to 200, and from 0 to 2")
"""
KIND = """        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise Refusal("not a number; from 1 to 200, and from 0 to 2")
"""

RIGHT = {
    "decode_stream": [stream_codecs, stream_first_byte, stream_attempts],
    "limits": [limits_ranges, limits_table, limits_one_by_one],
}
WRONG = {
    "decode_stream": [
        ("pieces-alone", stream_codecs, "decoder.decode(piece)", 'piece.decode("utf-8", errors="replace")'),
        ("ignored", stream_codecs, 'errors="replace"', 'errors="ignore"'),
        ("ignored", stream_codecs, "decoder.decode(piece)", 'piece.decode("utf-8", errors="ignore")'),
        ("strict", stream_codecs, '(errors="replace")', "()"),
        ("strict", stream_codecs, "decoder.decode(piece)", "piece.decode()"),
        (
            "all-at-once",
            stream_codecs,
            '    for piece in pieces:\n        yield decoder.decode(piece)\n    yield decoder.decode(b"", final=True)\n',
            '    yield decoder.decode(b"".join(pieces), final=True)\n',
        ),
        ("end-not-flushed", stream_codecs, '    yield decoder.decode(b"", final=True)\n', ""),
        (
            "end-not-flushed",
            stream_first_byte,
            '    if held:\n        yield held.decode("utf-8", errors="replace")\n',
            "",
        ),
        (
            "three-bytes-at-most",
            stream_first_byte,
            "2 if first < 0xE0 else 3 if first < 0xF0 else 4",
            "2 if first < 0xE0 else 3",
        ),
        ("three-bytes-at-most", stream_first_byte, "min(4, len(held) + 1)", "min(3, len(held) + 1)"),
        ("one-byte-at-most", stream_first_byte, "2 if first < 0xE0 else 3 if first < 0xF0 else 4", "2"),
        ("one-byte-at-most", stream_one_held),
        (
            "stuck-at-bad-byte",
            stream_attempts,
            """                if error.reason == "unexpected end of data":
                    break
                text += "\\ufffd"
                del buffer[: error.end - error.start]
""",
            "                break\n",
        ),
        ("stuck-at-bad-byte", stream_bytes),
        ("held-too-long", stream_all_or_nothing),
        ("grows", stream_whole_text),
        ("piece-late", stream_late),
        ("latin-1", stream_codecs, "decoder.decode(piece)", 'piece.decode("latin-1")'),
        ("latin-1", stream_codecs, "decoder.decode(piece)", '"".join(map(chr, piece))'),
        ("shared-state", stream_with_memory),
        ("bom-swallowed", stream_codecs, '"utf-8"', '"utf-8-sig"'),
        ("ascii", stream_codecs, '"utf-8"', '"ascii"'),
        (
            "stops-at-empty",
            stream_codecs,
            "        yield decoder.decode(piece)\n",
            "        if not piece:\n            break\n        yield decoder.decode(piece)\n",
        ),
        (
            "stripped",
            stream_first_byte,
            'yield ready.decode("utf-8", errors="replace")',
            'yield ready.decode("utf-8", errors="replace").strip()',
        ),
        (
            "line-ends-changed",
            stream_codecs,
            "decoder.decode(piece)",
            r'decoder.decode(piece).replace("\r\n", "\n")',
        ),
        (
            "one-for-several",
            stream_one_sign,
        ),
        (
            "one-for-each-byte",
            stream_attempts,
            'text += "\\ufffd"',
            'text += "\\ufffd" * (error.end - error.start)',
        ),
        (
            "one-for-each-byte",
            stream_attempts,
            'yield buffer.decode("utf-8", errors="replace")',
            'yield "\ufffd" * len(buffer)',
        ),
        ("refused", stream_codecs, "yield decoder.decode(piece)", "yield piece"),
    ],
    "limits": [
        ("nan", limits_one_by_one, NAN, ""),
        ("nan", limits_ranges, "not 0 <= temperature <= 2", "temperature < 0 or temperature > 2"),
        ("no-upper-end", limits_ranges, "1 <= max_new_tokens <= 200", "1 <= max_new_tokens"),
        ("no-upper-end", limits_one_by_one, " or temperature > 2", ""),
        ("no-lower-end", limits_ranges, "1 <= max_new_tokens <= 200", "max_new_tokens <= 200"),
        ("no-lower-end", limits_one_by_one, "temperature < 0 or ", ""),
        ("ends-refused", limits_ranges, "1 <= max_new_tokens <= 200", "1 <= max_new_tokens < 200"),
        ("ends-refused", limits_ranges, "0 <= temperature", "0 < temperature"),
        ("ends-refused", limits_one_by_one, "size > 4000", "size >= 4000"),
        (
            "ends-refused",
            limits_ranges,
            "not isinstance(prompt, str) or",
            "not isinstance(prompt, str) or not prompt or",
        ),
        (
            "not-text",
            limits_ranges,
            'not isinstance(prompt, str) or len(prompt.encode("utf-8"))',
            'len((prompt or "").encode("utf-8"))',
        ),
        ("characters-for-bytes", limits_ranges, 'len(prompt.encode("utf-8"))', "len(prompt)"),
        ("characters-for-bytes", limits_table, 'len(bytes(prompt, "utf-8"))', "len(prompt)"),
        ("truth-for-number", limits_table, " and value is not True and value is not False", ""),
        (
            "truth-for-number",
            limits_ranges,
            "type(temperature) not in (int, float)",
            "not isinstance(temperature, int | float)",
        ),
        (
            "fraction",
            limits_ranges,
            "type(max_new_tokens) is not int",
            "type(max_new_tokens) not in (int, float)",
        ),
        (
            "fraction",
            limits_one_by_one,
            "    if not isinstance(max_new_tokens, int):\n",
            "    max_new_tokens = int(max_new_tokens)\n    if False:\n",
        ),
        (
            "text-for-number",
            limits_ranges,
            "    if type(max_new_tokens) is not int or not 1",
            "    max_new_tokens = int(max_new_tokens) if isinstance(max_new_tokens, str) else max_new_tokens\n    if type(max_new_tokens) is not int or not 1",
        ),
        (
            "text-for-number",
            limits_one_by_one,
            KIND,
            KIND.replace(
                "        if isinstance",
                "        if isinstance(value, str):\n            value = float(value)\n        if isinstance",
            ),
            "if temperature < 0",
            "temperature = float(temperature)\n    if temperature < 0",
        ),
        ("crashes", limits_ranges, "type(temperature) not in (int, float)", "isinstance(temperature, bool)"),
        (
            "crashes",
            limits_one_by_one,
            "isinstance(value, bool) or not isinstance(value, numbers.Real)",
            "isinstance(value, bool)",
        ),
        ("assert", limits_assert),
        (
            "clamped",
            limits_ranges,
            "    if type(temp",
            "    if type(temperature) is float:\n        temperature = min(temperature, 2.0)\n    if type(temp",
        ),
        ("changed", limits_ranges, "return prompt,", "return prompt.strip(),"),
        ("changed", limits_ranges, "max_new_tokens, temperature\n", "max_new_tokens, float(temperature)\n"),
        (
            "not-raised",
            limits_ranges,
            'raise ValueError("temperature must be a number from 0 to 2")',
            "return None",
        ),
        ("clamped", limits_clamped),
        (
            "not-raised",
            limits_ranges,
            'raise ValueError("max_new_tokens must be a whole number from 1 to 200")',
            "return False",
        ),
        (
            "not-raised",
            limits_ranges,
            'raise ValueError("max_new_tokens must be a whole number from 1 to 200")',
            'return {"error": "max_new_tokens"}',
        ),
        ("silent", limits_ranges, '"max_new_tokens must be a whole number from 1 to 200"', '"bad request"'),
        ("silent", limits_one_by_one, 'raise Refusal("from 0 to 2")', "raise Refusal"),
    ],
}
