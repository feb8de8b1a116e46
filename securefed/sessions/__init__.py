"""Sessions for your own transport: a whole run of many rounds, bytes in and bytes out, on each party's machine."""

from securefed.sessions.client import ClientSession as ClientSession
from securefed.sessions.client import Reply as Reply
from securefed.sessions.client import Work as Work
from securefed.sessions.messages import Refusal as Refusal
from securefed.sessions.messages import Terms as Terms
from securefed.sessions.server import ServerSession as ServerSession
