"""Keys and randomness, thin over `cryptography`: NumPy and bytes only."""

from securefed.crypto.entropy import Entropy as Entropy
from securefed.crypto.entropy import Stream as Stream
from securefed.crypto.entropy import SystemEntropy as SystemEntropy
