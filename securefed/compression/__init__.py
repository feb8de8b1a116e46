"""Updates made smaller before they are sent: linear maps, which survive a secure sum, and codings, which do not."""

from securefed.compression.contract import Coding as Coding
from securefed.compression.contract import Linear as Linear
from securefed.compression.sending import Sending as Sending
