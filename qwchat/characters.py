"""Make characters visible that must not reach a terminal or an export unchanged.

These are controls (C0, DEL, C1), line and paragraph separators, characters that change the direction of text, invisible
characters (soft hyphens, zero-width spaces, fillers, tags, musical and shorthand controls) and noncharacters. A model,
a file or a name could use them to control a terminal, to reorder a line or to hide text. Visible format characters,
such as the Arabic number sign, are kept, and so are those that position hieroglyphs.

Some invisible characters are needed by scripts. They are kept after characters that use them:

- joiners (U+200C, U+200D) after letters of joining scripts, and U+200D after emoji;
- U+200B after letters of scripts without spaces (Thai, Lao, Khmer, Burmese …);
- one variation selector after an emoji, digit, symbol, ideograph or Mongolian letter that has variants;
- up to six tags after the black flag, as in the flag of Wales.
"""

from __future__ import annotations

import re
from functools import cache

_ALWAYS_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufdd0-\ufdef\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e002f\U000e003a-\U000e0060\U000e007b-\U000e007e"
    "\U000e0080-\U000e00ff\U000e01f0-\U000e0fff"
)
_TAGS = "\U000e0030-\U000e0039\U000e0061-\U000e007a"
_FLAG, _MAX_TAGS = "\U0001f3f4", 6

_JOINING_SCRIPTS = (
    "\u0600-\u07ff\u0840-\u0dff\u0f00-\u109f\u1780-\u17ff\u1800-\u18af\u1900-\u1c4f\ua800-\uaaff\uabc0-\uabff"
    "\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\U00010a00-\U00010aff\U00010d00-\U00010fff\U00011000-\U00011fff"
    "\U0001e900-\U0001e95f"
)
_UNSPACED_SCRIPTS = "\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\ua980-\ua9ff\uaa00-\uaadf"
_EMOJI = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAS_VARIANTS = f"{_IDEOGRAPHS}\u1000-\u109f\u2200-\u22ff\u2a00-\u2aff\u3001-\u30ff\ua840-\ua877\uff01-\uff5e"
_MONGOLIAN = "\u1820-\u18aa"

# (invisible characters, the characters after which they are kept)
_ALLOWED_AFTER = (
    ("\u200b", _UNSPACED_SCRIPTS),
    ("\u200c", _JOINING_SCRIPTS),
    ("\u200d", f"{_JOINING_SCRIPTS}{_EMOJI}\ufe0f"),
    ("\u180b-\u180d\u180f", _MONGOLIAN),
    ("\ufe00-\ufe0d", _HAS_VARIANTS),
    ("\ufe0e\ufe0f", f"{_HAS_VARIANTS}{_EMOJI}0-9#*"),
    ("\U000e0100-\U000e01ef", _IDEOGRAPHS),
)


_UNSAFE_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


@cache
def _unsafe_anywhere() -> re.Pattern[str]:
    """Return the pattern of an unsafe character. It starts with a character class, which is fast to search for."""
    cases = [f"(?<=[{_ALWAYS_UNSAFE}])"]
    cases += [f"(?<=[{hidden}])(?<![{before}][{hidden}])" for hidden, before in _ALLOWED_AFTER]
    behind_flag = "".join(f"(?<!{_FLAG}{f'[{_TAGS}]' * number}[{_TAGS}\U000e007f])" for number in range(_MAX_TAGS + 1))
    cases.append(f"(?<=[{_TAGS}\U000e007f]){behind_flag}")
    every = _ALWAYS_UNSAFE + _TAGS + "\U000e007f" + "".join(hidden for hidden, _ in _ALLOWED_AFTER)
    return re.compile(f"[{every}](?:{'|'.join(cases)})")


_LOOKBEHIND = _MAX_TAGS + 2  # previous characters that the pattern depends on, and one more


def unsafe_pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of the unsafe characters in `text`. Compiling that of ASCII takes a hundredth of the time."""
    return _UNSAFE_ASCII if text.isascii() else _unsafe_anywhere()


def sanitise(text: str) -> str:
    """Return `text` with every unsafe character except newline and tab made visible.

    An escape sequence starts with ESC (shown as ␛) or a C1 control (shown as <9B>); the rest of it is plain text. Other
    unsafe characters are shown by number, such as <202E>.
    """
    return unsafe_pattern(text).sub(_visible_form, text)


def sanitise_name(text: str) -> str:
    """Return `text` on one line, for names of files and sessions: newlines and tabs are made visible too."""
    return sanitise(text).replace("\n", chr(0x240A)).replace("\t", chr(0x2409))


class StreamSanitiser:
    """Sanitises text that arrives in pieces; the joined pieces equal `sanitise` of the whole text."""

    def __init__(self) -> None:
        self._before = ""

    def push(self, text: str) -> str:
        """Return the next piece, sanitised with the previous characters in mind."""
        whole = self._before + text
        shown = sanitise(whole)[len(sanitise(self._before)) :]
        self._before = whole[-_LOOKBEHIND:]
        return shown


def show_code_points(text: str) -> str:
    """Return `text` with each unsafe character as [U+202E], for files that may be opened anywhere."""
    return unsafe_pattern(text).sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def escape_json(json_text: str) -> str:
    """Return JSON with unsafe characters escaped; every JSON reader sees the same value."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        if code > 0xFFFF:
            return f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
        return f"\\u{code:04x}"

    return unsafe_pattern(json_text).sub(escape, json_text)


def _visible_form(match: re.Match[str]) -> str:
    """Return the Unicode picture (U+2400 on) of a C0 control, and the number of any other character."""
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return chr(0x2421) if code == 0x7F else f"<{code:02X}>"
