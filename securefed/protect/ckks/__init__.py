"""Aggregation under CKKS homomorphic encryption: packed, small, signed, with its trust model in the type."""

from securefed.protect.ckks.client import CKKSClient as CKKSClient
from securefed.protect.ckks.holder import CKKSKeyHolder as CKKSKeyHolder
from securefed.protect.ckks.messages import KEY_HOLDER as KEY_HOLDER
from securefed.protect.ckks.protection import CKKS as CKKS
from securefed.protect.ckks.protection import OpenCKKS as OpenCKKS
from securefed.protect.ckks.server import CKKSServer as CKKSServer
