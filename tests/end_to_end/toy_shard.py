"""The toy's shard descriptor: a site holds one number."""

from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor


class ToyShard(ShardDescriptor):
    def __init__(self, value: float, size: int = 1, shape: str = "4") -> None:
        self.value, self.size, self._shape = value, size, shape

    @property
    def sample_shape(self) -> list[str]:
        return [self._shape]

    @property
    def target_shape(self) -> list[str]:
        return ["1"]

    @property
    def dataset_description(self) -> str:
        return f"the number {self.value}"
