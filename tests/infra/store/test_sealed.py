"""Documents with a digest of their content: a flipped bit never gives another document without an error."""

from __future__ import annotations

import json

import pytest

from infra.store.sealed import DIGEST, content_digest, seal, unseal

DOCUMENT = {"version": 1, "map50_voc10": 0.125, "name": "gü", "loss": None, "clients": ["3", {"b": -0.0, "a": True}]}


def test_a_sealed_document_is_read_and_so_is_one_without_a_digest() -> None:
    body = seal(DOCUMENT)
    assert body == seal(dict(reversed(DOCUMENT.items())))
    assert unseal(json.loads(body)) == (DOCUMENT, True)
    assert json.loads(body)[DIGEST] == content_digest(DOCUMENT)
    assert unseal(DOCUMENT) == (DOCUMENT, False)
    for other in ([1, 2], "text", 3):
        assert unseal(json.loads(seal(other))) == (other, False)
    # Numbers as keys are sorted as text.
    assert unseal(json.loads(seal({2: "a", 10: "b"}))) == ({"2": "a", "10": "b"}, True)


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    body = seal(DOCUMENT)
    flipped = [body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :] for at in range(len(body)) for bit in range(8)]
    same = 0
    for damaged in [*flipped, *(body[:length] for length in range(len(body)))]:
        try:
            document, sealed = unseal(json.loads(damaged))
        except ValueError:
            continue
        # A flipped bit in the digest's own name gives a field that no record has.
        assert document == DOCUMENT if sealed else len(document) > len(DOCUMENT)
        same += document == DOCUMENT
    assert same < 40  # only bits in spaces and line ends change nothing


def test_the_error_about_a_wrong_digest_has_the_expected_and_the_found_one() -> None:
    with pytest.raises(
        ValueError, match=rf"^{DIGEST}: expected {'0' * 64}, as the document says, found [0-9a-f]{{64}}"
    ):
        unseal({**DOCUMENT, DIGEST: "0" * 64})
    with pytest.raises(ValueError, match=f"{DIGEST}: expected 7"):
        unseal({**DOCUMENT, DIGEST: 7})
