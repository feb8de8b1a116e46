"""Secure aggregation by pairwise masks, in five steps: advertise, share, mask, agree, unmask."""

from securefed.protect.masking.client import MaskingClient as MaskingClient
from securefed.protect.masking.parameters import MaskingParameters as MaskingParameters
from securefed.protect.masking.parameters import Policy as Policy
from securefed.protect.masking.party import Party as Party
from securefed.protect.masking.protection import Masking as Masking
from securefed.protect.masking.protection import OpenMasking as OpenMasking
from securefed.protect.masking.server import MaskingServer as MaskingServer
