"""The job: frozen dataclasses loaded from TOML, changed by dotted overrides, checked together."""

from securefed.config.attack import check_liars as check_liars
from securefed.config.check import check as check
from securefed.config.check import check_against_shards as check_against_shards
from securefed.config.load import load_config as load_config
from securefed.config.load import parse_value as parse_value
from securefed.config.load import typed as typed
from securefed.config.schema import Adapter as Adapter
from securefed.config.schema import AttackConfig as AttackConfig
from securefed.config.schema import Component as Component
from securefed.config.schema import Config as Config
from securefed.config.schema import DataConfig as DataConfig
from securefed.config.schema import EngineConfig as EngineConfig
from securefed.config.schema import EvaluateConfig as EvaluateConfig
from securefed.config.schema import ModelConfig as ModelConfig
from securefed.config.schema import PartitionName as PartitionName
from securefed.config.schema import PrivacyConfig as PrivacyConfig
from securefed.config.schema import Schedule as Schedule
from securefed.config.schema import ServerConfig as ServerConfig
from securefed.config.schema import ServerOptimizerName as ServerOptimizerName
from securefed.config.schema import StopConfig as StopConfig
from securefed.config.schema import Task as Task
from securefed.config.schema import TrackingConfig as TrackingConfig
from securefed.config.schema import TrainConfig as TrainConfig
from securefed.config.schema import Unit as Unit
from securefed.config.toml import to_toml as to_toml
from securefed.config.toml import to_tree as to_tree
