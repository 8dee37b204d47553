"""From settings to a scorer: plugin and model loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from stream_scorer.config import ConfigError, Settings
from stream_scorer.plugins.loading import DEFAULT_PLUGIN, AnyPlugin, load_plugin
from stream_scorer.plugins.models import ModelFolder, fetch_model, load_model
from stream_scorer.plugins.trust import check_model, check_root
from stream_scorer.scorer import Observer, Scorer
from stream_scorer.warm_up import warm_up


@dataclass(frozen=True, slots=True)
class Loaded:
    """A scorer and what it was made of."""

    scorer: Scorer
    plugin: AnyPlugin
    model: ModelFolder


def load_scorer(settings: Settings, observer: Observer | None = None) -> Loaded:
    """Load what the settings name; ``observer`` is told how scoring goes.

    Raises:
        SetupError: the plugin or the model is missing or cannot be used, or does not score its
            own example.
    """
    if settings.model_uri is None:
        raise ConfigError("which model scores must be set @ model_uri")
    plugin = load_plugin(
        settings.plugin or DEFAULT_PLUGIN, settings.locate, roots=settings.plugin_roots
    )
    plugin.image_pixels = settings.limits.image_pixels
    check_root(settings.model_uri, settings.model.roots, settings.locate)
    folder = fetch_model(settings.model_uri, settings.locate)
    check_model(
        folder,
        allow_pickle=settings.model.allow_pickle,
        allow_code=settings.model.allow_code,
        trusted_types=settings.model.trusted_types,
    )
    limits = settings.limits
    make = partial(
        Scorer,
        plugin,
        load_model(plugin, folder),
        payload_bytes=limits.payload_bytes,
        result_bytes=limits.result_bytes,
        max_batch_size=settings.worker.max_batch_size,
    )
    warm_up(make(), plugin, folder)
    return Loaded(make(observer=observer), plugin, folder)
