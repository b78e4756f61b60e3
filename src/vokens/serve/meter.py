"""What Prometheus reads: requests by route and status, seconds they took, queues, batches, audio in and out."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vokens.serve.served import Served

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """Counters of one application."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, models: Mapping[str, Served]) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("vokens_requests", "Requests answered", ["route", "status"], **kept)
        self.seconds = Histogram(
            "vokens_request_seconds", "Until the reply's last byte", ["route"], buckets=_SECONDS, **kept
        )
        self.active = Gauge("vokens_requests_in_progress", "Requests being answered", **kept)
        self.audio = Counter("vokens_audio_seconds", "Audio encoded (in) and spoken (out)", ["way"], **kept)
        self.registry.register(_Queues(models))

    def heard(self, seconds: float) -> None:
        self.audio.labels("in").inc(seconds)

    def spoke(self, seconds: float) -> None:
        self.audio.labels("out").inc(seconds)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def middleware(self, app: Any) -> Any:
        """Counts and times the requests that pass through."""

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def noted(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            self.active.inc()
            try:
                await app(scope, receive, noted)
            finally:
                self.active.dec()
                route = getattr(scope.get("route"), "path", "other")  # never the client's own words
                self.requests.labels(route, str(status)).inc()
                self.seconds.labels(route).observe(time.perf_counter() - start)

        return counted


class _Queues(Collector):
    """The models' queues, read when the page is."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        texts = {
            "waiting": "Requests that wait",
            "streams": "Replies being streamed",
            "batches": "Passes computed",
            "requests": "Requests computed in these passes",
        }
        for name, text in texts.items():
            family = GaugeMetricFamily(f"vokens_model_{name}", text, labels=["model"])
            for model, served in self._models.items():
                family.add_metric([model], getattr(served.batcher.load, name))
            yield family
