"""What is spent, and how it is known: events, accountants, the site's ledger, client-level and distributed
mechanisms.

Light to import: SciPy loads with the first epsilon, Opacus with the first PRV or RDP answer.
"""

from securefed.privacy.accounting import Spent as Spent
from securefed.privacy.accounting import epsilon as epsilon
from securefed.privacy.accounting import epsilon_of as epsilon_of
from securefed.privacy.adaptive_clip import AdaptiveClip as AdaptiveClip
from securefed.privacy.adaptive_clip import ClipCount as ClipCount
from securefed.privacy.budget import Budget as Budget
from securefed.privacy.calibration import calibrate_noise as calibrate_noise
from securefed.privacy.calibration import max_steps as max_steps
from securefed.privacy.client_level import Clipped as Clipped
from securefed.privacy.client_level import clip_update as clip_update
from securefed.privacy.client_level import noisy_mean as noisy_mean
from securefed.privacy.correlated_noise import CorrelatedNoise as CorrelatedNoise
from securefed.privacy.distributed import DistributedGaussian as DistributedGaussian
from securefed.privacy.distributed import DistributedSkellam as DistributedSkellam
from securefed.privacy.events import Accountant as Accountant
from securefed.privacy.events import BestOf as BestOf
from securefed.privacy.events import DiscreteGaussianSum as DiscreteGaussianSum
from securefed.privacy.events import Event as Event
from securefed.privacy.events import NonPrivate as NonPrivate
from securefed.privacy.events import Relation as Relation
from securefed.privacy.events import SampledGaussian as SampledGaussian
from securefed.privacy.events import SkellamSum as SkellamSum
from securefed.privacy.events import Unit as Unit
from securefed.privacy.ledger import Ledger as Ledger
from securefed.privacy.matrix_factorization import BandedToeplitz as BandedToeplitz
from securefed.privacy.matrix_factorization import Participation as Participation
from securefed.privacy.records import ShardKey as ShardKey
from securefed.privacy.statement import Statement as Statement
from securefed.privacy.tuning import TrialCount as TrialCount
from securefed.privacy.view import RunView as RunView
