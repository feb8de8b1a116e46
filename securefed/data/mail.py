"""One raw mail -> its mailing list and the words a reader saw; every other header is dropped.

Headers tell spam from ham without reading (routes, mailers, filter verdicts), so only the subject
stays, without list tags and filter marks. Parsing never fails: what cannot be decoded is replaced.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import email.policy
import html
import re
from dataclasses import dataclass, field

NO_LIST = "none"
"""The group of mails that came through no mailing list."""

_TAG = re.compile(r"^((?:(?:re|fwd?|aw)\s*(?:\[\d+\])?\s*:\s*)*)\[[^\]]{1,40}\]\s*", re.IGNORECASE)
_REPLY = re.compile(r"^(?:(?:re|fwd?|aw)\s*(?:\[\d+\])?\s*:\s*)+", re.IGNORECASE)
_VERDICT = re.compile(r"\*{2,}\s*SPAM\s*\*{2,}", re.IGNORECASE)
_VERDICT_LINES = re.compile(r"^SPAM:.*\n?", re.MULTILINE)
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style|title)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_BREAK = re.compile(
    r"</?(?:p|br|div|td|th|tr|table|li|ul|ol|h[1-6]|hr|center|blockquote|pre|body)\b[^>]*>", re.I
)
_MARKUP = re.compile(r"<[a-z!/?][^>]*>", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LIST_ID = re.compile(r"<\s*([^<>@\s.]+)[^<>]*>")


@dataclass(frozen=True, slots=True)
class Mail:
    """What is kept of a mail. `mailing_list`: first word of its List-Id, or `NO_LIST`."""

    subject: str = field(repr=False)
    body: str = field(repr=False)
    mailing_list: str = NO_LIST

    @property
    def text(self) -> str:
        """Subject and body, as a classifier reads them."""
        return f"{self.subject}\n{self.body}".strip()

    @property
    def topic(self) -> str:
        """The subject without reply marks."""
        return _REPLY.sub("", self.subject).strip()

    @property
    def thread(self) -> str:
        """The topic's words: answers quote each other, so a split must not part them."""
        return re.sub(r"\W+", " ", self.topic.lower()).strip()


def read_mail(raw: bytes) -> Mail:
    """The mail in these bytes (RFC 5322 with MIME, or what a spammer made of it)."""
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    body = _VERDICT_LINES.sub("", _tidy(_body(message)))
    return Mail(_subject(message), body.strip(), _mailing_list(message))


def _subject(message: email.message.Message) -> str:
    subject = " ".join(_tidy(_decoded(message.get("Subject"))).split())
    subject = _VERDICT.sub("", subject).strip()
    while (shorter := _TAG.sub(r"\1", subject)) != subject:
        subject = shorter
    return subject.strip()


def _mailing_list(message: email.message.Message) -> str:
    found = _LIST_ID.findall(_decoded(message.get("List-Id")))
    return str(found[-1]).lower() if found else NO_LIST


def _decoded(header: object) -> str:
    """A header's words, encoded words (RFC 2047) decoded where they can be."""
    text = "" if header is None else str(header)
    try:
        pieces = email.header.decode_header(text)
    except (ValueError, email.errors.MessageError):
        return text
    return "".join(p if isinstance(p, str) else _decode(p, charset) for p, charset in pieces)


def _body(message: email.message.Message) -> str:
    """The text parts in order; of alternatives the plain one, else the HTML one as text."""
    if message.get_content_type() == "multipart/alternative" and message.is_multipart():
        plain = [p for p in message.walk() if p.get_content_type() == "text/plain"]
        texts = [_part(p) for p in plain]
        if any(t.strip() for t in texts):
            return "\n".join(texts)
    if message.is_multipart():
        return "\n".join(_body(p) for p in message.get_payload() if isinstance(p, email.message.Message))
    return _part(message)


def _part(part: email.message.Message) -> str:
    if part.get_content_maintype() != "text" or part.get_filename():
        return ""
    payload = part.get_payload(decode=True)
    text = _decode(payload if isinstance(payload, bytes) else b"", part.get_param("charset"))
    return html_text(text) if part.get_content_subtype() == "html" else text


def _decode(data: bytes, charset: object) -> str:
    """Bytes as text: by the charset they claim, else UTF-8 where it fits, else Latin-1 (never fails)."""
    for name in (charset, "utf-8"):
        if isinstance(name, str):
            try:
                return data.decode(name)
            except (LookupError, ValueError):
                continue
    return data.decode("latin-1")


def html_text(source: str) -> str:
    """The words that HTML shows, roughly: enough for a classifier, the same on every Python version.

    The standard library's parser changed its reading of broken markup between releases, and spam is
    broken markup; these few substitutions do not change.
    """
    # comments and inline tags vanish without a gap: spam hides words as V<!-- -->iagra
    source = _BREAK.sub("\n", _UNSEEN.sub("", source))
    return html.unescape(_MARKUP.sub("", source)).replace("\xa0", " ")


def _tidy(text: str) -> str:
    """Without control characters, lone surrogates, and runs of spaces or of empty lines."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\t", " "))
    lines = (re.sub(r" {2,}", " ", line).rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
