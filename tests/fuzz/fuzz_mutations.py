"""Damaging valid files, by a seeded generator."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from typing import Any

_BYTES = (
    *(b"\0", b"\xff", b'"', b'""', b"\n", b"\r", b"\r\n", b",", b"::", b"\t", b"|", b";", b" ", b"\x1f", b"\x1e", b"="),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"nan", b"inf", b"-1", b"1e999", b"9223372036854775808"),
    *(b"0x1F", b"1_0", b"007", b"\xd9\xa1", b"9" * 5000, b"[" * 3000, b"{a=" * 500, b"\xff" * 8, b"\x7f" + b"\xff" * 7),
    *(b"a.a.", b"../", b"\\N", b"null", b"PAR1", b"ARROW1\0\0", b"\x1f\x8b", b"\x80\x04", b"PK"),
)
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31,
        2**60,
        2**63,
        10**400,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../../x",
        "\udc80",
    ),
    *([], [0], [[0]], {}, [2**60], [0, 2**63], [1] * 5000, "meta", "hpu", "F4", "C64", "BOOL", "I64", {"x": {"x": 1}}),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A file like `data`, damaged in one to four places; what is in a gzip file or header is damaged too."""
    if data.startswith(b"\x1f\x8b") and rng.random() < 0.7:
        try:
            return gzip.compress(mutate(gzip.decompress(data), rng), mtime=0)
        except (OSError, EOFError, zlib.error):
            pass
    if data[8:9] == b"{" and rng.random() < 0.7:
        return _with_other_header(data, rng)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        end = min(len(data), at + rng.choice((1, 2, 4, 8, 30, 200)))
        data = rng.choice(
            (
                lambda d, a, e: d[:a] + rng.choice(_BYTES) + d[a:],
                lambda d, a, e: d[:a] + rng.choice(_BYTES) + d[e:],
                lambda d, a, e: d[:a] + rng.randbytes(e - a) + d[e:],
                lambda d, a, e: d[:a] + d[e:],
                lambda d, a, e: d[:a],
                lambda d, a, e: d[:a] + d[a:e] * rng.choice((2, 100, 5000)) + d[e:],
                lambda d, a, e: d[:a] + bytes((d[a] ^ 1 << rng.randrange(8),)) + d[a + 1 :] if a < len(d) else d,
            )
        )(data, at, end)
    return data


def _with_other_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a value of its header replaced, or of a JSON text in that."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    for _ in range(rng.randint(1, 2)):
        _replace(header, rng)
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + data[8 + n :]


def _replace(value: Any, rng: random.Random) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = rng.choice(keys)
    inner = value[key]
    if isinstance(inner, str) and inner.startswith("{") and rng.random() < 0.9:
        parsed = json.loads(inner)
        _replace(parsed, rng)
        value[key] = json.dumps(parsed)
    elif isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        _replace(inner, rng)
    elif isinstance(value, dict) and rng.random() < 0.2:
        del value[key]
    else:
        value[key] = rng.choice(_VALUES)
