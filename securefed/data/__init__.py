"""Data: named sets, own files and the hub; who holds which record; batches of them."""

from securefed.data.load import load_dataset as load_dataset
from securefed.data.picture import plot_shards as plot_shards
from securefed.data.records import Dataset as Dataset
from securefed.data.records import Examples as Examples
from securefed.data.records import Shard as Shard
from securefed.data.shards import make_shards as make_shards
from securefed.data.shards import shard_table as shard_table
