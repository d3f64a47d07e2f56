"""Damaging valid files, by a seeded generator."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import zlib
from typing import Any

import torch
from safetensors.torch import load, save

_BYTES = (
    *(b"\0", b"\xff", b'"', b'""', b"\n", b"\r", b"\r\n", b",", b"::", b"\t", b"|", b";", b" ", b"\x1f", b"\x1e", b"="),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"nan", b"inf", b"-1", b"1e999", b"9223372036854775808"),
    *(b"0x1F", b"1_0", b"007", b"\xd9\xa1", b"9" * 5000, b"[" * 3000, b"{a=" * 500, b"\xff" * 8, b"\x7f" + b"\xff" * 7),
    *(b"a.a.", b"../", b"\\N", b"null", b"PAR1", b"ARROW1\0\0", b"\x1f\x8b", b"\x80\x04", b"PK"),
)
_NUMBERS = 1e38, -1e38, math.nan, math.inf
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
    if data[8:9] == b"{":
        chance = rng.random()
        if chance < 0.7:
            return _with_other_header(data, rng) if chance < 0.4 else with_other_tensor(data, rng)
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


def with_other_tensor(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a tensor of another name, shape, dtype or content, one more, or one less."""
    n = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + n]).get("__metadata__")
    tensors = load(data)
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    tensors[name] = rng.choice(
        (
            lambda t: t.flatten(),
            lambda t: t[None],
            lambda t: t[:-1] if t.ndim else t.reshape(1),
            lambda t: t[:0] if t.ndim else t.reshape(1),
            lambda t: torch.cat([t, t]) if t.ndim else t.repeat(3),
            lambda t: t.transpose(0, -1) if t.ndim else t,
            lambda t: t.to(rng.choice((torch.float64, torch.float16, torch.int32, torch.int64, torch.bool))),
            lambda t: torch.full_like(t, rng.choice((0, 1, 7, 100))),
            lambda t: -t if t.dtype == torch.int32 else torch.full_like(t.float(), rng.choice(_NUMBERS)),
        )
    )(tensor).contiguous()
    if rng.random() < 0.2:
        del tensors[name]
    if rng.random() < 0.2:
        tensors[rng.choice((name + "x", "model.", "best.user.bias", "optimizer.x", "x", ""))] = tensor.clone()
    return save(tensors, metadata)


def _with_other_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a value of its header replaced, or of a JSON text in that."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    for _ in range(rng.randint(1, 2)):
        _replace(header, rng)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8", "replace")  # as safetensors writes it
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
        value[key] = copy.deepcopy(rng.choice(_VALUES))  # which may be changed next
