"""The cache: values that can be computed again, in process memory, in Redis or Valkey, or in both.

- `cache`: `Cache`, `MemoryCache`, `RedisCache`: values under keys
- `functions`: `@cached` · `policy`: how long a result is used · `loading`: how it is found or computed, once at a time
- `resources`: `resource`, `invalidate_tags`: what is forgotten when something changes
- `keys`: names from functions and arguments · `codec`: values as bytes
- `levels`: memory and Redis as one · `_memory`: the first level · `_redis`: the second, whose steps are in `_lua`
- `_channel`: what processes tell each other
- `metrics`: what each cache did · `add`: `add_cache`
"""

from svc_infra.cache.add import add_cache
from svc_infra.cache.cache import Cache, MemoryCache, RedisCache
from svc_infra.cache.functions import CachedFunction, CachedSyncFunction, cached
from svc_infra.cache.resources import Resource, invalidate_tags, resource

__all__ = [
    "Cache", "CachedFunction", "CachedSyncFunction", "MemoryCache", "RedisCache", "Resource",
    "add_cache", "cached", "invalidate_tags", "resource",
]  # fmt: skip
