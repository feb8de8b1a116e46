"""Fine-tune a shared model over private data that stays where it is.

The public names, listed one by one. Each is imported when it is first used, so that
`import securefed` loads neither torch nor NumPy.

>>> import securefed as sf
>>> sf.load_config({"rounds": 3, "train": {"steps": 1}}).rounds
3
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from securefed.errors import AuditError as AuditError
from securefed.errors import BudgetExceeded as BudgetExceeded
from securefed.errors import CheckpointError as CheckpointError
from securefed.errors import ConfigError as ConfigError
from securefed.errors import DataError as DataError
from securefed.errors import DivergedError as DivergedError
from securefed.errors import ModelError as ModelError
from securefed.errors import PolicyRefusal as PolicyRefusal
from securefed.errors import PrivacyError as PrivacyError
from securefed.errors import ProtocolError as ProtocolError
from securefed.errors import SecureFedError as SecureFedError
from securefed.errors import SelfCheckError as SelfCheckError
from securefed.errors import SuspiciousModelError as SuspiciousModelError
from securefed.undisturbed import undisturbed as _undisturbed

if TYPE_CHECKING:
    from securefed.auditing import audit as audit
    from securefed.config import Config as Config
    from securefed.config import load_config as load_config
    from securefed.crypto.identity import Identity as Identity
    from securefed.crypto.identity import Roster as Roster
    from securefed.federation import Result as Result
    from securefed.federation import resume as resume
    from securefed.federation import run as run
    from securefed.layout import Layout as Layout
    from securefed.privacy.ledger import Ledger as Ledger
    from securefed.protect.ckks import CKKSClient as CKKSClient
    from securefed.protect.ckks import CKKSKeyHolder as CKKSKeyHolder
    from securefed.protect.ckks import CKKSServer as CKKSServer
    from securefed.protect.masking import Masking as Masking
    from securefed.protect.masking import MaskingClient as MaskingClient
    from securefed.protect.masking import MaskingServer as MaskingServer
    from securefed.protect.plain import Plain as Plain
    from securefed.sessions import ClientSession as ClientSession
    from securefed.sessions import ServerSession as ServerSession
    from securefed.sessions import Terms as Terms
    from securefed.sums import SecureSum as SecureSum
    from securefed.sums import secure_sum as secure_sum
    from securefed.types import Update as Update
    from securefed.types import View as View
    from securefed.wrapping.federate import federate as federate
    from securefed.wrapping.private import Private as Private
    from securefed.wrapping.private import make_private as make_private
    from securefed.wrapping.trainer import PrivateTrainer as PrivateTrainer

__version__ = "0.1.0"

__all__ = [
    "AuditError",
    "CKKSClient",
    "CKKSKeyHolder",
    "CKKSServer",
    "BudgetExceeded",
    "CheckpointError",
    "ClientSession",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "Identity",
    "Layout",
    "Ledger",
    "Masking",
    "MaskingClient",
    "MaskingServer",
    "ModelError",
    "Plain",
    "PolicyRefusal",
    "PrivacyError",
    "Private",
    "PrivateTrainer",
    "ProtocolError",
    "Result",
    "Roster",
    "SecureFedError",
    "SecureSum",
    "SelfCheckError",
    "ServerSession",
    "SuspiciousModelError",
    "Terms",
    "Update",
    "View",
    "__version__",
    "audit",
    "federate",
    "load_config",
    "make_private",
    "resume",
    "run",
    "secure_sum",
]

_HOME = {
    "CKKSClient": "securefed.protect.ckks",
    "CKKSKeyHolder": "securefed.protect.ckks",
    "CKKSServer": "securefed.protect.ckks",
    "ClientSession": "securefed.sessions",
    "Config": "securefed.config",
    "Identity": "securefed.crypto.identity",
    "Layout": "securefed.layout",
    "Ledger": "securefed.privacy.ledger",
    "Masking": "securefed.protect.masking",
    "MaskingClient": "securefed.protect.masking",
    "MaskingServer": "securefed.protect.masking",
    "Plain": "securefed.protect.plain",
    "Private": "securefed.wrapping.private",
    "PrivateTrainer": "securefed.wrapping.trainer",
    "Result": "securefed.federation",
    "Roster": "securefed.crypto.identity",
    "SecureSum": "securefed.sums",
    "ServerSession": "securefed.sessions",
    "Terms": "securefed.sessions",
    "Update": "securefed.types",
    "View": "securefed.types",
    "audit": "securefed.auditing",
    "federate": "securefed.wrapping.federate",
    "load_config": "securefed.config",
    "make_private": "securefed.wrapping.private",
    "resume": "securefed.federation",
    "run": "securefed.federation",
    "secure_sum": "securefed.sums",
}
"""Where each lazy name lives; the block for type checkers above says the same."""


def __getattr__(name: str) -> Any:
    """The lazy public name `name`, imported now and kept."""
    if name not in _HOME:
        raise AttributeError(f"module 'securefed' has no attribute {name!r}")
    with _undisturbed():
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
