"""Raw mails: what a reader saw stays, what a filter or a route wrote goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.mail import NO_LIST, html_text, read_mail

BOTH = b"""Subject: two ways
Content-Type: multipart/alternative; boundary=B

--B
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

caf=E9 at noon
--B
Content-Type: text/html

<b>caf&eacute;</b> at noon, in HTML
--B--
"""


def test_no_header_but_the_subject_stays() -> None:
    headers = b"From: boss@corp\nX-Spam-Level: *****\nReceived: by mx1\nX-Mailer: blast\nSubject: hello\n\nthe body\n"
    assert read_mail(headers).text == "hello\nthe body"
    assert read_mail(b"From x@y Thu Aug 22\nTo: all\n\nthe body").text == "the body"


@pytest.mark.parametrize(
    ("subject", "left"),
    [
        ("[ILUG] Sun box", "Sun box"),
        ("Re: [ILUG] Sun box", "Re: Sun box"),
        ("[ILUG] Re: [ILUG-Social] Sun box", "Re: Sun box"),
        ("Re: [2] and [3]", "Re: and [3]"),
        ("*****SPAM***** Earn", "Earn"),
        ("=?iso-8859-1?q?caf=E9?=", "café"),
        ("=?utf-8?b?a?=", "=?utf-8?b?a?="),
        ("folded\n  over lines", "folded over lines"),
    ],
)
def test_the_subject_loses_list_tags_and_verdicts(subject: str, left: str) -> None:
    assert read_mail(f"Subject: {subject}\n\nbody".encode()).subject == left


def test_answers_are_of_the_thread_they_answer() -> None:
    threads = {
        read_mail(f"Subject: {s}\n\n".encode()).thread
        for s in ("Lunch?", "Re: lunch", "FWD: Re: [FoRK] LUNCH")
    }
    assert threads == {"lunch"}


@pytest.mark.parametrize(
    ("header", "group"),
    [
        ("List-Id: Friends of Rohit Khare <FoRK.xent.com>", "fork"),
        ("List-Id: Irish Internet Users List. See http://iiu.taint.org/\n    <iiu.iiu.taint.org>", "iiu"),
        ("List-Id: no angle brackets", NO_LIST),
        ("X-Other: <fork.xent.com>", NO_LIST),
    ],
)
def test_the_group_is_the_mailing_list(header: str, group: str) -> None:
    assert read_mail(f"{header}\nSubject: s\n\nbody".encode()).mailing_list == group


def test_of_alternatives_the_plain_one_is_read() -> None:
    assert read_mail(BOTH).body == "café at noon"
    assert read_mail(BOTH.replace(b"caf=E9 at noon", b"")).body == "café at noon, in HTML"


def test_transfer_encodings_and_charsets_are_undone() -> None:
    base64 = b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\nw6kgw6AgbGEgY2FydGU=\n"
    assert read_mail(base64).body == "é à la carte"
    assert read_mail(b"Content-Type: text/plain; charset=no-such\n\n\xe9t\xe9").body == "été"
    assert read_mail(b"Content-Type: text/plain\n\n\xc3\xa9t\xc3\xa9").body == "été"


def test_attachments_and_filter_reports_are_not_read() -> None:
    mixed = (
        b"Content-Type: multipart/mixed; boundary=B\n\n--B\n\nhi\nSPAM: hits=12\n--B\nContent-Type: text/plain\n"
        b'Content-Disposition: attachment; filename="a.txt"\n\nattached\n--B\nContent-Type: image/png\n\nPNG\n--B--\n'
    )
    assert read_mail(mixed).body == "hi"


def test_html_shows_its_words() -> None:
    assert (
        html_text("<title>x</title><style>p {}</style>V<!-- n -->ia<b>gra</b> &amp; more<br>now")
        == "Viagra & more\nnow"
    )
    assert html_text("1 < 2 and 3 > 2 <![if broken") == "1 < 2 and 3 > 2 <![if broken"


HEADERS = [
    b"Content-Type: multipart/mixed; boundary=B",
    b"Content-Type: text/html; charset=utf-7",
    b"--B",
    b"Subject:",
]
HEADERS += [
    b"Content-Transfer-Encoding: base64",
    b"Content-Transfer-Encoding: x-uuencode",
    b"=?x?b?",
    b"List-Id: <",
]


@given(st.lists(st.sampled_from(HEADERS) | st.binary(max_size=20), max_size=12))
def test_no_bytes_break_it_and_its_text_can_always_be_encoded(lines: list[bytes]) -> None:
    mail = read_mail(b"\n".join(lines))
    mail.text.encode("utf-8")
    assert "\x00" not in mail.text


def test_what_a_mail_says_is_not_in_its_repr() -> None:
    assert "the body" not in repr(read_mail(b"Subject: hello\n\nthe body"))
