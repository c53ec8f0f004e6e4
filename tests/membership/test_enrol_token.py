"""Join tokens: what a person may do to one, and what an enemy may put in its place (R11)."""

from __future__ import annotations

import random

import pytest

from membership.enrol import token as tokens
from membership.enrol.token import (
    EXPIRY_MAX,
    PREFIX,
    TEXT_CHARACTERS_MAX,
    Contact,
    Token,
    contact_of_untrusted,
    decode_untrusted,
    describe,
    encode,
    key_of_secret,
)
from membership.errors import BadMessage

CONTACTS = (
    Contact("10.0.0.1", 7001), Contact("fd00::1", 1), Contact("192.168.255.254", 65535), Contact("2001:db8::ffff", 443),
)  # fmt: skip
TOKEN = Token(b"C" * 16, bytes(range(16)), bytes(range(200, 232)), 1_800_000_000, CONTACTS[:1])


def random_token(rng: random.Random) -> Token:
    contacts = tuple(rng.sample(CONTACTS, rng.randrange(1, 5)))
    return Token(rng.randbytes(16), rng.randbytes(16), rng.randbytes(32), rng.randrange(EXPIRY_MAX + 1), contacts)


def test_round_trip_in_any_spelling() -> None:
    rng = random.Random(1)
    for _ in range(200):
        token = random_token(rng)
        line = encode(token)
        assert line.startswith(PREFIX)
        assert len(line) <= 249 < TEXT_CHARACTERS_MAX
        assert line.isascii()
        assert line.isprintable()
        assert " " not in line
        assert decode_untrusted(line) == token
        wrapped = f" \t{line[:80]}\n{line[80:]}\n"
        assert decode_untrusted(wrapped.upper().replace("MXJ1", "mxj1")) == token
        assert decode_untrusted(PREFIX + line[len(PREFIX) :].replace("0", "O").replace("1", "l")) == token


def test_the_line_is_fixed() -> None:
    """Lines that are under way when the software changes are still read."""
    line = (
        "mxj1.051m6gt38d1m6gt38d1m6gt38d1g00820c20a1g7104gm2rc1m70zj69sb5wskees"
        "z8d3mpktkaxdnyrv7ddqq6xvvfy1rf2wfjebsq701nmkmg00420m00004dnjt435fcra"
    )
    assert encode(TOKEN) == line
    assert decode_untrusted(line) == TOKEN


def test_each_typo_is_found() -> None:
    line = encode(TOKEN)
    rng = random.Random(2)
    for at in range(len(PREFIX), len(line)):
        letter = rng.choice([one for one in tokens._ALPHABET if one != line[at]])
        with pytest.raises(BadMessage, match="mistyped or cut short"):
            decode_untrusted(line[:at] + letter + line[at + 1 :])
        with pytest.raises(BadMessage, match="mistyped or cut short"):
            decode_untrusted(line[:at] + line[at + 1 :])
        with pytest.raises(BadMessage, match="mistyped or cut short"):
            decode_untrusted(line[:at])
        if at + 1 < len(line) and line[at] != line[at + 1]:
            with pytest.raises(BadMessage, match="mistyped or cut short"):
                decode_untrusted(line[:at] + line[at + 1] + line[at] + line[at + 2 :])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with mxj1."), ("mxj2.00", "does not begin with"), ("mxj1.", "mistyped"),
        ("mxj1.u", "'u' is in no token"), ("mxj1.\u0661", "is in no token"), ("x" * 401, "401 characters are too many"),
        ("mxj1." + "0" * 300, "mistyped"),
    ],
)  # fmt: skip
def test_no_token(text: str, message: str) -> None:
    with pytest.raises(BadMessage, match=message) as caught:
        decode_untrusted(text)
    assert "\n" not in str(caught.value)


def forged(body: bytes) -> str:
    return PREFIX + tokens._base32(body + tokens._check(body))


def test_a_right_checksum_makes_no_token() -> None:
    body = tokens._unbase32_untrusted(encode(TOKEN)[len(PREFIX) :])[:-5]
    assert decode_untrusted(forged(body)) == TOKEN
    at = 1 + 64 + 5
    for wrong, message in (
        (b"\x02" + body[1:], "another version"),
        (b"", "another version"),
        (body[:at], "contradicts itself"),
        (body[:at] + b"\x00", "contradicts itself"),
        (body[:at] + b"\x05" + body[at + 1 :] * 5, "contradicts itself"),
        (body[: at - 5] + b"\xff" * 5 + body[at:], "contradicts itself"),
        (body[:at] + b"\x02" + body[at + 1 :], "no address"),
        (body[: at + 1] + b"\x05" + body[at + 2 :], "no address"),
        (body[:-1], "no address"),
        (body[:-2] + b"\0\0", "no port"),
        (body + b"\0", "more in it"),
    ):
        with pytest.raises(BadMessage, match=message):
            decode_untrusted(forged(wrong))


def test_hostile_lines_raise_one_error() -> None:
    rng = random.Random(3)
    good = 0
    for _ in range(3000):
        if rng.random() < 0.5:
            body = bytearray(tokens._unbase32_untrusted(encode(random_token(rng))[len(PREFIX) :])[:-5])
            for _ in range(rng.randrange(3)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            text = forged(bytes(body[: rng.choice([len(body), rng.randrange(len(body))])]))
        else:
            text = PREFIX + "".join(rng.choice(tokens._ALPHABET + "u. \0") for _ in range(rng.randrange(300)))
        try:
            decoded = decode_untrusted(text)
        except BadMessage:
            continue
        good += 1
        assert decode_untrusted(encode(decoded)) == decoded
        describe(decoded)
    assert good > 300


def test_what_is_shown_has_no_secret() -> None:
    token = Token(b"C" * 16, bytes(range(16)), b"S" * 32, 1_800_000_000, CONTACTS[:2])
    line = f"token 00010203 of cluster {'43' * 16}, until 2027-01-15 08:00:00 UTC, at 10.0.0.1:7001, [fd00::1]:1"
    assert describe(token) == line
    assert "SSSS" not in repr(token)


def test_the_key_hangs_on_everything_and_is_not_the_secret() -> None:
    key = TOKEN.key
    assert len(key) == 32
    others = {
        key_of_secret(b"s" * 32, TOKEN.cluster, TOKEN.token_id), key_of_secret(TOKEN.secret, b"D" * 16, TOKEN.token_id),
        key_of_secret(TOKEN.secret, TOKEN.cluster, b"t" * 16), TOKEN.secret,
    }  # fmt: skip
    assert key not in others
    assert len(others) == 4


def test_the_key_is_hkdf() -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"matrixfs join token 1\0" + TOKEN.token_id
    assert HKDF(SHA256(), 32, TOKEN.cluster, info).derive(TOKEN.secret) == TOKEN.key


@pytest.mark.parametrize(
    ("host", "port"),
    [("h", 1), ("", 1), (5, 1), ("10.0.0.1", 0), ("10.0.0.1", 65536), ("10.0.0.1", True), ("fe80::1%eth0", 1)],
)
def test_contact_points_are_numeric(host: object, port: object) -> None:
    with pytest.raises(BadMessage):
        contact_of_untrusted(host, port)


def test_one_spelling() -> None:
    assert contact_of_untrusted("FD00:0::1", 5) == Contact("fd00::1", 5)
